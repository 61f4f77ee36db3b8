"""A batch that grows when it is told to, for what a real one leaves to chance: who is where, and when."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

from polydraft.decoding.row import Row

LETTER = 70
"""A token of one ASCII letter in `tiny_tokenizer`."""


class SteppedBatch:
    """Every text says the same letter, one a cycle; a cycle waits for its turn.

    Attributes:
        turns: released once for each cycle that may pass.
        fails: the next cycle raises this, and the batch is dead. fails_text: it ends that text alone.
        admitted, dropped: every text that was, in order.
    """

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self.active: list[Row] = []
        self.turns = threading.Semaphore(0)
        self.fails: Exception | None = None
        self.fails_text: tuple[Row, Exception] | None = None
        self.dead = False
        self.admitted: list[Row] = []
        self.dropped: list[Row] = []

    @property
    def free(self) -> int:
        """How many more fit."""
        return self.rows - len(self.active)

    def admit(self, rows: Sequence[Row]) -> None:
        """Their first letters."""
        assert len(rows) <= self.free
        self.active += rows
        self.admitted += rows
        self._grow(rows)

    def read(self) -> None:
        """Nothing is left to read."""

    def cycle(self) -> None:
        """One letter more for each, when it is time."""
        assert self.turns.acquire(timeout=30)
        if self.fails is not None:
            self.dead, self.active = True, []
            raise self.fails
        if self.fails_text is not None:
            row, error = self.fails_text
            row.failed, self.fails_text = True, None
            self.active.remove(row)
            self._grow(list(self.active))
            raise error
        self._grow(list(self.active))

    def drop(self, row: Any) -> None:
        """Take one out, if it has not left."""
        if row in self.active:
            self.active.remove(row)
            self.dropped.append(row)

    def _grow(self, rows: Sequence[Row]) -> None:
        for row in rows:
            row.emit(LETTER, 0)
            if row.finished:
                self.active.remove(row)

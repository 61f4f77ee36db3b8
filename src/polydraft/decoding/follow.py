"""What the head is told of the rows as they grow."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from polydraft.decoding.adapted import AdaptedTrunk
from polydraft.decoding.row import Row
from polydraft.heads import DraftHead
from polydraft.joint import JointDistribution


class Follower:
    """Hands the head the states of what stays: the verifier's own, or those of the adapted model.

    Args:
        adapted: where the head reads other states than the verifier's. rows: B.
    """

    def __init__(self, head: DraftHead, adapted: AdaptedTrunk | None, *, rows: int) -> None:
        self._reader = head.reader(rows=rows)
        self._adapted = adapted
        self._unread: list[list[tuple[Tensor, Tensor]]] = [[] for _ in range(rows)]

    def begin(self, rows: Sequence[Row], prompts: Sequence[Tensor], hidden: Tensor) -> None:
        """The prompts have been read, and the first token of each row is known.

        Args:
            prompts: per row (T_b,). hidden: as `Trunk.prefill` leaves it.
        """
        if self._adapted is not None:
            prompts, hidden = self._adapted.texts, self._adapted.prefill()
        sizes = [min(hidden.shape[1], len(prompt)) for prompt in prompts]
        self._reader.tell(
            [states[:size] for states, size in zip(hidden, sizes, strict=True)],
            [row.ids[0, row.ids.shape[1] - size :] for row, size in zip(rows, sizes, strict=True)],
        )

    def grow(
        self,
        tokens: Sequence[Tensor],
        hidden: Sequence[Tensor],
        after: Sequence[Tensor],
    ) -> None:
        """Take in that k_b more tokens of each row have been read and stay.

        Args:
            tokens: (k_b,) each. hidden: (k_b, D), the verifier's states. after: (k_b,), the token after each.
        """
        if self._adapted is None:
            self._reader.tell(hidden, after)
            return
        for unread, read, following in zip(self._unread, tokens, after, strict=True):
            unread.append((read, following))

    def joint(self) -> JointDistribution:
        """The head's joints after the rows."""
        if self._adapted is not None and self._unread[0]:
            tokens = [torch.cat([read for read, _ in unread]) for unread in self._unread]
            after = [torch.cat([following for _, following in unread]) for unread in self._unread]
            self._unread = [[] for _ in tokens]
            self._reader.tell(self._adapted(tokens), after)
        return self._reader.joint()

    def catch_up(self) -> None:
        """Let the head read now what it was told of, all but the last position of each row."""
        self._reader.catch_up()

    def join(self, other: Follower) -> None:
        """Follow the rows of another one too; neither may have an adapted model."""
        assert self._adapted is None and other._adapted is None
        other.catch_up()
        self._reader.join(other._reader)
        self._unread += other._unread

    def select(self, rows: Sequence[int]) -> None:
        """Go on with `rows` alone."""
        self._reader.select(rows)
        self._unread = [self._unread[row] for row in rows]
        if self._adapted is not None:
            self._adapted.select(rows)

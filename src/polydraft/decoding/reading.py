"""Prompts on their way into a live batch, read in chunks so that the texts at work go on meanwhile."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from torch import Tensor

from polydraft.decoding.engine import Engine
from polydraft.decoding.follow import Follower
from polydraft.decoding.loop import Loop
from polydraft.decoding.row import Row
from polydraft.decoding.trace import Tracer
from polydraft.decoding.trunk import Trunk

OpenTrunk = Callable[[int], Trunk]
"""Makes a trunk for the given number of rows."""
TRACED = 256
"""Tokens of a traced prompt read at a time, each of which has a row of logits."""


class Reading:
    """One prompt, read in chunks; or several short ones, read together in one.

    The head is told of each chunk as it is read, so that its context is as long as the model's. Of a prompt
    that is traced all tokens but the last one are read with their rows of logits.

    Args:
        rows: more than one only where their prompts, padded, fit into one chunk, and none is traced.
        chunk: tokens to read at a time; None for all.

    Attributes:
        rows: those that are not dropped. loop: they and their first tokens, once all is read; None where
            none is to be written.
    """

    def __init__(
        self, engine: Engine, rows: Sequence[Row], *, open_trunk: OpenTrunk, chunk: int | None
    ) -> None:
        self.rows = list(rows)
        self.loop: Loop | None = None
        self._engine = engine
        self._open_trunk = open_trunk
        self._chunk = chunk
        self._begun: tuple[Trunk, Follower] | None = None
        self._parts: deque[Tensor] = deque()

    def read(self) -> None:
        """Read one chunk."""
        if self._begun is None:
            trunk = self._open_trunk(len(self.rows))
            self._begun = trunk, Follower(self._engine.head, None, rows=len(self.rows))
            prompt = self.rows[0].ids[0]  # the only one, or one of those that fit into a chunk
            self._parts.extend(self._split(prompt))
        trunk, follower = self._begun
        if self.rows[0].room == 0 and len(self._parts) == 1:
            self.rows[0].end()  # nothing is to be written: the last token need not be read
            return
        with trunk:
            part = self._parts.popleft()
            if not self._parts:
                prompts = [part] if len(self.rows) == 1 else [row.ids[0] for row in self.rows]
                self.loop = Loop(self._engine, self.rows, prompts, trunk, follower=follower)
                return
            after = part.new_tensor([*part[1:].tolist(), int(self._parts[0][0])])
            if self._tracer is None:
                trunk.prefill([part])
            else:
                self._tracer.read(after.tolist(), trunk.read(part))
            follower.grow([part], [trunk.hidden[0]], [after])
            follower.catch_up()

    def _split(self, prompt: Tensor) -> list[Tensor]:
        if self._tracer is None:
            return list(prompt.split(self._chunk or len(prompt)))
        before = prompt[:-1].split(min(self._chunk or TRACED, TRACED))
        return [*(part for part in before if len(part)), prompt[-1:]]

    @property
    def _tracer(self) -> Tracer | None:
        """The tracer of a prompt that is to be traced, which is read alone."""
        return self.rows[0].tracer if self.rows[0].traces_prompt else None


class Readings:
    """Prompts that are read in turn, one chunk at a time.

    Args:
        chunk: tokens of a chunk, those of padding included; None reads what was added together in one.
    """

    def __init__(self, engine: Engine, *, open_trunk: OpenTrunk, chunk: int | None) -> None:
        self._engine = engine
        self._open_trunk = open_trunk
        self._chunk = chunk
        self._waiting: deque[Reading] = deque()

    @property
    def rows(self) -> list[Row]:
        """Those whose prompts are not read yet."""
        return [row for reading in self._waiting for row in reading.rows]

    def add(self, rows: Sequence[Row]) -> None:
        """Read these too."""
        for group in grouped(rows, self._chunk):
            self._waiting.append(Reading(self._engine, group, open_trunk=self._open_trunk, chunk=self._chunk))

    def drop(self, row: Row) -> None:
        """Do not read the prompt of `row` any further."""
        for reading in list(self._waiting):
            reading.rows = [other for other in reading.rows if other is not row]
            if not reading.rows:
                self._waiting.remove(reading)

    def clear(self) -> None:
        """Read none of them."""
        self._waiting.clear()

    def read(self) -> Reading | None:
        """One chunk of the reading whose turn it is; that reading if it is complete.

        What fails is not read any further.
        """
        if not self._waiting:
            return None
        reading = self._waiting.popleft()
        reading.read()
        if reading.loop is not None or reading.rows[0].finished:
            return reading
        self._waiting.append(reading)
        return None


def grouped(rows: Sequence[Row], chunk: int | None) -> list[list[Row]]:
    """`rows` in order, those side by side whose prompts fit into one chunk when padded to the longest.

    A row whose prompt is traced is alone.
    """
    groups: list[list[Row]] = []
    longest = 0
    for row in rows:
        longest = max(longest, row.ids.shape[1])
        alone = row.traces_prompt or bool(groups and groups[-1][0].traces_prompt)
        if groups and not alone and (chunk is None or (len(groups[-1]) + 1) * longest <= chunk):
            groups[-1].append(row)
        else:
            groups.append([row])
            longest = row.ids.shape[1]
    return groups

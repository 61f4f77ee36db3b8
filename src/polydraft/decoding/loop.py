"""The decoding loop: draft n tokens, check them with one forward of the base model, keep what it says.

One cycle is one forward over [pending token, drafts] of every row. Its column i predicts the token after
draft i; with a drafts accepted, column a gives the next token x, and hidden states 0..a, each with the
token now known to follow it, are what the head reads before the next draft:

    joint = read(h_0..h_a, [accepted drafts, x]);  drafts ~ joint;  p = model([x, drafts]);  verify

Rows of a batch accept different numbers of drafts, a row that ends leaves the work, and others may join it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from polydraft.decoding.adapted import AdaptedTrunk
from polydraft.decoding.drafts import Draft
from polydraft.decoding.engine import Engine
from polydraft.decoding.follow import Follower
from polydraft.decoding.lookup import find_continuation
from polydraft.decoding.row import Row
from polydraft.decoding.statistics import DecodingStatistics
from polydraft.decoding.trunk import Trunk
from polydraft.joint import JointDistribution

LOOKUP_NGRAM = 2
"""Tokens that must have stood in a text before, to copy what followed them."""


def run(
    engine: Engine,
    rows: Sequence[Row],
    prompts: Sequence[Tensor],
    trunk: Trunk,
    *,
    adapted: AdaptedTrunk | None = None,
) -> DecodingStatistics:
    """Generate until every row is finished.

    Args:
        prompts: per row (T,) what the model reads first: the prompt without padding and without the
            tokens that its cache already holds.
        adapted: where the head reads other states than the verifier's.
    """
    began = time.perf_counter()
    with trunk:
        loop = Loop(engine, rows, prompts, trunk, adapted=adapted)
        loop.raise_failure()
        while loop.active:
            loop.cycle()
            loop.raise_failure()
        trunk.end()
    loop.statistics.seconds = time.perf_counter() - began
    return loop.statistics


class Loop:
    """Rows at work: what the trunk holds of their texts, and what the head was told of them.

    Made inside the trunk, it reads the prompts and gives every row its first token.

    What a processor or criterion of one row raises, or that nothing can be drawn there, ends that row alone:
    it leaves, `failed`, and the others are what they would be without it. Any other error leaves the loop in
    the middle of a cycle, from where it must not go on.

    Args:
        as of `run`. follower: has been told of what the trunk holds already; None where that is nothing.

    Attributes:
        active: the rows that go on. statistics: of all rows so far.
    """

    def __init__(
        self,
        engine: Engine,
        rows: Sequence[Row],
        prompts: Sequence[Tensor],
        trunk: Trunk,
        *,
        adapted: AdaptedTrunk | None = None,
        follower: Follower | None = None,
    ) -> None:
        self.engine = engine
        self.trunk = trunk
        self.statistics = DecodingStatistics()
        self.active = list(rows)
        self._error: Exception | None = None
        self._follower = follower or Follower(engine.head, adapted, rows=len(rows))
        logits = trunk.prefill(prompts)
        for row, last in zip(self.active, logits, strict=True):
            with self._own(row):
                row.emit(engine.first(row, last), 0)
        self._follower.begin(self.active, prompts, trunk.hidden)
        self._leave()

    def cycle(self) -> list[Row]:
        """Draft, check, keep; returns the rows that have ended, which leave the work, as failed ones do."""
        started = time.perf_counter()
        drafts, joint = self._drafts()
        self.statistics.drafting_seconds += time.perf_counter() - started
        self._check(drafts, joint)
        return self._leave()

    def raise_failure(self) -> None:
        """Raise what has ended rows in the last cycle, if anything: the first error, others as its notes."""
        error, self._error = self._error, None
        try:
            if error is not None:
                raise error
        finally:
            del error  # no cycle through this frame: the states go with the last reference

    @contextmanager
    def _own(self, row: Row) -> Iterator[None]:
        """Errors in here are those of `row` alone; `raise_failure` raises them when the cycle is through."""
        try:
            yield
        except Exception as error:  # noqa: BLE001
            row.failed = True
            if self._error is None:
                self._error = error
            else:
                self._error.add_note(f"another text of the batch failed too: {error!r}")

    def join(self, other: Loop) -> None:
        """Take in the rows of another loop of the same engine, model and kind of trunk."""
        self.trunk.join(other.trunk)
        self._follower.join(other._follower)
        self.active += other.active

    def drop(self, row: Row) -> None:
        """Take one row out of the work, finished or not."""
        self._go_on([at for at, other in enumerate(self.active) if other is not row])

    def _leave(self) -> list[Row]:
        """Let the rows that have ended or failed leave, and return the former."""
        staying = [at for at, row in enumerate(self.active) if not (row.finished or row.failed)]
        ended = [row for row in self.active if row.finished and not row.failed]
        if len(staying) < len(self.active):
            self._go_on(staying)
        return ended

    def _go_on(self, rows: Sequence[int]) -> None:
        """Go on with the rows at these places; the last to leave keep what the trunk holds of them."""
        if rows and len(rows) < len(self.active):
            self.trunk.select(rows)
            self._follower.select(rows)
        self.active = [self.active[at] for at in rows]

    def _drafts(self) -> tuple[list[Draft], JointDistribution | None]:
        """What is drafted for each row, not more than it has room for, and the joint if it was asked for.

        A cycle emits one token more than it drafts.
        """
        engine, active = self.engine, self.active
        rooms = [_room(row) for row in active]
        most = 0 if engine.copying is None else engine.copying.drafts(len(active), sampled=self._sampled)
        found = [_copied(row, most, room) for row, room in zip(active, rooms, strict=True)]
        asking = [at for at, room in enumerate(rooms) if not found[at] and (room is None or room > 0)]
        count, depth = engine.policy.drafts(len(active), sampled=self._sampled), engine.head.config.horizon
        limits = [rooms[at] for at in asking]
        if None not in limits:
            depth = min(depth, max((limit for limit in limits if limit is not None), default=0))
        drafts = [draft or engine.no_drafts() for draft in found]
        if min(count, depth) <= 0:
            return drafts, None
        joint = self._follower.joint()
        own = joint if len(asking) == len(active) else joint.select(torch.tensor(asking, device=joint.device))
        for at, draft in zip(
            asking, engine.draft(own, [active[at] for at in asking], count, depth), strict=True
        ):
            drafts[at] = draft.first(rooms[at])
        return drafts, joint

    @property
    def _sampled(self) -> int:
        """How many rows are not told by the base model's argmaxes alone."""
        return sum(map(self.engine.looks_at, self.active))

    def _check(self, drafts: Sequence[Draft], joint: JointDistribution | None) -> None:
        """One forward, and what follows from it for every row."""
        engine, active, trunk = self.engine, self.active, self.trunk
        width = 1 + max(len(draft.tokens) for draft in drafts)
        ids = active[0].ids
        block = ids.new_zeros(len(active), width)
        for at, (row, draft) in enumerate(zip(active, drafts, strict=True)):
            block[at, : 1 + len(draft.tokens)] = ids.new_tensor([int(row.ids[0, -1]), *draft.tokens])
        logits = trunk.forward(block, parents=block_parents(drafts, width))
        simple = [not engine.looks_at(row) for row in active]
        best = logits.max(-1).indices.tolist() if any(simple) else []

        paths: list[list[int]] = [[] for _ in active]
        for at, (row, draft) in enumerate(zip(active, drafts, strict=True)):
            own = None
            if row.tracer is not None and joint is not None:
                own = joint.select(torch.tensor([at], device=joint.device))
            with self._own(row):
                paths[at] = self._grow(row, draft, logits[at], best[at] if simple[at] else None, own)
        self._observe(drafts, paths)
        hidden = trunk.hidden
        trunk.keep(paths)
        self._follower.grow(
            [block[at, path] for at, path in enumerate(paths)],
            [hidden[at, path] for at, path in enumerate(paths)],
            [row.ids[0, row.ids.shape[1] - len(path) :] for row, path in zip(active, paths, strict=True)],
        )

    def _grow(
        self,
        row: Row,
        draft: Draft,
        logits: Tensor,
        best: Sequence[int] | None,
        joint: JointDistribution | None,
    ) -> list[int]:
        """Emit what verification keeps of `draft` and the token after it; the columns that the row keeps.

        Args:
            logits, best: of this row, as of `Engine.verify`. joint: of this row, if it is to be traced.
        """
        depths, head = draft.depths, self.engine.head
        kept = self.engine.verify(
            row, draft, logits, best, lambda node: row.emit(draft.tokens[node], depths[node])
        )
        run = [draft.tokens[node] for node in kept.path]
        if kept.token is not None:
            row.emit(kept.token, 0)
            run.append(kept.token)
        if row.tracer is not None:
            row.tracer.step(draft, kept, logits, joint, head.draft_index(row.ids.new_tensor(run)))
        for statistics in (self.statistics, row.statistics):
            statistics.count(drafted=len(draft.tokens), accepted=len(kept.path), depth=max(depths, default=0))
        return [0, *(node + 1 for node in kept.path)][: len(run)]

    def _observe(self, drafts: Sequence[Draft], paths: Sequence[Sequence[int]]) -> None:
        """Tell the policies what became of their drafts; one that wants none is told of that too."""
        engine, batch = self.engine, {"rows": len(drafts), "sampled": self._sampled}
        pairs = [
            pair
            for pair, row in zip(zip(drafts, paths, strict=True), self.active, strict=True)
            if row.drafted and not row.failed
        ]
        for policy, copied in ((engine.policy, False), (engine.copying, True)):
            own = [(draft, path) for draft, path in pairs if draft.copied == copied]
            if policy is None:
                continue
            if own:
                drafted = max(len(draft.tokens) for draft, _ in own)
                accepted = [len(path) - 1 for _, path in own]
                policy.observe(**batch, drafted=drafted, accepted=accepted)
            elif copied and policy.drafts(**batch) == 0:
                policy.observe(**batch, drafted=0, accepted=[0])


def _room(row: Row) -> int | None:
    """How many drafts a row can take: one less than it may emit, none if it is decoded plainly."""
    if not row.drafted:
        return 0
    return None if row.room is None else row.room - 1


def _copied(row: Row, most: int, room: int | None) -> Draft | None:
    """Drafts copied from the text of `row`, if its end stands in it before."""
    count = most if room is None else min(most, room)
    if count <= 0:
        return None
    tokens = find_continuation(row.ids[0], n=count, ngram=LOOKUP_NGRAM).tolist()
    return Draft(tokens, copied=True).until(row.end_tokens) if tokens else None


def block_parents(drafts: Sequence[Draft], width: int) -> list[list[int]] | None:
    """Per row, of the pending token and its drafts, the index before each; None where all are chains.

    Columns that a row does not use hang on the pending token.
    """
    if all(draft.parents is None for draft in drafts):
        return None
    out = []
    for draft in drafts:
        parents = range(-1, len(draft.tokens) - 1) if draft.parents is None else draft.parents
        row = [-1, *(parent + 1 for parent in parents)]
        out.append(row + [0] * (width - len(row)))
    return out

"""The decoding loop: draft n tokens, check them with one forward of the base model, keep what it says.

One cycle is one forward over [pending token, drafts] of every row. Its column i predicts the token after
draft i; with a drafts accepted, column a gives the next token x, and hidden states 0..a, each with the
token now known to follow it, are what the head reads before the next draft:

    joint = read(h_0..h_a, [accepted drafts, x]);  drafts ~ joint;  p = model([x, drafts]);  verify

Rows of a batch accept different numbers of drafts, and a row that ends leaves the work.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor
from transformers import LogitsProcessorList

from polydraft.decoding.adapted import AdaptedTrunk
from polydraft.decoding.block import verify_block
from polydraft.decoding.drafts import Draft, Kept, grown, split
from polydraft.decoding.follow import Follower
from polydraft.decoding.lookup import find_continuation
from polydraft.decoding.policy import Fixed, Policy
from polydraft.decoding.processing import draft_warp, of_row, target_scores
from polydraft.decoding.requests import check_components
from polydraft.decoding.row import Row
from polydraft.decoding.statistics import DecodingStatistics
from polydraft.decoding.tree import choose_tree
from polydraft.decoding.tree_drawn import draw_tree
from polydraft.decoding.tree_verify import verify_tree
from polydraft.decoding.trunk import Trunk
from polydraft.decoding.verify import draw, verify_chosen, verify_sampled
from polydraft.heads import DraftHead
from polydraft.joint import JointDistribution, LatentMixture
from polydraft.modes import VERIFICATION, check_modes

SAMPLED = {"token": verify_sampled, "block": verify_block}
"""The verification of drafts that were drawn, by name; there is one of those that were chosen."""
LOOKUP_NGRAM = 2
"""Tokens that must have stood in a text before, to copy what followed them."""


class Engine:
    """A head, and the rules of one generation.

    Args:
        head: attached to the base model. processors: applied to p and q alike.
        do_sample: sample, else take argmaxes. generator: source of randomness, torch's own if None.
        verification: of sampled drafts, "token" (rejection sampling, one by one) or "block".
        drafting: "chain", "tree" (several continuations, checked together), or, greedy alone, "components"
            (a chain of the likeliest components' tokens, all positions chosen together).
        policy: how many tokens to draft in each cycle; the head's horizon if None.
        copying: where the last tokens of a text stood in it before, draft so many of those that followed
            there, and ask the head elsewhere; None asks the head always.
        keep_scores, keep_logits: leave with every row what its tokens were chosen from.

    Raises:
        InputError: an unknown choice, or one that sampling or this head cannot do.
    """

    def __init__(
        self,
        head: DraftHead,
        *,
        processors: LogitsProcessorList,
        do_sample: bool,
        generator: torch.Generator | None,
        verification: str = VERIFICATION,
        drafting: str = "chain",
        policy: Policy | None = None,
        copying: Policy | None = None,
        keep_scores: bool = False,
        keep_logits: bool = False,
    ) -> None:
        check_modes(verification=verification, drafting=drafting, do_sample=do_sample)
        if drafting == "components":
            check_components(head.config)
        self.head = head
        self.processors = processors
        self.do_sample = do_sample
        self.generator = generator
        self.verification = verification
        self.drafting = drafting
        self.policy = Fixed(head.config.horizon) if policy is None else policy
        self.copying = copying
        self.keep_scores = keep_scores
        self.keep_logits = keep_logits
        self._of_row: dict[int, LogitsProcessorList] = {}

    def scores(self, row: Row, drafted: Sequence[int], logits: Tensor) -> Tensor:
        """The processed row (V,) behind the text of `row` and `drafted`; raw `logits` (V,)."""
        prefix = row.ids
        if drafted and self.processors:
            prefix = torch.cat([prefix, prefix.new_tensor([list(drafted)])], dim=-1)
        return target_scores(self.of(row), prefix, logits)

    def of(self, row: Row) -> LogitsProcessorList:
        """The processors of one row."""
        if row.index not in self._of_row:
            self._of_row[row.index] = of_row(self.processors, row.index)
        return self._of_row[row.index]

    def first(self, row: Row, logits: Tensor) -> int:
        """The token after the prompt, from its last row (V,)."""
        scores = self.scores(row, [], logits)
        self._note(row, [(scores, logits)])
        return draw(scores.softmax(-1), self.generator) if self.do_sample else int(scores.argmax())

    def draft(self, joint: JointDistribution, rows: Sequence[Row], count: int, depth: int) -> list[Draft]:
        """At most `count` drafts for each of `rows`, from the head's joint `depth` tokens ahead."""
        config, ids = self.head.config, self.head.draft_ids
        warp = draft_warp([self.of(row) for row in rows], [row.ids for row in rows], ids, config.vocab_size)
        if self.drafting == "tree":
            if not self.do_sample:
                return grown(choose_tree(joint, nodes=count, depth=depth, warp=warp), ids)
            trees = draw_tree(joint, nodes=count, depth=depth, generator=self.generator, warp=warp)
            return grown(trees, ids)
        limit = min(count, depth)
        if self.do_sample:
            chain = joint.sample(generator=self.generator, warp=warp, length=limit)
        elif self.drafting == "components":
            chain = cast(LatentMixture, joint).best_components(warp=warp)
        else:
            chain = joint.argmax(warp=warp, length=limit)
        return [draft.first(limit) for draft in split(chain, ids)]

    def no_drafts(self) -> Draft:
        """Where there is room for one token only, or drafting does not pay."""
        return Draft([])

    def verify(self, row: Row, draft: Draft, logits: Tensor, best: Sequence[int] | None = None) -> Kept:
        """Check `draft` behind `row` against the base model's rows `logits` (m + 1, V).

        Args:
            best: their argmaxes, where nothing but them is needed.
        """
        seen: dict[int, Tensor] = {}

        def scores(column: int) -> Tensor:
            if column not in seen:
                seen[column] = self.scores(row, draft.before(column), logits[column])
            return seen[column]

        def choose(column: int) -> int:
            if best is not None:
                return best[column]
            found = scores(column)
            return draw(found.softmax(-1), self.generator) if self.do_sample else int(found.argmax())

        if draft.tree is not None:
            kept = Kept(
                *verify_tree(
                    lambda column: scores(column).softmax(-1),
                    draft.tokens,
                    draft.tree,
                    self.head.draft_ids,
                    generator=self.generator,
                )
            )
        elif draft.log_rows is None:
            kept = Kept(*verify_chosen(choose, draft.tokens, draft.parents))
        else:
            assert draft.draft_index is not None
            accepted, token = SAMPLED[self.verification](
                lambda s: scores(s).softmax(-1),
                draft.tokens,
                draft.draft_index,
                draft.log_rows,
                self.head.draft_ids,
                generator=self.generator,
            )
            kept = Kept(range(accepted), token)
        if self.keep_scores or self.keep_logits:
            columns = [0, *(node + 1 for node in kept.path)]
            self._note(row, [(scores(s), logits[s]) for s in columns])
        return kept

    def run(
        self,
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
        statistics = DecodingStatistics()
        follower = Follower(self.head, adapted, rows=len(rows))
        active = list(rows)
        with trunk:
            logits = trunk.prefill(prompts)
            for row, last in zip(active, logits, strict=True):
                row.emit([self.first(row, last)], [0])
            follower.begin(active, prompts, trunk.hidden)
            while active := self._leave(active, trunk, follower):
                started = time.perf_counter()
                drafts = self._drafts(active, follower)
                statistics.drafting_seconds += time.perf_counter() - started
                self._cycle(active, drafts, trunk, follower, statistics)
            trunk.end()
        statistics.seconds = time.perf_counter() - began
        return statistics

    def _leave(self, active: list[Row], trunk: Trunk, follower: Follower) -> list[Row]:
        """The rows that go on; the others leave the work, but the last keep what the trunk holds of them."""
        going = [at for at, row in enumerate(active) if not row.finished]
        if going and len(going) < len(active):
            trunk.select(going)
            follower.select(going)
        return [active[at] for at in going]

    def _drafts(self, active: list[Row], follower: Follower) -> list[Draft]:
        """What is drafted for each row; not more than it has room for, one token less than it may emit."""
        rooms = [None if row.room is None else row.room - 1 for row in active]
        most = 0 if self.copying is None else self.copying.drafts(len(active))
        found = [self._copied(row, most, room) for row, room in zip(active, rooms, strict=True)]
        if all(found):
            return cast(list[Draft], found)
        count, depth = self.policy.drafts(len(active)), self.head.config.horizon
        if None not in rooms:
            depth = min(depth, max(cast(list[int], rooms)))
        if min(count, depth) <= 0:
            return [draft or self.no_drafts() for draft in found]
        drafts = self.draft(follower.joint(), active, count, depth)
        return [known or draft.first(room) for known, draft, room in zip(found, drafts, rooms, strict=True)]

    def _copied(self, row: Row, most: int, room: int | None) -> Draft | None:
        """Drafts copied from the text of `row`, if its end stands in it before."""
        count = most if room is None else min(most, room)
        if count <= 0:
            return None
        tokens = find_continuation(row.ids[0], n=count, ngram=LOOKUP_NGRAM).tolist()
        return Draft(tokens, copied=True) if tokens else None

    def _cycle(
        self,
        active: list[Row],
        drafts: list[Draft],
        trunk: Trunk,
        follower: Follower,
        statistics: DecodingStatistics,
    ) -> None:
        """One forward, and what follows from it for every row."""
        width = 1 + max(len(draft.tokens) for draft in drafts)
        ids = active[0].ids
        block = ids.new_zeros(len(active), width)
        for at, (row, draft) in enumerate(zip(active, drafts, strict=True)):
            block[at, : 1 + len(draft.tokens)] = ids.new_tensor([int(row.ids[0, -1]), *draft.tokens])
        logits = trunk.forward(block, parents=block_parents(drafts, width))
        simple = not (self.do_sample or self.processors or self.keep_scores or self.keep_logits)
        best = logits.max(-1).indices.tolist() if simple else [None] * len(active)

        paths, after = [], []
        for at, (row, draft) in enumerate(zip(active, drafts, strict=True)):
            path, token = self.verify(row, draft, logits[at], best[at])
            depths = draft.depths
            run = [*(draft.tokens[node] for node in path), token]
            taken = row.emit(run, [*(depths[node] for node in path), 0])
            statistics.count(
                drafted=len(draft.tokens), accepted=min(len(path), taken), depth=max(depths, default=0)
            )
            paths.append([0, *(node + 1 for node in path)][:taken])
            after.append(ids.new_tensor(run[:taken]))
        self._observe(drafts, paths)
        hidden = trunk.hidden
        trunk.keep(paths)
        follower.grow(
            [block[at, path] for at, path in enumerate(paths)],
            [hidden[at, path] for at, path in enumerate(paths)],
            after,
        )

    def _observe(self, drafts: Sequence[Draft], paths: Sequence[Sequence[int]]) -> None:
        """Tell the policies what became of their drafts; one that wants none is told of that too."""
        for policy, copied in ((self.policy, False), (self.copying, True)):
            own = [(d, p) for d, p in zip(drafts, paths, strict=True) if d.copied == copied]
            if policy is None:
                continue
            if own:
                drafted = max(len(draft.tokens) for draft, _ in own)
                accepted = [len(path) - 1 for _, path in own]
                policy.observe(rows=len(drafts), drafted=drafted, accepted=accepted)
            elif copied and policy.drafts(len(drafts)) == 0:
                policy.observe(rows=len(drafts), drafted=0, accepted=[0])

    def _note(self, row: Row, found: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Leave with `row` what its next tokens come from; more than it takes is cut off in the end."""
        for scores, logits in found:
            if self.keep_scores:
                row.scores.append(scores)
            if self.keep_logits:
                row.logits.append(logits.to(copy=True, dtype=torch.float32))


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

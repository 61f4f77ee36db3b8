"""How the texts of a generation are drafted and verified, row by row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor
from transformers import LogitsProcessorList

from polydraft.decoding.block import verify_block
from polydraft.decoding.drafts import Draft, Kept, grown, split
from polydraft.decoding.policy import Fixed, Policy
from polydraft.decoding.processing import draft_warp, of_row, target_scores
from polydraft.decoding.requests import check_components
from polydraft.decoding.row import Row
from polydraft.decoding.tree import choose_tree
from polydraft.decoding.tree_drawn import draw_tree
from polydraft.decoding.tree_verify import verify_tree
from polydraft.decoding.verify import draw, verify_chosen, verify_sampled
from polydraft.heads import DraftHead
from polydraft.joint import JointDistribution, LatentMixture
from polydraft.modes import VERIFICATION, check_modes

SAMPLED = {"token": verify_sampled, "block": verify_block}
"""The verification of drafts that were drawn, by name; there is one of those that were chosen."""


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
        prefix, processors = row.ids, self.of(row)
        if drafted and processors:
            prefix = torch.cat([prefix, prefix.new_tensor([list(drafted)])], dim=-1)
        return target_scores(processors, prefix, logits)

    def of(self, row: Row) -> LogitsProcessorList:
        """The processors of one row."""
        if row.processors is not None:
            return row.processors
        if row.index not in self._of_row:
            self._of_row[row.index] = of_row(self.processors, row.index)
        return self._of_row[row.index]

    def first(self, row: Row, logits: Tensor) -> int:
        """The token after the prompt, from its last row (V,)."""
        scores = self.scores(row, [], logits)
        self._note(row, [(scores, logits)])
        token = draw(scores.softmax(-1), self.generator) if self.do_sample else int(scores.argmax())
        if row.tracer is not None:
            row.tracer.first(token, logits)
        return token

    def looks_at(self, row: Row) -> bool:
        """Whether more is needed of the rows behind it than where they are largest."""
        return self.do_sample or bool(self.of(row)) or self.keep_scores or self.keep_logits

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

    def _note(self, row: Row, found: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Leave with `row` what its next tokens come from; more than it takes is cut off in the end."""
        for scores, logits in found:
            if self.keep_scores:
                row.scores.append(scores)
            if self.keep_logits:
                row.logits.append(logits.to(copy=True, dtype=torch.float32))

"""How the texts of a generation are drafted and verified, row by row."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import LogitsProcessorList

from polydraft.decoding.block import verify_block
from polydraft.decoding.drafts import Draft, Kept, grown, split
from polydraft.decoding.noise import GumbelNoise
from polydraft.decoding.policy import Fixed, Policy
from polydraft.decoding.processing import Drafting, draft_warp, of_row, target_scores
from polydraft.decoding.row import Row
from polydraft.decoding.stateless import for_drafts
from polydraft.decoding.tree import choose_tree
from polydraft.decoding.tree_drawn import draw_tree
from polydraft.decoding.tree_verify import verify_tree
from polydraft.decoding.verify import (
    Settle,
    check_drawable,
    draw,
    never_ends,
    probabilities,
    verify_chosen,
    verify_sampled,
)
from polydraft.heads import DraftHead
from polydraft.joint import JointDistribution
from polydraft.modes import VERIFICATION, check_modes

SAMPLED = {"token": verify_sampled, "block": verify_block}
"""The verification of drafts that were drawn, by name; there is one of those that were chosen."""


class Engine:
    """A head, and the rules of one generation.

    Args:
        head: attached to the base model. processors: applied to p, and to q where `stateless` allows.
        do_sample: sample, else take argmaxes. generator: source of randomness, torch's own if None.
        verification: of sampled drafts, "token" (rejection sampling, one by one) or "block".
        drafting: "chain", or "tree" (several continuations, checked together).
        policy: how many tokens to draft in each cycle; the head's horizon if None.
        copying: prompt lookup: when the last tokens occurred earlier in the text, draft what followed them
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

    def scores(self, row: Row, text: Tensor, drafted: Sequence[int], logits: Tensor) -> Tensor:
        """The processed row (V,) of `row` after `text` (1, L) and `drafted`; raw `logits` (V,)."""
        processors = self.of(row)
        if drafted and processors:
            text = torch.cat([text, text.new_tensor([list(drafted)])], dim=-1)
        return target_scores(processors, text, logits)

    def of(self, row: Row) -> LogitsProcessorList:
        """The processors of one row."""
        if row.processors is None:
            row.processors = of_row(self.processors, row.index, prompt_length=row.prompt_length)
        return row.processors

    def first(self, row: Row, logits: Tensor) -> int:
        """The token after the prompt, from its last row (V,)."""
        scores = self.scores(row, row.ids, [], logits)
        self._note(row, scores, logits)
        token = self._choose(row, scores)
        if row.tracer is not None:
            row.tracer.first(token, logits)
        return token

    def _choose(self, row: Row, scores: Tensor) -> int:
        """The next token of `row` by its processed row (V,), as plain decoding has it."""
        if self.do_sample:
            return draw(probabilities(scores), self.generator)
        processors = self.of(row)
        if processors and isinstance(processors[-1], GumbelNoise):
            check_drawable(scores)  # the likeliest under noise is a draw
        return int(scores.argmax())

    def looks_at(self, row: Row) -> bool:
        """Whether more is needed of the rows than where they are largest."""
        return self.do_sample or bool(self.of(row)) or self.keep_scores or self.keep_logits

    def draft(self, joint: JointDistribution, rows: Sequence[Row], count: int, depth: int) -> list[Draft]:
        """At most `count` drafts for each of `rows`, from the head's joint `depth` tokens ahead."""
        config, ids = self.head.config, self.head.draft_ids
        warp = draft_warp([self._drafting(row) for row in rows], ids, config.vocab_size)
        if self.drafting == "tree":
            if not self.do_sample:
                return grown(choose_tree(joint, nodes=count, depth=depth, warp=warp), ids)
            trees = draw_tree(joint, nodes=count, depth=depth, generator=self.generator, warp=warp)
            return grown(trees, ids)
        limit = min(count, depth)
        if self.do_sample:
            chain = joint.sample(generator=self.generator, warp=warp, length=limit)
        else:
            chain = joint.argmax(warp=warp, length=limit)
        drafts = [draft.first(limit) for draft in split(chain, ids)]
        return [draft.until(row.end_tokens) for row, draft in zip(rows, drafts, strict=True)]

    def _drafting(self, row: Row) -> Drafting:
        """What shapes the drafts of one row."""
        if row.drafting is None:
            row.drafting = for_drafts(self.of(row))
        return Drafting(row.drafting, row.ids, row.end_tokens)

    def no_drafts(self) -> Draft:
        """Where there is room for one token only, or drafting does not pay."""
        return Draft([])

    def verify(
        self,
        row: Row,
        draft: Draft,
        logits: Tensor,
        best: Sequence[int] | None = None,
        settle: Settle = never_ends,
    ) -> Kept:
        """Check `draft` after `row` against the base model's rows `logits` (m + 1, V).

        Processors are asked for the rows of the text as plain decoding asks them: once each, in their order,
        and not after the text ends. Block verification alone asks ahead, so `check_processors` keeps those
        that may mind from it.

        Args:
            best: their argmaxes, where nothing but them is needed.
            settle: called for each draft that is kept, as soon as that is certain; True ends the text.
        """
        text = row.ids  # which grows meanwhile, as drafts are kept
        seen: dict[int, Tensor] = {}

        def scores(column: int) -> Tensor:
            if column not in seen:
                seen[column] = self.scores(row, text, draft.before(column), logits[column])
            return seen[column]

        def choose(column: int) -> int:
            return self._choose(row, scores(column)) if best is None else best[column]

        def target(column: int) -> Tensor:
            return probabilities(scores(column))

        def note(column: int) -> None:
            if self.keep_scores or self.keep_logits:
                self._note(row, scores(column), logits[column])

        def settled(node: int) -> bool:
            note(draft.before_it(node) + 1)
            return settle(node)

        tokens, ids = draft.tokens, self.head.draft_ids
        if draft.tree is not None:
            found = verify_tree(target, tokens, draft.tree, ids, generator=self.generator, settle=settled)
            kept = Kept(*found)
        elif draft.log_rows is None:
            kept = Kept(*verify_chosen(choose, tokens, draft.parents, settle=settled))
        else:
            assert draft.draft_index is not None
            accepted, token = SAMPLED[self.verification](
                target,
                tokens,
                draft.draft_index,
                draft.log_rows,
                ids,
                generator=self.generator,
                settle=settled,
            )
            kept = Kept(range(accepted), token)
        if kept.token is not None:
            note(kept.path[-1] + 1 if kept.path else 0)
        return kept

    def _note(self, row: Row, scores: Tensor, logits: Tensor) -> None:
        """Leave with `row` what its next token comes from, where asked for."""
        if self.keep_scores:
            row.scores.append(scores)
        if self.keep_logits:
            row.logits.append(logits.to(copy=True, dtype=torch.float32))

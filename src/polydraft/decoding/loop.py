"""The decoding loop: draft n tokens, check them with one forward of the base model, keep what it says.

One cycle is one forward over [pending token, drafts]. Its row i predicts the token after draft i; with
a drafts accepted, row a gives the next token x, and hidden states 0..a, each with the token now known to
follow it, are what the head reads before the next draft:

    joint = read(h_0..h_a, [accepted drafts, x]);  drafts ~ joint;  p = model([x, drafts]);  verify
"""

from __future__ import annotations

import time
from typing import Any, Protocol, cast

import torch
from torch import Tensor
from transformers import DynamicCache, LogitsProcessorList, PreTrainedModel, StoppingCriteriaList
from transformers.cache_utils import DynamicSlidingWindowLayer

from polydraft.decoding.adapted import AdaptedTrunk
from polydraft.decoding.block import verify_block
from polydraft.decoding.processing import draft_warp, target_scores
from polydraft.decoding.requests import check_components
from polydraft.decoding.statistics import DecodingStatistics, DraftedOutput
from polydraft.decoding.verify import Verified, draw, verify_greedy, verify_sampled
from polydraft.heads import DraftHead
from polydraft.hidden import HiddenTap
from polydraft.joint import Chain, JointDistribution, LatentMixture
from polydraft.modes import DRAFTING, VERIFICATION, check_modes

SAMPLED = {"token": verify_sampled, "block": verify_block}
"""The verification of sampled drafts by name; greedy drafts have but one."""


def record_past(cache: DynamicCache, *, on: bool) -> None:
    """Let sliding-window layers keep what a crop may need, or hand them back as plain decoding has them.

    While they record, every forward is followed by a crop; a crop of nothing cuts them back to the window.
    """
    if on:
        cache.activate_past_recording()
        cache.crop(0)
        return
    for layer in cache.layers:
        if isinstance(layer, DynamicSlidingWindowLayer):
            layer.record_past = False


class Streamer(Protocol):
    """What transformers' streamers do."""

    def put(self, value: Tensor) -> None:
        """Take tokens."""

    def end(self) -> None:
        """Flush."""


class Sequence:
    """The growing text of one generation: emits tokens one by one and knows when to stop.

    Attributes:
        ids: (1, L) prompt and tokens so far. origins: s >= 1 for drafts at position s, else 0.
    """

    def __init__(self, input_ids: Tensor, criteria: StoppingCriteriaList, streamer: Streamer | None) -> None:
        self.ids = input_ids
        self.origins: list[int] = []
        self.finished = False
        self._criteria = criteria
        self._streamer = streamer

    @property
    def room(self) -> int | None:
        """Tokens left up to the length limit; None without one."""
        limit = self._criteria.max_length
        return None if limit is None else max(limit - self.ids.shape[1], 0)

    def emit(self, tokens: list[int], origins: list[int]) -> int:
        """Append `tokens` until a stopping criterion holds; returns how many were taken."""
        for count, (token, origin) in enumerate(zip(tokens, origins, strict=True), start=1):
            new = self.ids.new_tensor([token])
            self.ids = torch.cat([self.ids, new[None]], dim=-1)
            self.origins.append(origin)
            if self._streamer is not None:
                self._streamer.put(new.cpu())
            if bool(self._criteria(self.ids, None).all()):
                self.finished = True
                return count
        return len(tokens)


class Engine:
    """A base model, its head and the rules of one generation.

    Args:
        model, head: the head attached to the model. processors: applied to p and q alike.
        do_sample: sample, else take argmaxes. generator: source of randomness, torch's own if None.
        verification: of sampled drafts, "token" (rejection sampling, one by one) or "block".
        drafting: of greedy drafts, "chain" (each the likeliest after those before it) or "components"
            (those of the likeliest components, all positions chosen together).

    Raises:
        InputError: an unknown choice, or one that sampling or this head cannot do.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        head: DraftHead,
        *,
        processors: LogitsProcessorList,
        do_sample: bool,
        generator: torch.Generator | None,
        verification: str = VERIFICATION,
        drafting: str = DRAFTING,
    ) -> None:
        check_modes(verification=verification, drafting=drafting, do_sample=do_sample)
        if drafting == "components":
            check_components(head.config)
        self.model = model
        self.head = head
        self.processors = processors
        self.do_sample = do_sample
        self.generator = generator
        self.verification = verification
        self.drafting = drafting

    def first(self, prefix: Tensor, logits: Tensor) -> int:
        """The token after the prompt, from its last row (V,)."""
        scores = target_scores(self.processors, prefix, logits)
        return draw(scores.softmax(-1), self.generator) if self.do_sample else int(scores.argmax())

    def draft(self, joint: JointDistribution, prefix: Tensor, limit: int) -> Chain:
        """At most `limit` drafts after `prefix` (1, L), from the head's joint there."""
        config = self.head.config
        warp = draft_warp(self.processors, prefix, self.head.draft_ids, config.vocab_size)
        if not self.do_sample:
            if self.drafting == "components":
                chain = cast(LatentMixture, joint).best_components(warp=warp)
            else:
                chain = joint.argmax(warp=warp)
            return Chain(chain.tokens[:, :limit], None)
        tokens, rows = joint.sample(generator=self.generator, warp=warp)
        assert rows is not None
        return Chain(tokens[:, :limit], rows[:, :limit])

    def no_drafts(self, hidden: Tensor) -> Chain:
        """Where there is room for one token only."""
        rows = hidden.new_empty(1, 0, self.head.config.draft_vocab_size) if self.do_sample else None
        return Chain(self.head.draft_ids.new_empty(1, 0), rows)

    def verify(self, prefix: Tensor, drafts: Tensor, chain: Chain, logits: Tensor) -> Verified:
        """Check `drafts` (1, m) base ids after `prefix` against the base model's rows `logits` (m + 1, V)."""

        def scores(s: int) -> Tensor:
            return target_scores(self.processors, torch.cat([prefix, drafts[:, :s]], dim=-1), logits[s])

        tokens: list[int] = drafts[0].tolist()
        if chain.log_rows is None:
            return verify_greedy(scores, tokens)
        return SAMPLED[self.verification](
            lambda s: scores(s).softmax(-1),
            tokens,
            chain.tokens[0],
            chain.log_rows[0],
            self.head.draft_ids,
            generator=self.generator,
        )

    def run(self, sequence: Sequence, prompt: Tensor, cache: DynamicCache) -> DraftedOutput:
        """Generate until `sequence` is finished.

        Args:
            prompt: (1, T) what the model reads first: the prompt without padding and without the
                tokens that `cache` already holds.
        """
        began = time.perf_counter()
        statistics = DecodingStatistics()
        model = cast(Any, self.model)
        keep = {"logits_to_keep": 1} if model._supports_logits_to_keep() else {}
        config, read = self.head.config, self.head.reader()
        switch = self.head.switch
        adapted = None if switch is None else AdaptedTrunk(self.model, self.head, switch)
        with HiddenTap(self.model, **config.taps) as tap:
            if adapted is not None:
                fresh = sequence.ids[:, -cache.get_seq_length() - prompt.shape[1] :]
            out = model(input_ids=prompt, past_key_values=cache, use_cache=True, **keep)
            record_past(cache, on=True)
            sequence.emit([self.first(sequence.ids, out.logits[0, -1])], [0])
            hidden = tap.hidden  # of the positions not read yet, as are the tokens `fresh`
            while not sequence.finished:
                started = time.perf_counter()
                room = sequence.room
                limit = config.horizon if room is None else min(config.horizon, room - 1)
                if adapted is not None:
                    hidden = adapted(fresh)
                if limit > 0:
                    joint = read(hidden, sequence.ids[:, -hidden.shape[1] :])
                    chain = self.draft(joint, sequence.ids, limit)
                else:
                    chain = self.no_drafts(hidden)
                drafts = self.head.draft_ids[chain.tokens]
                statistics.drafting_seconds += time.perf_counter() - started

                block = torch.cat([sequence.ids[:, -1:], drafts], dim=-1)
                logits = model(input_ids=block, past_key_values=cache, use_cache=True).logits[0]
                accepted, token = self.verify(sequence.ids, drafts, chain, logits)

                run = [*drafts[0, :accepted].tolist(), token]
                taken = sequence.emit(run, [*range(1, accepted + 1), 0])
                statistics.count(drafted=drafts.shape[1], accepted=min(accepted, taken))
                fresh = block[:, : accepted + 1]
                cache.crop(taken - block.shape[1])  # 0 as well: sliding windows are cut back here
                hidden = tap.hidden[:, : accepted + 1]
        record_past(cache, on=False)
        statistics.seconds = time.perf_counter() - began
        origins = torch.tensor([sequence.origins], device=sequence.ids.device)
        return DraftedOutput(
            sequences=sequence.ids, origins=origins, statistics=statistics, past_key_values=cache
        )

"""A drafted decoding method for `model.generate(custom_generate=...)`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedModel, StoppingCriteriaList

from polydraft.compat import CACHE
from polydraft.decoding.adapted import AdaptedTrunk
from polydraft.decoding.compiled import warm_up
from polydraft.decoding.engine import Engine
from polydraft.decoding.loop import run
from polydraft.decoding.noise import GumbelNoise, check_seed, choices_of
from polydraft.decoding.output import DraftedOutput, together
from polydraft.decoding.plan import Plan
from polydraft.decoding.processing import of_row
from polydraft.decoding.refusals import refuse_batch, refuse_ids, refuse_length, refuse_model
from polydraft.decoding.requests import (
    check_cache,
    check_generator,
    check_own_positions,
    check_processors,
    check_request,
    unpadded,
    unread,
)
from polydraft.decoding.row import CommonEnd, Row, Streamer
from polydraft.decoding.statistics import DecodingStatistics
from polydraft.errors import InputError
from polydraft.heads import DraftHead


class Decoder:
    """A drafted decoding method, callable by `model.generate(**inputs, custom_generate=decoder)`.

    `generate` does not hand its `streamer` and `tokenizer` to such callables: give the streamer to
    `decoder(head, streamer=...)`, and stop strings as `stopping_criteria=[StopStringCriteria(...)]`;
    or use `polydraft.generate`, which takes both.

    Args:
        plan: how to draft. streamer, generator, seed: as of `polydraft.decoder`.

    Attributes:
        statistics: of the last call; None before the first.
    """

    def __init__(
        self,
        head: DraftHead,
        plan: Plan,
        *,
        streamer: Streamer | None = None,
        generator: torch.Generator | None = None,
        seed: int | None = None,
    ) -> None:
        if seed is not None and generator is not None:
            raise InputError("a seed takes the place of a generator: give one of them")
        if seed is not None:
            check_seed(seed, verification=plan.verification)
        self.seed = seed
        self.head = head
        self.streamer = streamer
        self.generator = generator
        self.plan = plan
        self.statistics: DecodingStatistics | None = None

    def __call__(
        self,
        model: PreTrainedModel,
        input_ids: Tensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        **model_kwargs: Any,
    ) -> DraftedOutput | Tensor:
        """Generate; arguments arrive prepared from `model.generate`.

        Returns:
            (B, L) token ids, or a `DraftedOutput` with `return_dict_in_generate=True`.

        Raises:
            InputError: the head belongs to another model, or an option cannot be drafted.
        """
        refuse_model(model)
        check_request(generation_config, input_ids, model_kwargs)
        check_generator(self.generator, model.device)
        rows = input_ids.shape[0]
        check_processors(logits_processor, rows=rows, verification=self.plan.verification)
        if self.streamer is not None and rows > 1:
            raise InputError("a streamer follows one text: leave it out of a batch")
        cache = check_cache(model_kwargs.get(CACHE), rows=rows)
        if not self.head.is_attached_to(model):
            self.head.attach(model)
        input_ids = input_ids.to(model.device)
        mask = model_kwargs.get("attention_mask")
        texts = unpadded(input_ids, mask)
        refuse_ids(model, texts)
        check_own_positions(model_kwargs, input_ids, mask, seen=cache.get_seq_length())
        longest = None
        if stopping_criteria.max_length is not None:
            sizes = [len(text) for text in texts]
            longest = stopping_criteria.max_length - input_ids.shape[1] + max(sizes)
            refuse_length(model, shortest=min(sizes), longest=longest)
        prompts = unread(texts, seen=cache.get_seq_length(), width=input_ids.shape[1])
        do_sample, whole = bool(generation_config.do_sample), bool(generation_config.return_dict_in_generate)
        noises = None
        if self.seed is not None and do_sample:
            if generation_config.output_scores:
                raise InputError("output_scores of a seeded text would hold its noise: ask for output_logits")
            noises, do_sample = _noises(self.seed, texts, width=input_ids.shape[1]), False
        drafting = self.plan.drafts(model, do_sample=do_sample)
        if rows > 1 or drafting == "tree":
            refuse_batch(model)
        policy, copying = self.plan.policies(model, self.head, drafting, rows=rows)
        engine = Engine(
            self.head,
            processors=logits_processor,
            do_sample=do_sample,
            generator=self.generator,
            verification=self.plan.verification,
            drafting=drafting,
            policy=policy,
            copying=copying,
            keep_scores=whole and bool(generation_config.output_scores),
            keep_logits=whole and bool(generation_config.output_logits),
        )
        trunk = self.plan.opener(model, self.head, rows=rows)(
            taps=self.head.config.taps,
            rows=rows,
            cache=cache if rows == 1 else None,
            chunk=generation_config.prefill_chunk_size,
            longest=longest,
        )
        switch = self.head.switch
        adapted = None
        if switch is not None:
            adapted = AdaptedTrunk(model, self.head, switch, texts, longest=longest)
        if self.streamer is not None:
            self.streamer.put(input_ids.cpu())
        own: list[LogitsProcessorList | None] = [None] * rows
        if noises is not None:
            own = [
                LogitsProcessorList(
                    [*of_row(logits_processor, at, prompt_length=input_ids.shape[1]), noises[at]]
                )
                for at in range(rows)
            ]
        ends = any(hasattr(criterion, "eos_token_id") for criterion in stopping_criteria)
        common_end = None if ends or rows == 1 else CommonEnd(rows)
        texts_of = [
            Row(
                ids[None],
                stopping_criteria,
                self.streamer,
                index=at,
                processors=own[at],
                common_end=common_end,
                scored=engine.keep_scores,
            )
            for at, ids in enumerate(input_ids)
        ]
        statistics = self.statistics = run(engine, texts_of, prompts, trunk, adapted=adapted)
        if self.streamer is not None:
            self.streamer.end()
        for row in texts_of:
            row.cut()
        out = together(texts_of, statistics, padding=_padding(generation_config))
        if rows == 1:
            out.cache = cache
        if whole:
            return out
        assert out.sequences is not None
        return out.sequences

    def prepare(
        self,
        model: PreTrainedModel,
        *,
        rows: int = 1,
        do_sample: bool = False,
        on_progress: Callable[[str], None] | None = None,
    ) -> None:
        """Do now what the first call would do: compile, and measure what drafts cost on this machine.

        Args:
            model: the head is attached to it. on_progress: called with a line for each stage.
        """
        if self.plan.compiled:
            warm_up(model, self.head, rows=rows, on_progress=on_progress)
        if on_progress is not None:
            on_progress("measuring what drafts cost here, once")
        drafting = self.plan.drafts(model, do_sample=do_sample)
        self.plan.policies(model, self.head, drafting, rows=rows)


def _noises(seed: int, texts: Sequence[Tensor], *, width: int) -> list[GumbelNoise]:
    """Return the noise of each of `texts` (T_b,), which are padded on the left to `width` tokens."""
    prompts = [text.tolist() for text in texts]
    return [
        GumbelNoise(seed, prompt=prompt, choice=choice, padding=width - len(prompt))
        for prompt, choice in zip(prompts, choices_of(prompts), strict=True)
    ]


def _padding(config: GenerationConfig) -> int:
    """What fills the rows that ended early."""
    token = config.pad_token_id
    if token is None:
        token = config.eos_token_id
    return int(token[0] if isinstance(token, list) else token or 0)

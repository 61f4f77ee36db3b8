"""The two doors: `decoder(head)` for `model.generate(custom_generate=...)`, and our own `generate`."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteriaList,
    StopStringCriteria,
)

from polydraft.decoding.acceptance import LIKELY_COPY, ChainExpectation, TreeExpectation
from polydraft.decoding.adapted import AdaptedTrunk
from polydraft.decoding.compiled import warm_up
from polydraft.decoding.costs import Costs
from polydraft.decoding.loop import Engine
from polydraft.decoding.measuring import MOST_NODES, machine_costs
from polydraft.decoding.policy import Fixed, Measured, Policy
from polydraft.decoding.refusals import refuse_batch, refuse_length, refuse_model, takes_trees
from polydraft.decoding.requests import check_cache, check_processors, check_request, unpadded, unread
from polydraft.decoding.row import Row, Streamer
from polydraft.decoding.statistics import DecodingStatistics, DraftedOutput, together
from polydraft.decoding.trunk import EagerTrunk, Trunk
from polydraft.errors import InputError
from polydraft.heads import DraftHead
from polydraft.modes import DRAFTING, VERIFICATION, asked_length, check_modes


class Decoder:
    """A drafted decoding method, callable by `model.generate(**inputs, custom_generate=decoder)`.

    `generate` does not hand its `streamer` and `tokenizer` to such callables: give the streamer to
    `decoder(head, streamer=...)`, and stop strings as `stopping_criteria=[StopStringCriteria(...)]`;
    or use `polydraft.generate`, which takes both.

    Attributes:
        statistics: of the last call; None before the first.
    """

    def __init__(
        self,
        head: DraftHead,
        *,
        streamer: Streamer | None = None,
        generator: torch.Generator | None = None,
        verification: str = VERIFICATION,
        drafting: str = DRAFTING,
        draft_length: int | None = None,
        prompt_lookup_num_tokens: int | None = None,
        compiled: bool = False,
    ) -> None:
        check_modes(
            verification=verification,
            drafting=drafting,
            draft_length=draft_length,
            prompt_lookup_num_tokens=prompt_lookup_num_tokens,
        )
        self.head = head
        self.streamer = streamer
        self.generator = generator
        self.verification = verification
        self.drafting = drafting
        self.draft_length = draft_length
        self.prompt_lookup_num_tokens = prompt_lookup_num_tokens
        self.compiled = compiled
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
        check_processors(logits_processor)
        rows = input_ids.shape[0]
        if self.streamer is not None and rows > 1:
            raise InputError("a streamer follows one text: leave it out of a batch")
        cache = check_cache(model_kwargs.get("past_key_values"), rows=rows)
        if not self.head.is_attached_to(model):
            self.head.attach(model)
        input_ids = input_ids.to(model.device)
        texts = unpadded(input_ids, model_kwargs.get("attention_mask"))
        longest = None
        if stopping_criteria.max_length is not None:
            sizes = [len(text) for text in texts]
            longest = stopping_criteria.max_length - input_ids.shape[1] + max(sizes)
            refuse_length(model, shortest=min(sizes), longest=longest)
        prompts = unread(texts, seen=cache.get_seq_length(), width=input_ids.shape[1])
        drafting = self._drafting(model, do_sample=bool(generation_config.do_sample))
        if rows > 1 or drafting == "tree":
            refuse_batch(model)
        engine = Engine(
            self.head,
            processors=logits_processor,
            do_sample=bool(generation_config.do_sample),
            generator=self.generator,
            verification=self.verification,
            drafting=drafting,
            policy=self._policy(model, drafting, rows=rows),
            copying=self._copying(model, drafting, rows=rows),
            keep_scores=bool(generation_config.output_scores),
            keep_logits=bool(generation_config.output_logits),
        )
        trunk = self._open(model, rows=rows)(
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
        texts_of = [
            Row(ids[None], stopping_criteria, self.streamer, index=at) for at, ids in enumerate(input_ids)
        ]
        self.statistics = engine.run(texts_of, prompts, trunk, adapted=adapted)
        if self.streamer is not None:
            self.streamer.end()
        out = together(texts_of, self.statistics, padding=_padding(generation_config))
        if rows == 1:
            out.past_key_values = cache
        if generation_config.return_dict_in_generate:
            return out
        assert out.sequences is not None
        return out.sequences

    def _drafting(self, model: PreTrainedModel, *, do_sample: bool) -> str:
        if self.drafting != "auto":
            return self.drafting
        chains = do_sample and self.verification == "block"
        return "tree" if takes_trees(model) and not chains else "chain"

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
        if self.compiled:
            warm_up(model, self.head, rows=rows, on_progress=on_progress)
        if on_progress is not None:
            on_progress("measuring what drafts cost here, once")
        self._policy(model, self._drafting(model, do_sample=do_sample), rows=rows)

    def _open(self, model: PreTrainedModel, *, rows: int) -> Callable[..., Trunk]:
        """What makes a trunk, for up to so many rows."""
        if not self.compiled:
            return partial(EagerTrunk, model)
        if self.head.switch is not None:
            raise InputError("verifier 'base' switches an adapter on and off and cannot be compiled")
        return warm_up(model, self.head, rows=rows).trunk

    def _costs(self, model: PreTrainedModel, drafting: str, *, rows: int) -> Costs:
        return machine_costs(
            model,
            self.head,
            rows=rows,
            tree=drafting == "tree",
            path="compiled" if self.compiled else "eager",
            open_trunk=lambda count: self._open(model, rows=rows)(taps=self.head.config.taps, rows=count),
        )

    def _copying(self, model: PreTrainedModel, drafting: str, *, rows: int) -> Policy | None:
        most = self.prompt_lookup_num_tokens
        if most is None:
            return None
        if asked_length(self.draft_length) is not None:
            return Fixed(most)
        costs = self._costs(model, drafting, rows=rows)
        return Measured(costs.copying(), ChainExpectation(most, likely=LIKELY_COPY))

    def _policy(self, model: PreTrainedModel, drafting: str, *, rows: int) -> Policy:
        length = asked_length(self.draft_length)
        if length is not None:
            return Fixed(length)
        costs = self._costs(model, drafting, rows=rows)
        if drafting == "tree":
            return Measured(costs, TreeExpectation(MOST_NODES))
        return Measured(costs, ChainExpectation(self.head.config.horizon))


def _padding(config: GenerationConfig) -> int:
    """What fills the rows that ended early."""
    token = config.pad_token_id
    if token is None:
        token = config.eos_token_id
    return int(token[0] if isinstance(token, list) else token or 0)


def decoder(
    head: DraftHead,
    *,
    streamer: Streamer | None = None,
    generator: torch.Generator | None = None,
    verification: str = VERIFICATION,
    drafting: str = DRAFTING,
    draft_length: int | None = None,
    prompt_lookup_num_tokens: int | None = None,
    compiled: bool = False,
) -> Decoder:
    """A `custom_generate` for `model.generate`.

    Args:
        head: attached to the model, or attachable (it is then attached at the first call).
        streamer: receives the prompt, then every token. generator: randomness; torch's own if None.
        verification: of sampled drafts, "token", or "block" of chains. drafting: "chain", "tree" or
            "components", see `Engine`, or "auto", trees where the model takes them. The text is the base
            model's own, whichever is chosen.
        draft_length: tokens drafted in a cycle, of a chain at most the head's horizon; None for as many
            as pay on this machine, which is measured once (a second or two) and remembered; 0 for none.
        prompt_lookup_num_tokens: where the text repeats itself, draft up to so many tokens by copying.
        compiled: run the base model's layers compiled, after a warm-up at the first call; see `warm_up`.

    Raises:
        InputError: an unknown choice.
    """
    return Decoder(
        head,
        streamer=streamer,
        generator=generator,
        verification=verification,
        drafting=drafting,
        draft_length=draft_length,
        prompt_lookup_num_tokens=prompt_lookup_num_tokens,
        compiled=compiled,
    )


def generate(
    model: PreTrainedModel,
    head: DraftHead,
    input_ids: Tensor,
    *,
    attention_mask: Tensor | None = None,
    generation_config: GenerationConfig | None = None,
    streamer: Streamer | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    stopping_criteria: StoppingCriteriaList | None = None,
    generator: torch.Generator | None = None,
    verification: str = VERIFICATION,
    drafting: str = DRAFTING,
    draft_length: int | None = None,
    prompt_lookup_num_tokens: int | None = None,
    compiled: bool = False,
    **options: Any,
) -> DraftedOutput:
    """Drafted `model.generate`: the same text (greedy), the same distribution (sampling), sooner.

    Args:
        model: a decoder-only causal model. head: trained for it.
        input_ids: (B, T) int64. attention_mask: (B, T), left padding only.
        generation_config, stopping_criteria, options: as in `model.generate`.
        streamer: of one text; receives the prompt, then every token. tokenizer: needed for `stop_strings`.
        generator: randomness; torch's global one if None.
        verification, drafting, draft_length, prompt_lookup_num_tokens, compiled: as in `decoder`.

    Raises:
        InputError: the head belongs to another model, or an option cannot be drafted.
    """
    method = decoder(
        head,
        streamer=streamer,
        generator=generator,
        verification=verification,
        drafting=drafting,
        draft_length=draft_length,
        prompt_lookup_num_tokens=prompt_lookup_num_tokens,
        compiled=compiled,
    )
    config = copy.deepcopy(generation_config if generation_config is not None else model.generation_config)
    options.pop("custom_generate", None)
    rest = config.update(**options | {"return_dict_in_generate": True})
    criteria = StoppingCriteriaList(stopping_criteria or [])
    if config.stop_strings:
        if tokenizer is None:
            raise InputError("stop_strings needs the tokenizer: pass tokenizer=...")
        criteria.append(StopStringCriteria(tokenizer, config.stop_strings))
        config.stop_strings = None
    out = cast(Any, model).generate(
        input_ids,
        attention_mask=attention_mask,
        generation_config=config,
        stopping_criteria=criteria,
        custom_generate=method,
        **rest,
    )
    assert isinstance(out, DraftedOutput)
    return out

"""The two doors: `decoder(head)` for `model.generate(custom_generate=...)`, and our own `generate`."""

from __future__ import annotations

import copy
from typing import Any, cast

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteriaList,
    StopStringCriteria,
)

from polydraft.decoding.method import Decoder
from polydraft.decoding.output import DraftedOutput
from polydraft.decoding.plan import Plan
from polydraft.decoding.row import Streamer
from polydraft.errors import InputError
from polydraft.heads import DraftHead
from polydraft.modes import DRAFTING, VERIFICATION


def decoder(
    head: DraftHead,
    *,
    streamer: Streamer | None = None,
    generator: torch.Generator | None = None,
    seed: int | None = None,
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
        seed: of a sampled text, in place of a generator: the text then follows from prompt, options and seed
            alone, whatever is drafted and whoever shares the batch; see `GumbelNoise`. Texts of one prompt
            (`num_return_sequences`) are independent of each other; another call gives the same ones again.
        verification: of sampled drafts, "token", or "block" of chains. drafting: "chain", "tree", or
            "auto", trees where the model takes them. The text is the base model's own, whichever is chosen.
        draft_length: tokens drafted in a cycle, of a chain at most the head's horizon; None for as many
            as pay on this machine, which is measured once (a second or two) and remembered; 0 for none.
        prompt_lookup_num_tokens: where the text repeats itself, copy up to this many tokens as drafts.
        compiled: run the base model's layers compiled, after a warm-up at the first call; see `warm_up`.

    Raises:
        InputError: an unknown choice.
    """
    plan = Plan(
        verification=verification,
        drafting=drafting,
        draft_length=draft_length,
        prompt_lookup_num_tokens=prompt_lookup_num_tokens,
        compiled=compiled,
    )
    return Decoder(head, plan, streamer=streamer, generator=generator, seed=seed)


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
    seed: int | None = None,
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
        generator: randomness; torch's global one if None. seed: in its place, as in `decoder`.
        verification, drafting, draft_length, prompt_lookup_num_tokens, compiled: as in `decoder`.

    Raises:
        InputError: the head belongs to another model, or an option cannot be drafted.
    """
    method = decoder(
        head,
        streamer=streamer,
        generator=generator,
        seed=seed,
        verification=verification,
        drafting=drafting,
        draft_length=draft_length,
        prompt_lookup_num_tokens=prompt_lookup_num_tokens,
        compiled=compiled,
    )
    config = copy.deepcopy(generation_config if generation_config is not None else model.generation_config)
    options.pop("custom_generate", None)
    if generation_config is None:  # taken from the configuration of the model, not asked for
        config.update(output_attentions=False, output_hidden_states=False)
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
    if not isinstance(out, DraftedOutput):
        raise InputError(
            f"the generate of {type(model).__name__} gives back {type(out).__name__}, not what its "
            "custom_generate does, so drafting cannot go through it: call it plainly"
        )
    return out

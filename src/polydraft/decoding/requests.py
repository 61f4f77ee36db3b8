"""What a drafted generation refuses, each by name and in one line."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import DynamicCache, GenerationConfig
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from polydraft.errors import InputError
from polydraft.heads import DraftConfig

KNOWN_INPUTS = {
    "attention_mask", "position_ids", "past_key_values", "use_cache", "cache_position", "logits_to_keep",
    "output_attentions", "output_hidden_states",
}  # fmt: skip


OTHER_METHODS = ("penalty_alpha", "dola_layers", "prompt_lookup_num_tokens")


def check_request(config: GenerationConfig, input_ids: Tensor, inputs: dict[str, Any]) -> None:
    """Refuse what the loop does not do.

    Raises:
        InputError: names the option and what to do instead.
    """
    if "inputs_embeds" in inputs or input_ids.shape[1] == 0:
        raise InputError(
            "drafted generation needs at least one prompt token in input_ids; inputs_embeds is not supported"
        )
    if (config.num_beams or 1) > 1:
        raise InputError("beam search cannot be drafted: set num_beams=1, or call plain model.generate")
    if (config.num_return_sequences or 1) > 1 or input_ids.shape[0] > 1:
        raise InputError("drafted generation takes one sequence at a time: call it once per prompt")
    if not config.use_cache:
        raise InputError("drafted generation needs the cache: leave use_cache on")
    for name in ("output_scores", "output_logits", "output_attentions", "output_hidden_states"):
        if getattr(config, name, None):
            raise InputError(
                f"{name} is not supported by drafted generation: leave it off, or call plain model.generate"
            )
    for name in OTHER_METHODS:
        if getattr(config, name, None):
            raise InputError(f"{name} asks for another decoding method: leave it off to draft with a head")
    if (config.guidance_scale or 1) != 1:
        raise InputError("guidance_scale runs the model a second time and cannot be drafted: leave it off")
    positions = inputs.get("position_ids")
    if positions is not None and positions.shape[-1] != input_ids.shape[1]:
        raise InputError("input_ids must hold the whole text, the tokens in past_key_values included")
    extra = [name for name, value in inputs.items() if value is not None and name not in KNOWN_INPUTS]
    if extra:
        raise InputError(f"drafted generation takes text only; the model input {extra[0]!r} is not supported")


def check_components(config: DraftConfig) -> None:
    """Refuse greedy drafting by components where the joint has no likeliest ones.

    Raises:
        InputError: says what in the head stands in the way.
    """
    if config.member.markov:
        raise InputError(
            "drafting components needs rows that do not see the token before, which those of joint "
            f"{config.joint!r} do: use drafting chain"
        )
    if config.features == "hidden":
        raise InputError("drafting components needs a head with features 'fused': use drafting chain")


def check_cache(cache: object) -> DynamicCache:
    """The cache, if its layers can be rolled back.

    Raises:
        InputError: a cache, or a layer of one, without rollback; named.
    """
    if not isinstance(cache, DynamicCache):
        raise InputError(f"{type(cache).__name__} cannot be rolled back: use the default dynamic cache")
    for layer in cache.layers:
        if type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer):
            kind = type(layer).__name__
            raise InputError(
                f"the model keeps {kind} states, which cannot be rolled back after a refused draft"
            )
    return cache


def unread(input_ids: Tensor, attention_mask: Tensor | None, *, seen: int) -> Tensor:
    """The prompt (1, T) without its left padding and without the `seen` tokens its cache holds; (1, T').

    Raises:
        InputError: a mask with holes, padding before a cache, or a cache that holds the whole prompt.
    """
    if attention_mask is None or bool(attention_mask.all()):
        if input_ids.shape[1] <= seen:
            raise InputError(
                f"the cache already holds {seen} tokens: give them and at least one more in input_ids"
            )
        return input_ids[:, seen:]
    if seen:
        raise InputError("a padded prompt cannot be continued from a cache: leave the padding out of both")
    kept = int(attention_mask.sum())
    if kept == 0 or not bool(attention_mask[0, -kept:].all()):
        raise InputError("attention_mask may hide left padding only: pad on the left")
    return input_ids[:, -kept:]

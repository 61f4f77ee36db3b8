"""What a drafted generation refuses, each by name and in one line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, GenerationConfig, LogitsProcessorList
from transformers.generation.logits_process import PrefixConstrainedLogitsProcessor

from polydraft.compat import CACHE
from polydraft.decoding.grammar import check_grammars
from polydraft.decoding.stateless import describe, keeping_state
from polydraft.errors import InputError

KNOWN_INPUTS = {
    "attention_mask", "position_ids", CACHE, "use_cache", "cache_position", "logits_to_keep",
    "output_attentions", "output_hidden_states",
}  # fmt: skip


OTHER_METHODS = ("penalty_alpha", "dola_layers")


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
    if not config.use_cache:
        raise InputError("drafted generation needs the cache: leave use_cache on")
    for name in ("output_attentions", "output_hidden_states"):
        if config.return_dict_in_generate and getattr(config, name, None):
            raise InputError(
                f"{name} is not supported by drafted generation: leave it off, also in "
                "model.generation_config, or call plain model.generate"
            )
    for name in OTHER_METHODS:
        if getattr(config, name, None):
            raise InputError(f"{name} asks for another decoding method: leave it off to draft with a head")
    if config.prompt_lookup_num_tokens:
        raise InputError(
            "prompt_lookup_num_tokens asks for another decoding method: to combine both, give it to "
            "polydraft.decoder or polydraft.generate"
        )
    if isinstance(inputs.get("logits_to_keep"), Tensor):
        raise InputError("logits_to_keep by index is not supported by drafted generation: leave it out")
    extra = [name for name, value in inputs.items() if name not in KNOWN_INPUTS and not _nothing(value)]
    if extra:
        raise InputError(f"drafted generation takes text only; the model input {extra[0]!r} is not supported")


def _nothing(value: object) -> bool:
    """Whether a model input is none, as of the images and sounds of a text that has none."""
    return value is None or (isinstance(value, dict) and all(part is None for part in value.values()))


def check_own_positions(
    inputs: dict[str, Any], input_ids: Tensor, attention_mask: Tensor | None, *, seen: int
) -> None:
    """Refuse positions other than those that plain decoding finds by itself, which are the only ones drafted.

    Args:
        inputs: of the model; looked at are `position_ids` (..., n) and `cache_position` (n,), where n is T or
            T - seen. input_ids: (B, T). seen: tokens that the cache holds.
        attention_mask: (B, T), None for no padding.

    Raises:
        InputError: names the input.
    """
    width = input_ids.shape[1]
    columns = torch.arange(width, device=input_ids.device)
    mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask.to(input_ids.device)
    for name, expected in (("position_ids", mask.cumsum(-1) - 1), ("cache_position", columns)):
        given = inputs.get(name)
        if given is None:
            continue
        size = given.shape[-1]
        if size > width:
            raise InputError(f"input_ids must hold the whole text, the tokens in {CACHE} included")
        right = size in (width, width - seen)
        if right:
            same = given.to(input_ids.device) == expected[..., width - size :]
            right = bool((same | (mask[:, width - size :] == 0)).all())
        if not right:
            raise InputError(
                f"{name} of your own is not supported by drafted generation, which counts from the first "
                "token that is no padding: leave it out, or call plain model.generate"
            )


def check_generator(generator: torch.Generator | None, device: torch.device) -> None:
    """Refuse a generator that draws on another kind of device than the model's.

    Raises:
        InputError: says how to make one.
    """
    if generator is not None and generator.device.type != device.type:
        raise InputError(
            f"the generator is of {generator.device.type}, the model on {device}: make it with "
            f"torch.Generator({device.type!r})"
        )


def check_cache(cache: object, *, rows: int) -> DynamicCache:
    """The cache, if drafting can go on from it.

    Raises:
        InputError: another kind of cache, or one of several rows that holds something.
    """
    if not isinstance(cache, DynamicCache):
        raise InputError(f"{type(cache).__name__} cannot be rolled back: use the default dynamic cache")
    if rows > 1 and cache.get_seq_length():
        raise InputError(f"a batch cannot go on from {CACHE}: continue one text at a time")
    return cache


def check_processors(processors: LogitsProcessorList, *, rows: int, verification: str) -> None:
    """Refuse processors that may keep a state where they cannot be called in the order of the text.

    In a batch, whose rows grow at different speeds, nobody knows whose state it would be; a
    `prefix_allowed_tokens_fn` is told its row. Block verification asks about drafts that it then refuses.

    Raises:
        InputError: names the processor and what to do.
    """
    check_grammars(processors, rows=rows)
    for processor in keeping_state(processors):
        line = f"{describe(processor)} may keep a state of its own, which"
        mend = "or set its attribute stateless = True if its scores depend on its arguments alone"
        if verification == "block":
            raise InputError(f"{line} block verification would mix up: use verification 'token', {mend}")
        if rows > 1 and type(processor) is not PrefixConstrainedLogitsProcessor:
            raise InputError(f"{line} the texts of a batch would mix up: give one text at a time, {mend}")


def unpadded(input_ids: Tensor, attention_mask: Tensor | None) -> list[Tensor]:
    """Every row (B, T) without its left padding, (T_b,) each.

    Raises:
        InputError: a mask with holes, or a row of padding alone.
    """
    if attention_mask is None:
        return list(input_ids)
    if attention_mask.shape != input_ids.shape:
        raise InputError(
            f"attention_mask is {tuple(attention_mask.shape)}, input_ids {tuple(input_ids.shape)}: "
            "give both for the same tokens"
        )
    rows = []
    for ids, mask in zip(input_ids, attention_mask, strict=True):
        kept = int(mask.sum())
        if kept == 0 or not bool(mask[-kept:].all()):
            raise InputError("attention_mask may hide left padding only: pad on the left")
        rows.append(ids[-kept:])
    return rows


def unread(texts: Sequence[Tensor], *, seen: int, width: int) -> list[Tensor]:
    """What of each text (T_b,) a cache of `seen` tokens does not hold; `width`: of the texts with padding.

    Raises:
        InputError: nothing, or padding before a cache.
    """
    for text in texts:
        if seen and len(text) < width:
            raise InputError(
                "a padded prompt cannot be continued from a cache: leave the padding out of both"
            )
        if len(text) <= seen:
            raise InputError(
                f"the cache already holds {seen} tokens: give them and at least one more in input_ids"
            )
    return [text[seen:] for text in texts]

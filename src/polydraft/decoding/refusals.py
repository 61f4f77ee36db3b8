"""Base models that cannot be drafted with, or not in batches and trees: each by name, with the reason.

What decides is how a model is built, wherever that can be seen: its forward, its cache, its attention. Where
it cannot, the kind of model is named in a table below.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import LinearAttentionCacheLayerMixin

from polydraft.compat import attention_implementation, cache_name, is_stateful
from polydraft.decoding.own_steps import own_generate, own_step, told_by_hooks
from polydraft.decoding.quantised import quantised_together
from polydraft.errors import InputError
from polydraft.forwards import arguments
from polydraft.limits import check_ids, check_positions, embedding_rows, position_rows
from polydraft.slots import layer_windows

MASKED = ("eager", "sdpa")
"""The implementations of attention that take a custom mask."""

WINDOW_MASKS = ("create_sliding_window_causal_mask", "create_chunked_causal_mask")
"""What the code of a model imports from transformers to mask windows."""

NEVER = {
    "blt": "keeps a second cache, over patches of the text",
    "cpmant": "reads its prompt in both directions",
    "prophetnet": "reads its cache one token at a time",
}
"""Kinds of model whose drafts cannot be verified, with the reason."""

ALONE = {
    "gpt_neo": "cuts its causal mask by the longest row",
    "moshi": "takes no positions from outside",
}
"""Kinds of model that are right with one text and no tree, with the reason why no more."""


def refuse_model(model: PreTrainedModel) -> None:
    """Refuse a model that no drafted generation is right with.

    Raises:
        InputError: an encoder-decoder, states that cannot be taken back after a refused draft, no cache of
            keys and values, or attention to what is still to come.
    """
    reason = _never(model)
    if reason is not None:
        raise InputError(
            f"{type(model).__name__} {reason}, so it cannot be drafted with: call plain model.generate"
        )


def refuse_generate(model: PreTrainedModel) -> None:
    """Refuse a model that generates in a way of its own, for callers that do not go through its `generate`.

    Raises:
        InputError: says whose it is.
    """
    if (home := own_generate(model)) is not None:
        raise InputError(
            f"{type(model).__name__} has a generate of its own ({home}), which a live batch does not call: "
            "decode with polydraft.generate"
        )


def refuse_batch(model: PreTrainedModel) -> None:
    """Refuse a model that batches and trees, which need masks and positions of their own, go wrong with.

    Raises:
        InputError: an attention that takes no such mask, or a model that finds positions by itself.
    """
    attention = attention_implementation(model.config)
    if attention not in MASKED:
        raise InputError(
            f"attention {attention!r} takes no mask for batches and trees: load the model with "
            "attn_implementation='sdpa', or give one prompt at a time and no tree"
        )
    reason = _alone(model)
    if reason is not None:
        raise InputError(f"{type(model).__name__} {reason}: give one prompt at a time and no tree")


def takes_trees(model: PreTrainedModel) -> bool:
    """Whether `refuse_batch` has nothing against the model."""
    return attention_implementation(model.config) in MASKED and _alone(model) is None


def refuse_length(model: PreTrainedModel, *, shortest: int, longest: int) -> None:
    """Refuse lengths that a model has no positions for, or where its frequencies or its cache change.

    Rotary frequencies follow the last position of a forward, and drafts lie beyond it: the text would depend
    on what was drafted, and in a batch on the other rows. "longrope" has a second set of frequencies beyond
    its border; "dynamic" has, beyond it, others for every length. Where only the cache knows a sliding
    window, a forward over several tokens sees more than they would one after the other.

    Args:
        shortest: tokens of the shortest prompt. longest: tokens that the longest text may grow to.

    Raises:
        InputError: there are fewer positions, the border lies between the two, or the text outgrows such a
            window.
    """
    read = longest - 1  # the last token is never read
    check_positions(model, read, what=f"prompt and new tokens come to {longest}: ask for fewer")
    window = _unmasked_window(model)
    if window is not None and longest > window:
        raise InputError(
            f"the cache of {type(model).__name__} slides at {window} tokens, which its masks do not know: "
            "let prompt and new tokens stay within, or call plain model.generate"
        )
    for kind, border in _borders(model):
        if longest > border and (kind == "dynamic" or shortest <= border):
            raise InputError(
                f"the positions of {type(model).__name__} change at {border} tokens (rope_type {kind!r}): "
                "let prompt and new tokens stay below, or call plain model.generate"
            )


def refuse_ids(model: PreTrainedModel, texts: Sequence[Tensor]) -> None:
    """Refuse texts (T_b,) with token ids that the model does not read.

    Raises:
        InputError: names one.
    """
    rows = embedding_rows(model)
    ids = torch.cat(list(texts))
    check_ids(ids[(ids < 0) | (ids >= rows)].tolist(), rows, where="the prompt")


def longest_text(model: PreTrainedModel) -> int | None:
    """Tokens that texts of any length beside each other may grow to; None where nothing limits them."""
    config: Any = model.config.get_text_config(decoder=True)
    borders = [border for _, border in _borders(model)]
    most = getattr(config, "max_position_embeddings", None)
    limits = (position_rows(model), most, _unmasked_window(model))
    return min([*borders, *(int(limit) for limit in limits if limit is not None)], default=None)


def _never(model: PreTrainedModel) -> str | None:
    """What keeps `model` from being drafted with."""
    config: Any = model.config.get_text_config(decoder=True)
    if config.model_type in NEVER:
        return NEVER[config.model_type]
    if model.config.is_encoder_decoder:
        return "is an encoder-decoder"
    if is_stateful(model) or any(_is_recurrent(layer) for layer in DynamicCache(config=model.config).layers):
        return "keeps a state that moves on with every token and cannot be taken back after a refused draft"
    if cache_name(type(model).forward) is None:
        return "keeps no cache of keys and values"
    encoder = getattr(config, "is_decoder", None) is False and hasattr(config, "add_cross_attention")
    both = getattr(config, "use_bidirectional_attention", None) in (True, "all")
    if encoder or both or not getattr(config, "is_causal", True):
        return "attends to tokens still to come"
    if (step := own_step(model)) is not None:
        return f"decodes by a {step} of its own, which drafting does not call"
    if told_by_hooks(model):
        return "is told by PEFT which adapter serves which row or place"
    if (layer := quantised_together(model)) is not None:
        return f"quantises all tokens of a forward together, drafts included, in {layer}"
    return None


def _alone(model: PreTrainedModel) -> str | None:
    """What keeps `model` from batches and trees."""
    config: Any = model.config.get_text_config(decoder=True)
    if "position_ids" not in arguments(model) or getattr(config, "alibi", False):
        return "takes no positions from outside"
    if "chunked_attention" in (getattr(config, "layer_types", None) or ()):
        return "attends in chunks, and counts them by the longest row"
    return ALONE.get(config.model_type)


def _unmasked_window(model: PreTrainedModel) -> int | None:
    """The shortest window of the layers, where the code of the model makes no masks with windows."""
    windows = [window for window in layer_windows(model.config) if window is not None]
    if not windows:
        return None
    homes = {kind.__module__ for module in model.modules() for kind in type(module).__mro__}
    if any(hasattr(sys.modules.get(home), name) for home in homes for name in WINDOW_MASKS):
        return None
    return min(windows)


def _borders(model: PreTrainedModel) -> list[tuple[str, int]]:
    """Every rope type of the model whose frequencies depend on the length, and where they change."""
    config: Any = model.config.get_text_config(decoder=True)
    rope: dict[str, Any] = getattr(config, "rope_parameters", None) or {}
    found: list[tuple[str, int]] = []
    for one in [rope, *(part for part in rope.values() if isinstance(part, dict))]:
        kind = one.get("rope_type")
        if kind == "longrope":
            found.append((kind, int(one["original_max_position_embeddings"])))
        elif kind == "dynamic":
            found.append((kind, int(config.max_position_embeddings)))
    return found


def _is_recurrent(layer: object) -> bool:
    return isinstance(layer, LinearAttentionCacheLayerMixin)

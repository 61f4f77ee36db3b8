"""Attention in which the queries that share keys and values lie side by side, so that no key is copied.

transformers repeats keys and values once per query head where a mask is given. Here the G query heads of a
group become G times as many queries of one head, (B, H, w, D) -> (B, H / G, G w, D): the same numbers, and
the whole context is read once instead of being written and read G times.
"""

from __future__ import annotations

from types import TracebackType
from typing import Any, cast

from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

GROUPED = "polydraft_grouped"
"""The name under which transformers knows it."""


def grouped_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Compute transformers' "sdpa", which does all but the case of one mask for all heads of a group.

    Args:
        query: (B, H, w, D). key, value: (B, H / G, S, D). attention_mask: (B, 1, w, S).

    Returns:
        (B, w, H, D), and no weights.
    """
    batch, heads, width, size = query.shape
    groups = key.shape[1]
    shared = attention_mask is not None and attention_mask.shape[1] == 1
    if not shared or groups == heads or kwargs.get("position_bias") is not None:
        out, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling, is_causal, **kwargs
        )
        return out, None
    assert attention_mask is not None
    each = heads // groups
    mask = attention_mask.expand(batch, 1, width, -1)[:, :, None].expand(-1, -1, each, -1, -1).flatten(2, 3)
    found = scaled_dot_product_attention(
        query.reshape(batch, groups, each * width, size),
        key,
        value,
        attn_mask=mask,
        dropout_p=dropout,
        scale=scaling,
    )
    return found.reshape(batch, heads, width, -1).transpose(1, 2).contiguous(), None


class GroupedAttention:
    """Context manager: inside, a model whose attention is transformers' "sdpa" groups its queries.

    Models with attention code of their own stay as they are.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        AttentionInterface.register(GROUPED, grouped_attention)
        AttentionMaskInterface.register(GROUPED, sdpa_mask)
        self._config = model.config
        self._supported = bool(cast(Any, model)._supports_attention_backend)
        self._before = model.config._attn_implementation

    def __enter__(self) -> GroupedAttention:
        self._before = self._config._attn_implementation
        if self._before == "sdpa" and self._supported:
            self._config._attn_implementation = GROUPED
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._config._attn_implementation = self._before

"""Logits processors, applied position by position to the rows of the base model and of the draft."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from transformers import LogitsProcessorList
from transformers.generation.logits_process import (
    EpsilonLogitsWarper,
    EtaLogitsWarper,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from polydraft.joint import Warp

POINTWISE = (
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    MinPLogitsWarper,
    TypicalLogitsWarper,
    EpsilonLogitsWarper,
    EtaLogitsWarper,
)
"""Warpers that look only at the values of a row: they need neither token ids nor the prefix."""


def process(processors: LogitsProcessorList, ids: Tensor, scores: Tensor) -> Tensor:
    """`scores` (B, V) after `processors`, for the prefix `ids` (B, L)."""
    out: Tensor = cast(Any, processors)(ids, scores)  # annotated for LongTensor, which no tensor is
    return out


def target_scores(processors: LogitsProcessorList, prefix: Tensor, logits: Tensor) -> Tensor:
    """The base model's processed row; prefix (1, L), logits (V,) -> scores (V,), float32."""
    scores = logits.to(copy=True, dtype=torch.float32)
    if not processors:
        return scores
    return process(processors, prefix, scores[None])[0]


def draft_warp(
    processors: LogitsProcessorList, prefix: Tensor, draft_ids: Tensor, vocab_size: int
) -> Warp | None:
    """The same processors as a `Warp` of draft rows (1, V').

    Processors that know token ids see a row over the whole vocabulary, -inf outside the draft
    vocabulary, and the prefix with the drafts so far. What they leave no draft token at ends the chain.

    Args:
        prefix: (1, L) base ids up to and including the pending token. draft_ids: (V',).
    """
    if not processors:
        return None
    if all(isinstance(p, POINTWISE) for p in processors):
        return lambda tokens, row: process(processors, prefix, row)

    def warp(tokens: Tensor, row: Tensor) -> Tensor:
        full = row.new_full((1, vocab_size), -torch.inf)
        full[:, draft_ids] = row
        return process(processors, torch.cat([prefix, draft_ids[tokens]], dim=-1), full)[:, draft_ids]

    return warp

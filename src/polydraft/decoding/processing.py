"""Logits processors, applied position by position to the rows of the base model and of the draft."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor
from transformers import LogitsProcessorList
from transformers.generation.logits_process import (
    EncoderNoRepeatNGramLogitsProcessor,
    EncoderRepetitionPenaltyLogitsProcessor,
    EpsilonLogitsWarper,
    EtaLogitsWarper,
    MinPLogitsWarper,
    PrefixConstrainedLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from polydraft.decoding.noise import GumbelNoise
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


def of_row(processors: LogitsProcessorList, row: int) -> LogitsProcessorList:
    """The processors for one row of a batch, which they see alone; those that know the batch are told."""
    return LogitsProcessorList([_of_row(processor, row) for processor in processors])


def _of_row(processor: Any, row: int) -> Any:
    alone = copy.copy(processor)
    if isinstance(processor, PrefixConstrainedLogitsProcessor):
        allowed = processor._prefix_allowed_tokens_fn
        alone._prefix_allowed_tokens_fn = lambda _, ids: allowed(row, ids)
        return alone
    if isinstance(processor, EncoderRepetitionPenaltyLogitsProcessor):
        alone.encoder_input_ids = processor.encoder_input_ids[row : row + 1]
        return alone
    if isinstance(processor, EncoderNoRepeatNGramLogitsProcessor):
        alone.batch_size = 1
        alone.generated_ngrams = processor.generated_ngrams[row : row + 1]
        return alone
    if isinstance(processor, RepetitionPenaltyLogitsProcessor):
        ignored = processor.prompt_ignore_length
        if isinstance(ignored, Tensor):
            alone.prompt_ignore_length = cast(Any, ignored[row : row + 1])
        return alone
    return processor


def draft_warp(
    processors: Sequence[LogitsProcessorList],
    prefixes: Sequence[Tensor],
    draft_ids: Tensor,
    vocab_size: int,
) -> Warp | None:
    """The same processors as a `Warp` of draft rows (B, V').

    Processors that know token ids see a row over the whole vocabulary, -inf outside the draft
    vocabulary, and the prefix with the drafts so far. What they leave no draft token at ends the chain.

    Args:
        processors: per row, as `of_row` gives them. prefixes: per row (1, L) base ids up to and including
            the pending token. draft_ids: (V',).
    """
    if not any(processors):
        return None
    if all(_equal(own, processors[0]) and _pointwise(own) for own in processors):
        return lambda tokens, row: process(processors[0], prefixes[0], row)

    def warp(tokens: Tensor, row: Tensor) -> Tensor:
        each = len(row) // len(prefixes)  # of a tree, the nodes of a level
        parts = zip(processors, prefixes, tokens.split(each), row.split(each), strict=True)
        return torch.cat([_warped(*part, draft_ids, vocab_size) for part in parts])

    return warp


def _warped(
    processors: LogitsProcessorList,
    prefix: Tensor,
    tokens: Tensor,
    rows: Tensor,
    draft_ids: Tensor,
    vocab_size: int,
) -> Tensor:
    """Draft rows (w, V') of one text, behind its prefix (1, L) and `tokens` (w, s) each."""
    if not processors:
        return rows
    *first, last = processors
    if _pointwise(first) and isinstance(last, GumbelNoise):
        noise = last.noise(prefix.shape[-1] + tokens.shape[-1], vocab_size, device=rows.device)
        return process(LogitsProcessorList(first), prefix, rows) + noise[draft_ids]
    if _pointwise(processors):
        return process(processors, prefix, rows)
    full = rows.new_full((len(rows), vocab_size), -torch.inf)
    full[:, draft_ids] = rows
    texts = torch.cat([prefix.expand(len(rows), -1), draft_ids[tokens]], dim=-1)
    found = [process(processors, text[None], row[None]) for text, row in zip(texts, full, strict=True)]
    return torch.cat(found)[:, draft_ids]


def _pointwise(processors: Sequence[Any]) -> bool:
    return all(isinstance(processor, POINTWISE) for processor in processors)


def _equal(left: Sequence[Any], right: Sequence[Any]) -> bool:
    """Whether both are the same processors, not others like them."""
    return len(left) == len(right) and all(a is b for a, b in zip(left, right, strict=True))

"""Logits processors, applied position by position to the rows of the base model and of the draft."""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from transformers import LogitsProcessorList
from transformers.generation.logits_process import (
    EncoderNoRepeatNGramLogitsProcessor,
    EncoderRepetitionPenaltyLogitsProcessor,
    PrefixConstrainedLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
)

from polydraft.compat import prefix_function
from polydraft.decoding.grammar import as_mask
from polydraft.decoding.stateless import is_pointwise, is_stateless, is_stateless_function
from polydraft.decoding.together import add_noise, alike, without_noise
from polydraft.joint import Warp

logger = logging.getLogger("polydraft.decoding")


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


def of_row(processors: LogitsProcessorList, row: int, *, prompt_length: int) -> LogitsProcessorList:
    """The processors for one row of a batch, which they see alone; those that know the batch are told.

    Args:
        prompt_length: tokens of its text that were given, padding included.
    """
    return LogitsProcessorList([_of_row(one, row, prompt_length) for one in processors])


def _of_row(processor: Any, row: int, prompt_length: int) -> Any:
    mask = as_mask(processor, row, prompt_length=prompt_length)
    if mask is not None:
        return mask
    if type(processor) is PrefixConstrainedLogitsProcessor:
        return PrefixConstrainedLogitsProcessor(_OfRow(prefix_function(processor), row), 1)
    if not is_stateless(processor):
        return processor  # it is called as plain decoding calls it, which copies nothing
    alone = copy.copy(processor)
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


class _OfRow:
    """A `prefix_allowed_tokens_fn` for one row of a batch, which it is told."""

    def __init__(self, allowed: Any, row: int) -> None:
        self._allowed = allowed
        self._row = row
        self.stateless = is_stateless_function(allowed)

    def __call__(self, batch_id: int, ids: Tensor) -> list[int]:
        found: list[int] = self._allowed(self._row, ids)
        return found


class Drafting(NamedTuple):
    """What shapes the drafts of one row.

    Attributes:
        processors: as `of_row` gives them, those alone that may be shown drafts.
        prefix: (1, L) base ids up to and including the pending token. ends: base ids that end the text.
    """

    processors: LogitsProcessorList
    prefix: Tensor
    ends: frozenset[int]


def draft_warp(rows: Sequence[Drafting], draft_ids: Tensor, vocab_size: int) -> Warp | None:
    """The same processors as a `Warp` of draft rows (B, V').

    Processors that know token ids see a row over the whole vocabulary, -inf outside the draft
    vocabulary, and the prefix with the drafts so far. What they leave no draft token at ends the chain;
    so does an end token, and what they cannot process: it is met again if the text comes to it.

    Args:
        draft_ids: (V',).
    """
    if not any(row.processors for row in rows):
        return None
    shaping, noises = zip(*(without_noise(row.processors) for row in rows), strict=True)
    together = [at for at, own in enumerate(shaping) if _pointwise(own)]
    alone = sorted({*range(len(rows))} - {*together})
    groups = [(texts, shaping[texts[0]]) for texts in alike((at, shaping[at]) for at in together)]
    nothing = draft_ids.new_empty(1, 0)

    def warp(tokens: Tensor, scores: Tensor) -> Tensor:
        shape = len(rows), len(scores) // len(rows)  # of a tree, the nodes of a level
        drafts, every = tokens.view(*shape, tokens.shape[-1]), scores.view(*shape, scores.shape[-1])
        if len(groups) == 1 and not alone:
            out = process(groups[0][1], nothing, scores).view(every.shape)
        else:
            out = torch.empty_like(every)
            for texts, own in groups:
                part = every[texts]
                out[texts] = process(own, nothing, part.flatten(0, 1)).view(part.shape)
            for at in alone:
                row = rows[at]._replace(processors=shaping[at])
                out[at] = _warped(row, drafts[at], every[at], draft_ids, vocab_size)
        lengths = [row.prefix.shape[-1] + tokens.shape[-1] for row in rows]
        return add_noise(out, noises, lengths, draft_ids).view(scores.shape)

    return warp


def _warped(row: Drafting, tokens: Tensor, scores: Tensor, draft_ids: Tensor, vocab_size: int) -> Tensor:
    """Draft rows (w, V') of one text, after its prefix (1, L) and `tokens` (w, s) each."""
    full = scores.new_full((len(scores), vocab_size), -torch.inf)
    full[:, draft_ids] = scores
    drafts = draft_ids[tokens]
    for at, told in enumerate(drafts.tolist()):
        if row.ends and not row.ends.isdisjoint(told):
            full[at] = -torch.inf
            continue
        text = torch.cat([row.prefix, drafts[at : at + 1]], dim=-1)
        full[at] = _or_nothing(row.processors, text, full[at : at + 1])[0]
    return full[:, draft_ids]


def _or_nothing(processors: LogitsProcessorList, text: Tensor, scores: Tensor) -> Tensor:
    """`process`, or -inf where a processor raises: nothing is drafted there, and nothing is hidden.

    Plain decoding may never come to this text. If it does, verification meets the error again and raises it.
    """
    try:
        return process(processors, text, scores)
    except Exception:
        logger.debug("a processor fails on a draft", exc_info=True)
        return torch.full_like(scores, -torch.inf)


def _pointwise(processors: Sequence[Any]) -> bool:
    return all(is_pointwise(processor) for processor in processors)

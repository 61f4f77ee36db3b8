"""What lets the draft rows of many texts be processed together: equal settings, and noise in one piece."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessorList

from polydraft.decoding.noise import GumbelNoise, gumbel


def without_noise(processors: LogitsProcessorList) -> tuple[LogitsProcessorList, GumbelNoise | None]:
    """Return the processors of one text before its noise, and the noise, which comes last, if any."""
    last = processors[-1] if processors else None
    if isinstance(last, GumbelNoise):
        return LogitsProcessorList(processors[:-1]), last
    return processors, None


def alike(texts: Iterable[tuple[int, Sequence[Any]]]) -> list[list[int]]:
    """Return texts, by their numbers, in groups whose processors do the same.

    Args:
        texts: the number of each, and its processors, which keep no state.
    """
    groups: dict[tuple[Any, ...], list[int]] = {}
    for number, processors in texts:
        groups.setdefault(tuple(map(_settings, processors)), []).append(number)
    return list(groups.values())


def _settings(processor: Any) -> tuple[Any, ...]:
    """Return what is equal for processors of one class made with the same numbers, or the same objects."""
    values = sorted(vars(processor).items())
    return type(processor), *((name, v if isinstance(v, int | float) else id(v)) for name, v in values)


def add_noise(
    scores: Tensor, noises: Sequence[GumbelNoise | None], lengths: Sequence[int], draft_ids: Tensor
) -> Tensor:
    """Return draft rows (R, w, V') of R texts with the noise of each, the same for all w.

    Args:
        noises: of every text, if it has any. lengths: of every text, in tokens. draft_ids: (V',).
    """
    pairs = enumerate(zip(noises, lengths, strict=True))
    found = [(at, noise.start(length)) for at, (noise, length) in pairs if noise is not None]
    if not found:
        return scores
    rows, starts = zip(*found, strict=True)
    noise = gumbel(starts, draft_ids)[:, None].to(scores.dtype)
    if len(rows) == len(scores):
        return scores + noise
    where = torch.tensor(rows, device=scores.device)
    return scores.index_add(0, where, noise.expand(-1, scores.shape[1], -1))

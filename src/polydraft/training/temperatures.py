"""Several temperatures within one batch of sampling: which row has which, and how each gets its own."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import FloatTensor, LongTensor, Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from polydraft.errors import InputError


def check_temperatures(temperatures: Sequence[float]) -> None:
    """Refuse what nothing can be sampled at.

    Raises:
        InputError: names them.
    """
    if not temperatures or not all(0 <= one < float("inf") for one in temperatures):
        raise InputError(f"temperatures must be 0 or more, and finite, got {temperatures}")


def in_turn(temperatures: Sequence[float], sizes: Sequence[int]) -> list[list[float]]:
    """A temperature for every prompt of batches of these sizes: one after the other, over all of them."""
    every = itertools.cycle(temperatures)
    return [list(itertools.islice(every, size)) for size in sizes]


class RowTemperatures(LogitsProcessor):
    """Divides every row of a batch by a temperature of its own; at 0 it leaves the likeliest token alone."""

    def __init__(self, temperatures: Tensor) -> None:
        self.temperatures = temperatures[:, None]

    def __call__(self, input_ids: LongTensor, scores: FloatTensor) -> FloatTensor:
        """Log scores (B, V) before the softmax."""
        likeliest = scores.argmax(-1, keepdim=True)
        chosen = torch.full_like(scores, -torch.inf).scatter(-1, likeliest, 0.0)
        greedy = self.temperatures == 0
        divided = scores / self.temperatures.masked_fill(greedy, 1.0)
        return cast(FloatTensor, torch.where(greedy, chosen, divided))


def sampling_arguments(temperatures: Sequence[float], device: torch.device) -> dict[str, Any]:
    """Keyword arguments of `model.generate` for rows of these temperatures."""
    if not any(temperatures):
        return {"do_sample": False}
    plain = {"do_sample": True, "top_k": 0, "top_p": 1.0}
    if len(set(temperatures)) == 1:
        return plain | {"temperature": temperatures[0]}
    own = RowTemperatures(torch.tensor(temperatures, dtype=torch.float32, device=device))
    return plain | {"temperature": 1.0, "logits_processor": LogitsProcessorList([own])}

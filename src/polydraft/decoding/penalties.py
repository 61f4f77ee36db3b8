"""Penalties on what a text has said already, as OpenAI's interface defines them."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import LogitsProcessor


class OccurrencePenalty(LogitsProcessor):
    """score_v - frequency c_v - presence [c_v > 0], c_v how often v stands in the text after the prompt.

    Args:
        frequency, presence: any numbers; positive ones discourage. after: tokens of the prompt.
    """

    stateless = True

    def __init__(self, frequency: float, presence: float, *, after: int) -> None:
        self._frequency = frequency
        self._presence = presence
        self._after = after

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """scores (B, V) after the texts input_ids (B, L)."""
        said = input_ids[:, self._after :]
        counts = torch.zeros_like(scores).scatter_add_(1, said, torch.ones_like(said, dtype=scores.dtype))
        return scores - self._frequency * counts - self._presence * (counts > 0)

"""Sampling whose randomness belongs to a place in the text: a seeded text is the same however it is drafted.

A token drawn from p is the argmax of log p + g, g independent standard Gumbel noise (the Gumbel-max trick).
Here g is a function of the seed, the row and the place in the text alone. Added to the processed rows of the
base model it makes sampling a search for the largest entry, and added to those of the draft head it makes
drafts that are likely to be it: both look at the same noise. So drafting, verification and their tests are
those of greedy decoding; which drafts were made, how many, and who else is in the batch leave no trace in
the text.

After Daliri, Musco and Suresh 2024, "Coupling without Communication and Drafter-Invariant Speculative
Decoding" (arXiv 2408.07978); trees of drafts and places as keys are ours. A single draft is kept with
probability at least (1 - d) / (1 + d), d the total variation between q and p.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from transformers import LogitsProcessor

from polydraft.errors import InputError

SEEDS = 2**63
PLACES = 16
"""How many places back noise is remembered; verification asks again for what drafting asked for."""
SMALLEST = 1e-300
"""In place of a zero, whose noise would be infinite."""


class GumbelNoise(LogitsProcessor):
    """scores (B, V) + g, the same g for every row; comes last, after temperature and all that shapes p.

    Args:
        seed: 0 to 2^63 - 1. row: of a batch, whose rows differ.

    Raises:
        InputError: no such seed.
    """

    def __init__(self, seed: int, *, row: int = 0) -> None:
        if not 0 <= seed < SEEDS:
            raise InputError(f"seed must be between 0 and 2^63 - 1, got {seed}")
        self.seed = seed
        self.row = row
        self._kept: dict[int, Tensor] = {}

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Behind the text input_ids (B, L)."""
        return scores + self.noise(input_ids.shape[-1], scores.shape[-1]).to(scores.device)

    def noise(self, place: int, size: int) -> Tensor:
        """g = -log(e) behind `place` tokens, e ~ Exp(1) from Philox, a counter-based generator; (V,) float32.

        Drawn in double precision: among 50,000 numbers of 23 bits one of 160 sets has a zero, which would win
        whatever its probability.

        Args:
            size: V.
        """
        if place not in self._kept:
            self._kept = {at: kept for at, kept in self._kept.items() if at > place - PLACES}
            bits = np.random.Philox(key=self.seed + (self.row << 64), counter=place << 192)
            drawn = np.random.Generator(bits).standard_exponential(size)
            self._kept[place] = -torch.from_numpy(drawn).clamp_(min=SMALLEST).log_().float()
        return self._kept[place]

    def of_row(self, row: int) -> GumbelNoise:
        """That of one row of a batch."""
        return GumbelNoise(self.seed, row=row)

"""Slow, obvious references in plain numpy, against which the joints are tested."""

from __future__ import annotations

import itertools
import math

import numpy as np
import torch
from numpy.typing import NDArray

from polydraft.joint import Canonical

Array = NDArray[np.float64]


def random_canonical(
    *, rank: int, horizon: int = 4, vocab_size: int = 5, batch: int = 1, seed: int = 0, scale: float = 1.5
) -> Canonical:
    """A random CP joint in float64: logits of standard deviation `scale`, gates a third of it."""
    generator = torch.Generator().manual_seed(seed)
    gate = torch.randn(batch, rank, generator=generator, dtype=torch.float64)
    logits = torch.randn(batch, horizon, rank, vocab_size, generator=generator, dtype=torch.float64)
    return Canonical.from_logits(gate * scale / 3, logits * scale)


def enumerate_tokens(vocab_size: int, length: int) -> list[tuple[int, ...]]:
    """All V^length sequences, the last position running fastest."""
    return list(itertools.product(range(vocab_size), repeat=length))


def mixture(weights: Array, factors: Array) -> Array:
    """sum_a w_a prod_s P_a^(s)(x_s), term by term; (r,), (n, r, V) -> an array with n axes of V."""
    horizon, rank, vocab_size = factors.shape
    joint = np.zeros((vocab_size,) * horizon)
    for tokens in enumerate_tokens(vocab_size, horizon):
        for component in range(rank):
            terms = [factors[s, component, token] for s, token in enumerate(tokens)]
            joint[tokens] += weights[component] * math.prod(terms)
    return joint


def reference(joint: Canonical, *, row: int = 0) -> Array:
    """The whole table of one batch row of `joint`, from its weights and factors alone."""
    return mixture(joint.log_weights[row].exp().numpy(), joint.log_factors[row].exp().numpy())


def marginal(table: Array, length: int) -> Array:
    """The table of the first `length` positions: later ones summed out."""
    return np.asarray(table.sum(axis=tuple(range(length, table.ndim))))


def conditional(table: Array, prefix: tuple[int, ...]) -> Array:
    """q(x_s | prefix), from the table; (V,)."""
    cut = marginal(table, len(prefix) + 1)[prefix]
    return np.asarray(cut / cut.sum())

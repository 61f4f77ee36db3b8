"""Slow, obvious references in plain numpy, against which the joints are tested."""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray
from scipy.stats import chi2

Array = NDArray[np.float64]


def softmax(logits: Array) -> Array:
    """Over the last axis."""
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return np.asarray(powers / powers.sum(-1, keepdims=True))


def enumerate_tokens(vocab_size: int, length: int) -> list[tuple[int, ...]]:
    """All V^length sequences, the last position running fastest."""
    return list(itertools.product(range(vocab_size), repeat=length))


def with_tokens(hidden: Array, positions: list[int], factors: Array) -> Array:
    """P(z) prod_s P_{z_s}^(s)(x_s | x_{s-1}) of all z and x.

    Args:
        hidden: P(z), an axis for each of what is hidden. positions: which of its axes are z_1..z_n.
        factors: (n, r, V, V), [s, a, u, v] of v after u; the first position's u is 0.

    Returns:
        the axes of `hidden`, then n axes of V.
    """
    x = range(hidden.ndim, hidden.ndim + len(positions))
    operands: list[object] = [hidden, list(range(hidden.ndim)), factors[0, :, 0], [positions[0], x[0]]]
    for s in range(1, len(positions)):
        operands += [factors[s], [positions[s], x[s - 1], x[s]]]
    out = [*range(hidden.ndim), *x]
    return np.asarray(np.einsum(*operands, out, optimize=True))  # type: ignore[call-overload]


def mixture(process: Array, factors: Array) -> Array:
    """q(x), the components of `with_tokens` summed out; (r,) * n, (n, r, V, V) -> n axes of V."""
    every = with_tokens(process, list(range(process.ndim)), factors)
    return np.asarray(every.sum(axis=tuple(range(process.ndim))))


def marginal(table: Array, length: int) -> Array:
    """The table of the first `length` positions: later ones summed out."""
    return np.asarray(table.sum(axis=tuple(range(length, table.ndim))))


def conditional(table: Array, prefix: tuple[int, ...]) -> Array:
    """q(x_s | prefix), from the table; (V,)."""
    cut = marginal(table, len(prefix) + 1)[prefix]
    return np.asarray(cut / cut.sum())


def chi_square_p_value(counts: Array, expected: Array) -> float:
    """P(a correct sampler is at least this far off); cells that expect fewer than 5 are pooled."""
    rare = expected < 5
    counts = np.append(counts[~rare], counts[rare].sum())
    expected = np.append(expected[~rare], expected[rare].sum())
    keep = expected > 0
    statistic = ((counts[keep] - expected[keep]) ** 2 / expected[keep]).sum()
    return float(chi2.sf(statistic, keep.sum() - 1))


def count_sequences(tokens: NDArray[np.int64], vocab_size: int) -> Array:
    """How often each of the V^n sequences occurs; (draws, n) -> n axes of V."""
    length = tokens.shape[1]
    flat = tokens @ np.array([vocab_size**k for k in reversed(range(length))])
    return np.bincount(flat, minlength=vocab_size**length).astype(np.float64).reshape((vocab_size,) * length)

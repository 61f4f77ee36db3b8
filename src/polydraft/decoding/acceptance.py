"""How many tokens a cycle is expected to give, learnt from the cycles before."""

from __future__ import annotations

from collections.abc import Sequence
from math import log
from typing import Protocol

LIKELY = 0.5
"""The chance that a draft of a chain is kept, before anything is known."""
LIKELY_COPY = 0.8
"""The chance that a copied draft is kept, before anything is known."""
BELIEF = 8.0
"""How many drafts, or cycles, what is expected counts for against what is seen."""
MEMORY = 0.97
"""Weight of what was seen a cycle earlier: about 33 cycles count."""
TREE_SIZES = (0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
"""Nodes of the trees to choose from."""


class Expectation(Protocol):
    """The expected tokens that a row gains by a cycle.

    Attributes:
        sizes: the numbers of drafts to choose from, ascending, 0 first.
    """

    sizes: Sequence[int]

    @property
    def tokens(self) -> list[float]:
        """E(k) for every k of `sizes`; 1 for none."""

    def observe(self, drafted: int, accepted: Sequence[int]) -> None:
        """Take in a cycle of `drafted` > 0 drafts a row, of which the rows kept `accepted`."""


class ChainExpectation:
    """Chains: E(k) = 1 + sum_{j<=k} prod_{s<=j} a_s, a_s = P(draft s is kept | those before it).

    a_s is the share of drafts kept at each position, recent cycles counting more, shrunk towards the share
    over all positions, which itself starts at `LIKELY`. Evidence fades at a position not tried for long and
    leaves the common share, so that it is tried again.

    Args:
        horizon: drafts at most. likely: instead of `LIKELY`.
    """

    def __init__(self, horizon: int, *, likely: float = LIKELY) -> None:
        self.sizes: Sequence[int] = range(horizon + 1)
        self._kept, self._tried = [0.0] * horizon, [0.0] * horizon
        self._all_kept, self._all_tried = likely * BELIEF, BELIEF

    @property
    def rates(self) -> list[float]:
        """Entry s - 1 is a_s."""
        common = self._all_kept / self._all_tried
        pairs = zip(self._kept, self._tried, strict=True)
        return [(kept + BELIEF * common) / (tried + BELIEF) for kept, tried in pairs]

    @property
    def tokens(self) -> list[float]:
        """See `Expectation`."""
        return chain_tokens(self.rates)

    def observe(self, drafted: int, accepted: Sequence[int]) -> None:
        """See `Expectation`; draft s was tried where those before it were kept."""
        self._kept = [MEMORY * value for value in self._kept]
        self._tried = [MEMORY * value for value in self._tried]
        self._all_kept *= MEMORY
        self._all_tried *= MEMORY
        for s in range(min(drafted, len(self._kept))):
            tried, kept = sum(a >= s for a in accepted), sum(a > s for a in accepted)
            self._tried[s] += tried
            self._kept[s] += kept
            self._all_tried += tried
            self._all_kept += kept


class TreeExpectation:
    """Trees of N nodes: E(N) = 1 + c(N) g(N), g(N) = 0.46 + 0.305 ln N.

    g is what greedy trees of the shipped head keep, within 0.02 from 1 to 32 nodes; c(N) is how many times
    as much is kept here: by trees of this size, recent cycles counting more, shrunk towards c of all sizes,
    which starts at 1. Evidence fades as in `ChainExpectation`.

    Args:
        most: nodes at most.
    """

    def __init__(self, most: int) -> None:
        self.sizes: Sequence[int] = [size for size in TREE_SIZES if size <= most]
        self._kept, self._usual = (dict.fromkeys(self.sizes, 0.0) for _ in range(2))
        self._all_kept = self._all_usual = BELIEF

    @property
    def tokens(self) -> list[float]:
        """See `Expectation`."""
        common = self._all_kept / self._all_usual
        factors = {
            size: (self._kept[size] + BELIEF * common) / (self._usual[size] + BELIEF) for size in self.sizes
        }
        return [1.0 + factors[size] * usual_tokens(size) for size in self.sizes]

    def observe(self, drafted: int, accepted: Sequence[int]) -> None:
        """See `Expectation`; a tree of another size counts for the next smaller one."""
        self._kept, self._usual = (
            {size: MEMORY * value for size, value in counts.items()} for counts in (self._kept, self._usual)
        )
        size = max(size for size in self.sizes if size <= drafted)
        kept, usual = float(sum(accepted)), len(accepted) * usual_tokens(size)
        self._kept[size] += kept
        self._usual[size] += usual
        self._all_kept = MEMORY * self._all_kept + kept
        self._all_usual = MEMORY * self._all_usual + usual


def chain_tokens(rates: Sequence[float]) -> list[float]:
    """E(0)..E(n) of chains, from a_1..a_n."""
    tokens, path = [1.0], 1.0
    for chance in rates:
        path *= chance
        tokens.append(tokens[-1] + path)
    return tokens


def usual_tokens(nodes: int) -> float:
    """g(N) of `TreeExpectation`, 0 for none."""
    return 0.46 + 0.305 * log(nodes) if nodes else 0.0

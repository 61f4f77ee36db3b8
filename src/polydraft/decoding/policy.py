"""How many tokens to draft in the next cycle: as many as pay, none where none do.

A cycle of k drafts costs C(k), in plain forwards, so C(0) = 1, and yields on average

    E(k) = 1 + sum_{j<=k} prod_{s<=j} a_s        tokens a row, a_s = P(draft s is kept | those before it)

The rate E(k) / C(k) is what decoding gains over plain; k = 0 is plain. The a_s are learnt as the text
grows; the C(k) are measured beforehand (`Costs`). So a policy is a function of what it was told alone, and
equal seeds give equal texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from polydraft.errors import InputError

LIKELY = 0.5
"""Of a draft to be kept, before anything is known."""
BELIEF = 8.0
"""Drafts that `LIKELY` counts for, and drafts at a position that the rate over all positions counts for."""
MEMORY = 0.97
"""Weight of what was seen a cycle earlier: about 33 cycles count."""
FIRST_GAP, LONGEST_GAP = 16, 512
"""Plain cycles before drafting is tried again: at first, and at most."""
SPAN = 128
"""Tokens over which a useless head may cost `TOLERANCE`; over longer texts it costs less."""
TOLERANCE = 0.03
INTEREST = 0.005
"""Of each token of a longer text, what a useless head may cost."""


class Policy(Protocol):
    """Asked before every cycle, told after it."""

    def drafts(self, rows: int) -> int:
        """How many to draft in a cycle of `rows` texts, 0 to the horizon; changes nothing."""

    def observe(self, *, rows: int, drafted: int, accepted: Sequence[int]) -> None:
        """After a cycle: `drafted` per row, and how many of them each row kept."""


class Fixed:
    """The same number always."""

    def __init__(self, drafts: int) -> None:
        if drafts < 0:
            raise InputError(f"drafts must be 0 or more, got {drafts}")
        self._drafts = drafts

    def drafts(self, rows: int) -> int:
        """That number."""
        return self._drafts

    def observe(self, *, rows: int, drafted: int, accepted: Sequence[int]) -> None:
        """Learn nothing."""


class CycleCosts(Protocol):
    """What `Measured` needs to know of a machine; `Costs` does."""

    def cycle(self, rows: int, drafts: int) -> float:
        """Seconds of drafting that many and of the forward that verifies them."""


class Acceptance:
    """Running estimate of a_s for s = 1..horizon, over the rows of a batch together.

    The share of drafts kept at each position, recent cycles counting more, shrunk towards the share over all
    positions, which itself starts at `LIKELY`: evidence that fades at a position leaves the common rate, so
    that positions not tried for long are tried again.
    """

    def __init__(self, horizon: int) -> None:
        self._kept, self._tried = [0.0] * horizon, [0.0] * horizon
        self._all_kept, self._all_tried = LIKELY * BELIEF, BELIEF

    @property
    def rates(self) -> list[float]:
        """Entry s - 1 is a_s."""
        common = self._all_kept / self._all_tried
        pairs = zip(self._kept, self._tried, strict=True)
        return [(kept + BELIEF * common) / (tried + BELIEF) for kept, tried in pairs]

    def observe(self, drafted: int, accepted: Sequence[int]) -> None:
        """Take a cycle in; draft s was tried where those before it were kept."""
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


class Measured:
    """As many drafts as maximise E(k) / C(k); plain where that is k = 0, with a try now and then.

    What drafting has cost more than plain decoding, C(k) less the tokens a row gained, is kept account of.
    The account starts with (`TOLERANCE` - `INTEREST`) `SPAN` forwards, earns `INTEREST` a token, and no cycle
    begins that it could not pay for if all drafts were refused. So, whatever is accepted and in whichever
    order, t tokens cost at most 3.2 + 1.005 t forwards: 3% over 128 tokens, 1% over 640. Gaps between
    tries double, so most of it is never spent.

    Args:
        costs: of this machine. horizon: drafts at most.
    """

    def __init__(self, costs: CycleCosts, horizon: int) -> None:
        self._costs = costs
        self._horizon = horizon
        self._acceptance = Acceptance(horizon)
        self._account = (TOLERANCE - INTEREST) * SPAN
        self._idle = 0
        self._gap = FIRST_GAP

    def cost(self, rows: int, drafts: int) -> float:
        """C(k): of a cycle, in plain forwards of as many rows."""
        return self._costs.cycle(rows, drafts) / self._costs.cycle(rows, 0)

    def rates(self, rows: int) -> list[float]:
        """E(k) / C(k) as expected now, k = 0..horizon."""
        return expected_rates(self._acceptance.rates, [self.cost(rows, k) for k in range(self._horizon + 1)])

    def _best(self, rows: int, *, least: int) -> int:
        """The k >= `least` of the highest rate among those the account can pay for; 0 if there is none."""
        rates = self.rates(rows)
        affordable = [
            k for k in range(least, self._horizon + 1) if self.cost(rows, k) - 1 <= self._account or k == 0
        ]
        return max(affordable, key=lambda k: rates[k], default=0)

    def drafts(self, rows: int) -> int:
        """See the class."""
        if self._idle >= self._gap:
            return self._best(rows, least=1)
        return self._best(rows, least=0)

    def observe(self, *, rows: int, drafted: int, accepted: Sequence[int]) -> None:
        """See `Policy`."""
        tokens = 1 + sum(accepted) / len(accepted)
        self._account += (1 + INTEREST) * tokens - self.cost(rows, drafted)
        if drafted == 0:
            self._idle += 1
            return
        self._acceptance.observe(drafted, accepted)
        if self._best(rows, least=0) > 0:
            self._gap = FIRST_GAP
        elif self._idle >= self._gap:
            self._gap = min(2 * self._gap, LONGEST_GAP)
        self._idle = 0


def expected_rates(acceptance: Sequence[float], costs: Sequence[float]) -> list[float]:
    """E(k) / C(k), k = 0..n, from a_1..a_n and C(0)..C(n)."""
    rates, tokens, path = [1.0 / costs[0]], 1.0, 1.0
    for chance, cost in zip(acceptance, costs[1:], strict=True):
        path *= chance
        tokens += path
        rates.append(tokens / cost)
    return rates

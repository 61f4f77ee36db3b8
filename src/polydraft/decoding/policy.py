"""How many tokens to draft in the next cycle: the number that gives most tokens per second, or none.

A cycle of k drafts costs C(k), in plain cycles, so C(0) = 1, and yields E(k) tokens a row on average, the
drafts kept and one from the base model. The rate E(k) / C(k) is what decoding gains over plain; k = 0 is
plain. E is learnt as the text grows (`acceptance`), C measured beforehand (`costs`). So a policy is a
function of what it was told alone, and equal seeds give equal texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from polydraft.decoding.acceptance import Expectation
from polydraft.errors import InputError

FIRST_GAP, LONGEST_GAP = 16, 512
"""Plain cycles before drafting is tried again: at first, and at most."""
SPAN = 128
"""Tokens over which a useless head may cost `TOLERANCE`; over longer texts it costs less."""
TOLERANCE = 0.02
INTEREST = 0.005
"""The part of each token of a longer text that a useless head may cost."""


class Policy(Protocol):
    """Asked before every cycle, told after it."""

    def drafts(self, rows: int, *, sampled: int = 0) -> int:
        """How many to draft in a cycle of `rows` texts, 0 for none; changes nothing.

        Args:
            sampled: of the rows, those whose tokens are drawn, or chosen from processed rows.
        """

    def observe(self, *, rows: int, drafted: int, accepted: Sequence[int], sampled: int = 0) -> None:
        """After a cycle: `drafted` per row, and how many of them each row kept."""


class Fixed:
    """The same number always."""

    def __init__(self, drafts: int) -> None:
        if drafts < 0:
            raise InputError(f"drafts must be 0 or more, got {drafts}")
        self._drafts = drafts

    def drafts(self, rows: int, *, sampled: int = 0) -> int:
        """That number."""
        return self._drafts

    def observe(self, *, rows: int, drafted: int, accepted: Sequence[int], sampled: int = 0) -> None:
        """Learn nothing."""


class CycleCosts(Protocol):
    """What `Measured` needs to know of a machine; `Costs` does."""

    def cycle(self, rows: int, drafts: int, *, sampled: int = 0) -> float:
        """Seconds of a cycle with that many drafts a row; `sampled` of the rows are."""


class Measured:
    """Drafts as many tokens as maximise E(k) / C(k); plain where that is k = 0, with a try now and then.

    What drafting has cost more than plain decoding, C(k) less the tokens a row gained, is kept account of.
    The account starts with (`TOLERANCE` - `INTEREST`) `SPAN` plain cycles, earns `INTEREST` a token, and no
    cycle begins that it could not pay for if all drafts were refused. So, whatever is accepted and in
    whichever order, t tokens cost at most 1.9 + 1.005 t plain cycles: 2% over 128 tokens, 1% over 384. Gaps
    between tries double, so most of it is never spent.

    Args:
        costs: of this machine. expectation: of what is drafted, for every number of drafts to choose from.
    """

    def __init__(self, costs: CycleCosts, expectation: Expectation) -> None:
        self._costs = costs
        self._expectation = expectation
        self._known: dict[tuple[int, int, int], float] = {}
        self._account = (TOLERANCE - INTEREST) * SPAN
        self._idle = 0
        self._gap = FIRST_GAP

    def cost(self, rows: int, drafts: int, *, sampled: int = 0) -> float:
        """C(k): of a cycle, in plain ones of as many rows."""
        key = rows, drafts, sampled
        if key not in self._known:
            plain = self._costs.cycle(rows, 0, sampled=sampled)
            self._known[key] = self._costs.cycle(rows, drafts, sampled=sampled) / plain
        return self._known[key]

    def _best(self, rows: int, sampled: int, *, least: int) -> int:
        """The k >= `least` of the highest rate among those the account can pay for; 0 if there is none."""
        best, highest = 0, 0.0
        for drafts, tokens in zip(self._expectation.sizes, self._expectation.tokens, strict=True):
            cost = self.cost(rows, drafts, sampled=sampled)
            if drafts >= least and (drafts == 0 or cost - 1 <= self._account) and tokens / cost > highest:
                best, highest = drafts, tokens / cost
        return best

    def drafts(self, rows: int, *, sampled: int = 0) -> int:
        """See the class."""
        if self._idle >= self._gap:
            return self._best(rows, sampled, least=1)
        return self._best(rows, sampled, least=0)

    def observe(self, *, rows: int, drafted: int, accepted: Sequence[int], sampled: int = 0) -> None:
        """See `Policy`."""
        tokens = 1 + sum(accepted) / len(accepted)
        cost = self.cost(rows, drafted, sampled=sampled)
        self._account += (1 + INTEREST) * tokens - cost
        if drafted == 0:
            self._idle += 1
            return
        self._expectation.observe(drafted, accepted)
        if self._best(rows, sampled, least=0) > 0:
            self._idle, self._gap = 0, FIRST_GAP
        elif self._idle >= self._gap and tokens < cost:  # a try that pays is followed by another
            self._idle, self._gap = 0, min(2 * self._gap, LONGEST_GAP)

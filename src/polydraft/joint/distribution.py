"""What every joint distribution over the next n tokens can be asked.

A member implements three queries (`start`, `row`, `advance`); probabilities, conditional rows, ancestral
sampling and the greedy chain follow from them here, by the chain rule
`q(x_1..x_n) = prod_s q(x_s | x_<s)`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

Warp = Callable[[Tensor, Tensor], Tensor]
"""(tokens so far (B, s) int64, log row (B, V)) -> the processed row (B, V), log scale, any norm.

A row with no finite entry, or with a NaN, ends the chain of its text: nothing can be drafted there."""


class Chain(NamedTuple):
    """Drafted chains of at most m <= n tokens.

    Attributes:
        tokens: (B, m) int64; after the length of a row they mean nothing.
        log_rows: (B, m, V) float, the exact normalised log rows the tokens were drawn from; None for
            an argmax chain, whose rows are one-hot.
        lengths: (B,) int64, how many tokens each row has; None where all have m.
    """

    tokens: Tensor
    log_rows: Tensor | None
    lengths: Tensor | None = None


def drawable(rows: Tensor) -> Tensor:
    """Log `rows` (..., V) normalised; -inf throughout where they hold a NaN or +inf, or no finite entry."""
    total = rows.logsumexp(-1, keepdim=True)
    return (rows - total).where(total.isfinite(), -torch.inf)


class JointDistribution(ABC):
    """A batch of B distributions over n positions of a vocabulary of V tokens, in log space.

    Normalised by construction. All tokens are indices into this vocabulary, int64.
    """

    horizon: int
    vocab_size: int
    batch_size: int
    device: torch.device

    @abstractmethod
    def start(self) -> Any:
        """The state before the first position: what the tokens so far say, here nothing.

        A state is a tensor, batch first, or a tuple of such.
        """

    @abstractmethod
    def row(self, state: Any, position: int) -> Tensor:
        """log q(x_s | x_<s) for the 0-based `position` s, given the state after x_<s; (B, V)."""

    @abstractmethod
    def advance(self, state: Any, position: int, tokens: Tensor) -> Any:
        """The state after `tokens` (B,) at 0-based `position`; -1 marks an unknown token."""

    @abstractmethod
    def select(self, rows: Tensor) -> JointDistribution:
        """The joint whose row i is row `rows[i]` of this one; rows (B',) int64, repeats allowed.

        `select_state` gives the states that go with it.
        """

    def token_log_prob(self, state: Any, position: int, tokens: Tensor) -> Tensor:
        """log q(x_s | x_<s) of `tokens` (B,) alone; (B,)."""
        return self.row(state, position).gather(-1, tokens[:, None]).squeeze(-1)

    def weights(self, state: Any, position: int) -> Tensor:
        """P(z_s = a | x_<s) of the components at the 0-based `position` s; (B, r), of ones where r is 1."""
        return torch.ones(self.batch_size, 1, device=self.device)

    def log_prob(self, tokens: Tensor) -> Tensor:
        """log q(x_1..x_s) = sum_j log q(x_j | x_<j) of the first s <= n tokens; (B, s) -> (B,).

        Raises:
            ValueError: no tokens, or more than n.
        """
        length = tokens.shape[1]
        if not 1 <= length <= self.horizon:
            raise ValueError(f"expected 1 to {self.horizon} tokens a row, got {length}")
        state = self.start()
        total = self.token_log_prob(state, 0, tokens[:, 0])
        for position in range(1, length):
            state = self.advance(state, position - 1, tokens[:, position - 1])
            total = total + self.token_log_prob(state, position, tokens[:, position])
        return total

    def conditional(self, prefix: Tensor) -> Tensor:
        """Exact log row of the token after `prefix`; (B, s), s < n -> (B, V).

        Raises:
            ValueError: the prefix has n tokens or more.
        """
        if prefix.shape[1] >= self.horizon:
            raise ValueError(
                f"prefix has {prefix.shape[1]} tokens; the horizon {self.horizon} leaves none to predict"
            )
        state = self.start()
        for position in range(prefix.shape[1]):
            state = self.advance(state, position, prefix[:, position])
        return self.row(state, prefix.shape[1])

    def sample(
        self,
        *,
        generator: torch.Generator | None = None,
        warp: Warp | None = None,
        length: int | None = None,
    ) -> Chain:
        """Ancestral sampling, with the rows the tokens were drawn from.

        Args:
            generator: source of randomness; torch's global one if None.
            warp: processes each row before its token is drawn; the returned rows are the processed
                ones, normalised, so they are exactly what was sampled from.
            length: tokens at most; n if None.
        """
        return self._chain(generator=generator, warp=warp, greedy=False, length=length)

    def argmax(self, *, warp: Warp | None = None, length: int | None = None) -> Chain:
        """The greedy chain: x_s = argmax q(x_s | x_<s), rows processed by `warp` first."""
        return self._chain(generator=None, warp=warp, greedy=True, length=length)

    def after(self, tokens: Tensor) -> JointDistribution:
        """The joint of positions 2..n given x_1 = `tokens` (B,); -1 marks an unknown token."""
        return Later(self, tokens)

    def _chain(
        self, *, generator: torch.Generator | None, warp: Warp | None, greedy: bool, length: int | None
    ) -> Chain:
        state = self.start()
        end = self.horizon if length is None else min(length, self.horizon)
        growing = Growing(self.batch_size, device=self.device)
        rows: list[Tensor] = []
        for position in range(end):
            row = self.row(state, position)
            if warp is not None:
                row = warp(growing.tokens, row)
            if not greedy:
                row = drawable(row)
            best = row.max(-1)
            growing.note(best.values)
            if warp is not None and growing.ended:
                break
            drawn = best.indices
            if not greedy:
                weights = row.exp().where(growing.alive[:, None], 1.0)
                drawn = torch.multinomial(weights, 1, generator=generator).squeeze(-1)
                rows.append(row)
            growing.append(drawn)
            if position + 1 < end:
                state = self.advance(state, position, drawn)
        if greedy:
            return growing.chain()
        empty = torch.empty(self.batch_size, 0, self.vocab_size, device=self.device)
        return growing.chain(torch.stack(rows, dim=1) if rows else empty)


class Growing:
    """Chains of a batch while they grow, of which each may end on its own.

    Attributes:
        tokens: (B, s) int64. alive: (B,) bool, the chains that have not ended.
    """

    def __init__(self, batch_size: int, *, device: torch.device) -> None:
        self.tokens = torch.empty(batch_size, 0, dtype=torch.long, device=device)
        self.alive = torch.ones(batch_size, dtype=torch.bool, device=device)
        self._lengths = torch.zeros(batch_size, dtype=torch.long, device=device)

    def note(self, best: Tensor) -> None:
        """The largest entries (B,) of the next rows: a chain ends where this is no finite number."""
        self.alive = self.alive & best.isfinite()

    @property
    def ended(self) -> bool:
        """Whether all have ended; waits for the device."""
        return not bool(self.alive.any())

    def append(self, tokens: Tensor) -> None:
        """The next tokens (B,); those of ended chains do not count."""
        self.tokens = torch.cat([self.tokens, tokens[:, None]], dim=-1)
        self._lengths = self._lengths + self.alive

    def chain(self, log_rows: Tensor | None = None) -> Chain:
        """What has grown."""
        return Chain(self.tokens, log_rows, self._lengths)


class Later(JointDistribution):
    """What a joint says of its positions 2..n once x_1 is known.

    The paper's use of the token already sampled: it enters through the posterior over components.
    """

    def __init__(self, joint: JointDistribution, first: Tensor) -> None:
        self.horizon, self.vocab_size = joint.horizon - 1, joint.vocab_size
        self.batch_size, self.device = joint.batch_size, joint.device
        self._joint, self._first = joint, first

    def start(self) -> Any:
        """The state of the whole joint after its first token."""
        return self._joint.advance(self._joint.start(), 0, self._first)

    def row(self, state: Any, position: int) -> Tensor:
        """Return the whole joint's row one position later, (B, V)."""
        return self._joint.row(state, position + 1)

    def advance(self, state: Any, position: int, tokens: Tensor) -> Any:
        """Advance the whole joint one position later."""
        return self._joint.advance(state, position + 1, tokens)

    def select(self, rows: Tensor) -> Later:
        """Select these rows of the whole joint."""
        return Later(self._joint.select(rows), self._first[rows])

    def token_log_prob(self, state: Any, position: int, tokens: Tensor) -> Tensor:
        """Return the whole joint's log-probability one position later, (B,)."""
        return self._joint.token_log_prob(state, position + 1, tokens)

    def weights(self, state: Any, position: int) -> Tensor:
        """Return the whole joint's weights one position later, (B, r)."""
        return self._joint.weights(state, position + 1)

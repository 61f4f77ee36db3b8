"""What every joint distribution over the next n tokens can be asked.

A member implements four queries (`start`, `row`, `advance`, `log_prob`); conditional rows, ancestral
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

A row with no finite entry ends the chain: nothing can be drafted there."""


class Chain(NamedTuple):
    """A drafted chain of m <= n tokens.

    Attributes:
        tokens: (B, m) int64.
        log_rows: (B, m, V) float, the exact normalised log rows the tokens were drawn from; None for
            an argmax chain, whose rows are one-hot.
    """

    tokens: Tensor
    log_rows: Tensor | None


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
        """The state before the first position: what the tokens so far say, here nothing."""

    @abstractmethod
    def row(self, state: Any, position: int) -> Tensor:
        """log q(x_s | x_<s) for the 0-based `position` s, given the state after x_<s; (B, V)."""

    @abstractmethod
    def advance(self, state: Any, position: int, tokens: Tensor) -> Any:
        """The state after `tokens` (B,) at 0-based `position`."""

    @abstractmethod
    def log_prob(self, tokens: Tensor) -> Tensor:
        """log q(x_1..x_s) of the first s <= n tokens, later ones summed out; (B, s) -> (B,)."""

    def conditional(self, prefix: Tensor) -> Tensor:
        """Exact log row of the token after `prefix`; (B, s), s < n -> (B, V)."""
        if prefix.shape[1] >= self.horizon:
            raise ValueError(
                f"prefix has {prefix.shape[1]} tokens; the horizon {self.horizon} leaves none to predict"
            )
        state = self.start()
        for position in range(prefix.shape[1]):
            state = self.advance(state, position, prefix[:, position])
        return self.row(state, prefix.shape[1])

    def sample(self, *, generator: torch.Generator | None = None, warp: Warp | None = None) -> Chain:
        """Ancestral sampling, with the rows the tokens were drawn from.

        Args:
            generator: source of randomness; torch's global one if None.
            warp: processes each row before its token is drawn; the returned rows are the processed
                ones, normalised, so they are exactly what was sampled from.
        """
        return self._chain(generator=generator, warp=warp, greedy=False)

    def argmax(self, *, warp: Warp | None = None) -> Chain:
        """The greedy chain: x_s = argmax q(x_s | x_<s), rows processed by `warp` first."""
        return self._chain(generator=None, warp=warp, greedy=True)

    def _chain(self, *, generator: torch.Generator | None, warp: Warp | None, greedy: bool) -> Chain:
        state = self.start()
        tokens = torch.empty(self.batch_size, 0, dtype=torch.long, device=self.device)
        rows: list[Tensor] = []
        for position in range(self.horizon):
            row = self.row(state, position)
            if warp is not None:
                row = warp(tokens, row)
                if not bool(row.isfinite().any(-1).all()):
                    break
            if greedy:
                drawn = row.argmax(-1)
            else:
                row = row if warp is None else row.log_softmax(-1)
                drawn = torch.multinomial(row.exp(), 1, generator=generator).squeeze(-1)
                rows.append(row)
            tokens = torch.cat([tokens, drawn[:, None]], dim=-1)
            if position + 1 < self.horizon:
                state = self.advance(state, position, drawn)
        if greedy:
            return Chain(tokens, None)
        empty = torch.empty(self.batch_size, 0, self.vocab_size, device=self.device)
        return Chain(tokens, torch.stack(rows, dim=1) if rows else empty)

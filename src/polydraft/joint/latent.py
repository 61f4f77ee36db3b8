"""The hidden process of a joint: which component each position is drawn from.

    q(x_1..x_n) = sum_z P(z_1..z_n) prod_s P_{z_s}^(s)(x_s)

A family of joints is a family of P(z_1..z_n). It knows no vocabulary: tokens reach it as the
log-likelihoods that the components give them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor


class Latent(ABC):
    """A batch of B processes over n positions and r components, in log space, normalised.

    A log-likelihood of zero for all components is an unknown token.
    """

    horizon: int
    rank: int
    batch_size: int
    device: torch.device

    @abstractmethod
    def start(self) -> Any:
        """The state before the first token: a tensor, batch first, or a tuple of such."""

    @abstractmethod
    def log_weights(self, state: Any, position: int) -> Tensor:
        """log P(z_s = a | x_<s) for the 0-based `position` s, given the state after x_<s; (B, r)."""

    @abstractmethod
    def advance(self, state: Any, position: int, log_likelihood: Tensor) -> Any:
        """The state after a token to which component a gave `log_likelihood` (B, r), log P_a^(s)(x_s)."""

    @abstractmethod
    def select(self, rows: Tensor) -> Latent:
        """The process whose row i is row `rows[i]` of this one; rows (B',) int64, repeats allowed."""

    @abstractmethod
    def routed(self, count: int) -> tuple[Latent, Tensor]:
        """The process confined to the `count` likeliest components of each position.

        Returns:
            the process, of rank `count` and normalised again, and the components it kept, (B, n, count)
            int64, ascending.
        """

    def marginals(self) -> Tensor:
        """log P(z_s = a) of every position; (B, n, r)."""
        state, out = self.start(), []
        silent = torch.zeros(self.batch_size, self.rank, device=self.device)
        for position in range(self.horizon):
            weights = self.log_weights(state, position)
            out.append(weights)
            if position + 1 < self.horizon:
                state = self.advance(state, position, silent.to(weights.dtype))
        return torch.stack(out, dim=1)


def select_state(state: Any, rows: Tensor) -> Any:
    """The state whose row i is row `rows[i]` of `state`: a tensor, batch first, or a tuple of states."""
    if isinstance(state, Tensor):
        return state[rows]
    parts = (select_state(part, rows) for part in state)
    return type(state)(*parts) if hasattr(state, "_fields") else tuple(parts)


def top(log_weights: Tensor, count: int) -> Tensor:
    """Indices of the `count` largest weights, ascending; (..., r) -> (..., count)."""
    return log_weights.topk(count, dim=-1).indices.sort(dim=-1).values


def confine(log_rows: Tensor, source: Tensor, target: Tensor) -> Tensor:
    """Transitions log P(b | a) kept between `source` (..., k) and `target` (..., k), normalised again.

    log_rows (..., r, r) -> (..., k, k).
    """
    rank = log_rows.shape[-1]
    rows = log_rows.gather(-2, source[..., None].expand(*source.shape, rank))
    return rows.gather(-1, target[..., None, :].expand(*rows.shape[:-1], target.shape[-1])).log_softmax(-1)

"""The joint of every member: at each position a mixture, whose weights a hidden process decides.

log q(x_s | x_<s) = logsumexp_a(log P(z_s = a | x_<s) + log P_a^(s)(x_s | x_{s-1}))
P_a^(s)(. | x_{s-1}) = softmax(logits[s, a] + bias(s, x_{s-1}))
"""

from __future__ import annotations

import copy
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from polydraft.joint.distribution import JointDistribution
from polydraft.joint.latent import Latent

Rows = Tensor | slice
"""Which rows of a batch: indices (B',) int64, or a slice."""
ALL = slice(None)


class Bias(Protocol):
    """What the token before adds to the logits."""

    def __call__(self, position: int, before: Tensor, rows: Rows = ALL) -> Tensor:
        """(B', V) or (B', r, V), for the 0-based `position` s >= 1 after tokens x_{s-1} (B',), -1 unknown.

        Args:
            rows: which row of the batch each token belongs to.
        """


class State(NamedTuple):
    """What the tokens so far say: of the process, and the log factors (B, r, V) of the next position."""

    latent: Any
    log_factors: Tensor


class LatentMixture(JointDistribution):
    """A hidden process over components, and what each component says at each position.

    Args:
        latent: the process, over n positions and r components.
        logits: (B, n, r, V), of the components; normalised over V here, in at least float32.
        bias: from the token before; None for components that do not see it.

    Raises:
        ValueError: shapes that do not fit each other.
    """

    def __init__(self, latent: Latent, logits: Tensor, bias: Bias | None = None) -> None:
        expected = (latent.batch_size, latent.horizon, latent.rank)
        if logits.dim() != 4 or logits.shape[:3] != expected:
            raise ValueError(
                f"logits must be (B, n, r, V), (B, n, r) {expected} as in the process, "
                f"got {tuple(logits.shape)}"
            )
        self.latent = latent
        self.logits = logits
        self.bias = bias
        self.batch_size, self.horizon, self.rank, self.vocab_size = logits.shape
        self.device = logits.device
        self._rows: Rows = ALL

    def select(self, rows: Tensor) -> LatentMixture:
        """See `JointDistribution`; `logits` stay those of the whole batch, and none of them is copied."""
        out = copy.copy(self)
        out.latent = self.latent.select(rows)
        out._rows = rows if isinstance(self._rows, slice) else self._rows[rows]
        out.batch_size = len(rows)
        return out

    @property
    def log_factors(self) -> Tensor:
        """log P_a^(s), leaving the bias out; (B, n, r, V)."""
        return torch.stack([self._log_factors(s, None) for s in range(self.horizon)], dim=1)

    def _log_factors(self, position: int, before: Tensor | None) -> Tensor:
        """log P_a^(s)(. | before) of one position; (B, r, V)."""
        logits = self.logits[self._rows, position]
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        if before is not None and self.bias is not None:
            bias = self.bias(position, before, self._rows)
            logits = logits + (bias[:, None] if bias.dim() == 2 else bias)
        return logits.log_softmax(-1)

    def start(self) -> State:
        """The process before any token, and the first position's factors."""
        return State(self.latent.start(), self._log_factors(0, None))

    def row(self, state: State, position: int) -> Tensor:
        """The mixture row of the module's docstring; (B, V)."""
        if self.rank == 1:
            return state.log_factors[:, 0]
        weights = self.latent.log_weights(state.latent, position)
        return torch.logsumexp(weights[:, :, None] + state.log_factors, dim=1)

    def weights(self, state: State, position: int) -> Tensor:
        """See `JointDistribution`."""
        return self.latent.log_weights(state.latent, position).exp()

    def token_log_prob(self, state: State, position: int, tokens: Tensor) -> Tensor:
        """The same of `tokens` (B,) alone; (B,)."""
        weights = self.latent.log_weights(state.latent, position)
        return torch.logsumexp(weights + _of_tokens(state.log_factors, tokens), dim=-1)

    def advance(self, state: State, position: int, tokens: Tensor) -> State:
        """Tell the process what each component gave to `tokens` (B,)."""
        known = (tokens >= 0)[:, None]
        likelihood = torch.where(known, _of_tokens(state.log_factors, tokens.clamp(min=0)), 0.0)
        latent = self.latent.advance(state.latent, position, likelihood)
        later = position + 1 < self.horizon
        return State(latent, self._log_factors(position + 1, tokens) if later else state.log_factors[:, :0])


def _of_tokens(log_factors: Tensor, tokens: Tensor) -> Tensor:
    """What every component gives to its token; (B, r, V), (B,) -> (B, r)."""
    index = tokens[:, None, None].expand(-1, log_factors.shape[1], 1)
    return log_factors.gather(-1, index).squeeze(-1)

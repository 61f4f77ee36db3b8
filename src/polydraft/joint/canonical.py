"""Rank-r canonical (CP) decomposition of the joint over the next n tokens.

    q(x_1..x_n) = sum_a w_a prod_s P_a^(s)(x_s),   a = 1..r

Basharin, Chertkov, Oseledets, arXiv 2410.17765, section 3. A mixture of r components (experts), each
a product of n independent categoricals; r = 1 is the independent head of Gloeckle et al. 2024.
"""

from __future__ import annotations

import torch
from torch import Tensor

from polydraft.joint.distribution import JointDistribution


class Canonical(JointDistribution):
    """CP joint from its log weights and log factors.

    Args:
        log_weights: (B, r), log w; normalised over r.
        log_factors: (B, n, r, V), log P_a^(s); normalised over V.

    Raises:
        ValueError: shapes that do not fit each other.
    """

    def __init__(self, log_weights: Tensor, log_factors: Tensor) -> None:
        if log_factors.dim() != 4 or log_weights.shape != (log_factors.shape[0], log_factors.shape[2]):
            raise ValueError(
                f"log_weights must be (B, r) and log_factors (B, n, r, V), "
                f"got {tuple(log_weights.shape)} and {tuple(log_factors.shape)}"
            )
        self.log_weights = log_weights
        self.log_factors = log_factors
        self.batch_size, self.horizon, self.rank, self.vocab_size = log_factors.shape
        self.device = log_factors.device

    @classmethod
    def from_logits(cls, gate: Tensor, logits: Tensor) -> Canonical:
        """Normalise `gate` (B, r) over r and `logits` (B, n, r, V) over V, in at least float32."""
        dtype = torch.promote_types(gate.dtype, torch.float32)
        return cls(gate.to(dtype).log_softmax(-1), logits.to(dtype).log_softmax(-1))

    def token_log_factors(self, position: int, tokens: Tensor) -> Tensor:
        """log P_a^(s)(x_s) of every component; tokens (B,) -> (B, r)."""
        factors = self.log_factors[:, position]
        index = tokens[:, None, None].expand(-1, self.rank, 1)
        return factors.gather(-1, index).squeeze(-1)

    def start(self) -> Tensor:
        """The prior over components, log w; (B, r)."""
        return self.log_weights

    def row(self, state: Tensor, position: int) -> Tensor:
        """log q(x_s | x_<s) = logsumexp_a(log w_a(x_<s) + log P_a^(s)(x_s)); (B, V)."""
        if self.rank == 1:
            return self.log_factors[:, position, 0]
        return torch.logsumexp(state[:, :, None] + self.log_factors[:, position], dim=1)

    def advance(self, state: Tensor, position: int, tokens: Tensor) -> Tensor:
        """Posterior over components: w_a <- w_a P_a^(s)(x_s), renormalised; (B, r)."""
        return (state + self.token_log_factors(position, tokens)).log_softmax(-1)

    def log_prob(self, tokens: Tensor) -> Tensor:
        """log q(x_1..x_s) = logsumexp_a(log w_a + sum_s log P_a^(s)(x_s)); (B, s) -> (B,)."""
        if not 1 <= tokens.shape[1] <= self.horizon:
            raise ValueError(f"expected 1 to {self.horizon} tokens a row, got {tokens.shape[1]}")
        terms = [self.token_log_factors(s, tokens[:, s]) for s in range(tokens.shape[1])]
        return torch.logsumexp(self.log_weights + torch.stack(terms).sum(0), dim=-1)

    def after(self, tokens: Tensor) -> Canonical:
        """The joint of positions 2..n given x_1 = `tokens` (B,); a row with token -1 tells nothing.

        The paper's use of the token already sampled: it enters through the posterior over components.
        """
        known = self.advance(self.log_weights, 0, tokens.clamp(min=0))
        weights = torch.where((tokens >= 0)[:, None], known, self.log_weights)
        return Canonical(weights, self.log_factors[:, 1:])

"""Rank-r canonical (CP) decomposition of the joint over the next n tokens.

    q(x_1..x_n) = sum_a w_a prod_s P_a^(s)(x_s),   a = 1..r

Basharin, Chertkov, Oseledets, arXiv 2410.17765, section 3. A mixture of r components (experts), each
a product of n independent categoricals; r = 1 is the independent head of Gloeckle et al. 2024.
"""

from __future__ import annotations

from torch import Tensor

from polydraft.joint.gate import LinearGate
from polydraft.joint.latent import Latent, top
from polydraft.joint.registry import Member, register


class Canonical(Latent):
    """One component for all positions.

    Args:
        log_weights: (B, r), log w; normalised over r. horizon: n.
    """

    def __init__(self, log_weights: Tensor, horizon: int) -> None:
        self.prior = log_weights
        self.batch_size, self.rank = log_weights.shape
        self.horizon, self.device = horizon, log_weights.device

    def start(self) -> Tensor:
        """The prior over components, log w; (B, r)."""
        return self.prior

    def log_weights(self, state: Tensor, position: int) -> Tensor:
        """The posterior, whatever the position; (B, r)."""
        return state

    def advance(self, state: Tensor, position: int, log_likelihood: Tensor) -> Tensor:
        """Posterior over components: w_a <- w_a P_a^(s)(x_s), renormalised; (B, r)."""
        return (state + log_likelihood).log_softmax(-1)

    def select(self, rows: Tensor) -> Canonical:
        """See `Latent`."""
        return Canonical(self.prior[rows], self.horizon)

    def routed(self, count: int) -> tuple[Canonical, Tensor]:
        """The `count` components of largest prior."""
        kept = top(self.prior, count)
        prior = self.prior.gather(-1, kept).log_softmax(-1)
        return Canonical(prior, self.horizon), kept[:, None].expand(-1, self.horizon, -1)


class CanonicalGate(LinearGate):
    """The paper's gate: w = softmax(W u + b)."""

    def forward(self, features: Tensor, noise: float = 0.0) -> Canonical:
        """features (B, d)."""
        return Canonical(self.prior(features, noise), self.positions)


register(Member(name="cp", gate=CanonicalGate))

"""Independent positions: one component, a product of n categoricals (Gloeckle et al. 2024; Medusa).

q(x_1..x_n) = prod_s P^(s)(x_s)
"""

from __future__ import annotations

import torch
from torch import Tensor

from polydraft.joint.canonical import Canonical
from polydraft.joint.gate import Gate
from polydraft.joint.registry import Member, register


class Independent(Canonical):
    """The process of one component: CP of rank 1.

    Args:
        batch_size: B. horizon: n.
    """

    def __init__(self, batch_size: int, horizon: int, *, device: torch.device | None = None) -> None:
        super().__init__(torch.zeros(batch_size, 1, device=device), horizon)


class IndependentGate(Gate):
    """Nothing to decide and nothing to learn."""

    def reset(self) -> None:
        """No parameters."""

    def scores(self, features: Tensor) -> Tensor:
        """Zeros; (B, d) -> (B, 1)."""
        return torch.zeros(features.shape[0], 1, device=features.device)

    def forward(self, features: Tensor, noise: float = 0.0) -> Independent:
        """features (B, d)."""
        return Independent(features.shape[0], self.positions, device=features.device)

    def take(self, trained: Gate, index: Tensor) -> None:
        """No parameters."""


register(Member(name="independent", gate=IndependentGate, single=True))

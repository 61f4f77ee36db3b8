"""What the heads of stepwise members run once per draft."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from torch import Tensor, nn

from polydraft.heads.past import Past
from polydraft.joint import Stepper

if TYPE_CHECKING:
    from polydraft.heads.draft_head import DraftHead


class Steps(nn.Module, ABC):
    """The module of a stepwise member; it may have parameters of its own, or use the head's."""

    @abstractmethod
    def stepper(self, head: DraftHead, features: Tensor, past: Past | None) -> Stepper:
        """The steps of B chains, from u (B, d) on.

        Args:
            past: what they see of their texts, for `DraftConfig.recurrent`.
        """

    def reset(self) -> None:
        """Set initial values."""


class StepMaps(nn.Module):
    """z of all positions, which the steps of a chain have made already; in place of maps."""

    def __init__(self, positions: int) -> None:
        super().__init__()
        self.positions = positions

    def forward(self, features: Tensor) -> Tensor:
        """`DraftHead.unrolled` (B, n d) -> (B, n, 1, d)."""
        out: Tensor = features.unflatten(-1, (self.positions, 1, -1))
        return out

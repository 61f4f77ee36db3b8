"""How much each term of the loss counts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class RowWeights(NamedTuple):
    """Coefficients of the terms that hold a conditional row q against the base model's row p.

    Attributes:
        kl: of the Kullback-Leibler divergence. tv: of the total variation; both in `position_reference`.
    """

    kl: float
    tv: float


@dataclass(frozen=True, kw_only=True)
class LossWeights:
    """Coefficients of the terms of the loss; `chunk_losses` and `terms` have the formulas.

    Attributes:
        nll: joint negative log-likelihood of the text (the paper's loss). By the chain rule this is the
            cross-entropy of the conditional rows against the text's own tokens.
        kl: divergence of the conditional rows from the base model's rows (distillation); has the gradient
            of the cross-entropy against those rows.
        tv: total variation between them, the rate at which verification rejects drafts.
        balance: load balancing over components, Switch-Transformer form.
        z_loss: of the gate's scores, ST-MoE form; keeps them small.
        discount: gamma; position s of a row counts gamma^s, s = 0..n-1.
        gate_noise: deviation of normal noise on the gate's scores while training.
    """

    nll: float = 1.0
    kl: float = 0.0
    tv: float = 0.0
    balance: float = 0.01
    z_loss: float = 0.0
    discount: float = 1.0
    gate_noise: float = 0.0

    @property
    def rows(self) -> RowWeights:
        """Those of the terms that need the base model's rows."""
        return RowWeights(kl=self.kl, tv=self.tv)

    @property
    def needs_teacher(self) -> bool:
        """Whether any term needs the base model's rows."""
        return self.kl > 0 or self.tv > 0


LOSSES = {
    "joint": LossWeights(nll=1.0),
    "distill": LossWeights(nll=0.1, kl=0.9),
    "tv": LossWeights(nll=0.1, tv=0.9),
}
"""Presets; that of "tv" is DSpark's (DeepSeek, 2026)."""
TERMS = ("nll", "kl", "tv")
"""What a preset gives weights to."""

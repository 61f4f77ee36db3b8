"""Members that run a module once per draft: each row depends on all tokens before it, step by step.

    z_1 = first step,   z_{s+1} = step(z_s, all before, x_s),   q(x_s | x_<s) = softmax(U' z_s)

The drafters of Hydra (Ankner et al. 2024, arXiv 2402.05109) and EAGLE (Li et al. 2024, arXiv 2401.15077).
They cost a pass of their module per draft, and one per level of a tree, where other members run once a cycle.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from polydraft.joint.distribution import JointDistribution
from polydraft.joint.independent import IndependentGate
from polydraft.joint.registry import Member, register

Unembed = Callable[[Tensor, int], Tensor]
"""(z (B, d), 0-based position) -> logits (B, V), float32 or wider."""


class Step(NamedTuple):
    """Where a batch of chains is.

    Attributes:
        z: (B, d), of the next position. memory: what later steps need of those before; a tensor, batch
            first, or a tuple of such.
    """

    z: Tensor
    memory: Any


class Stepper(Protocol):
    """What goes from a token to the next z, for B chains."""

    batch_size: int
    device: torch.device

    def start(self) -> Step:
        """The first step, before any token."""

    def advance(self, step: Step, position: int, tokens: Tensor) -> Step:
        """The step after `tokens` (B,) int64 at 0-based `position`; -1 marks an unknown token."""

    def select(self, rows: Tensor) -> Stepper:
        """The stepper whose row i is row `rows[i]` of this one; rows (B',) int64, repeats allowed."""


class StepwiseJoint(JointDistribution):
    """One component, whose rows are made when the tokens before them are known.

    Args:
        horizon: n. vocab_size: V, of what `unembed` gives.
    """

    rank = 1

    def __init__(self, stepper: Stepper, unembed: Unembed, *, horizon: int, vocab_size: int) -> None:
        self._stepper, self._unembed = stepper, unembed
        self.horizon, self.vocab_size = horizon, vocab_size
        self.batch_size, self.device = stepper.batch_size, stepper.device

    def start(self) -> Step:
        """The first step."""
        return self._stepper.start()

    def row(self, state: Step, position: int) -> Tensor:
        """log softmax(U' z_s); (B, V)."""
        return self._unembed(state.z, position).log_softmax(-1)

    def advance(self, state: Step, position: int, tokens: Tensor) -> Step:
        """The next step; after the last position there is none."""
        return self._stepper.advance(state, position, tokens) if position + 1 < self.horizon else state

    def select(self, rows: Tensor) -> StepwiseJoint:
        """See `JointDistribution`."""
        stepper = self._stepper.select(rows)
        return StepwiseJoint(stepper, self._unembed, horizon=self.horizon, vocab_size=self.vocab_size)


def unrolled(stepper: Stepper, tokens: Tensor) -> Tensor:
    """z of all positions along given tokens, as training sees them; (B, n) -> (B, n, d)."""
    step = stepper.start()
    found = [step.z]
    for position in range(tokens.shape[1] - 1):
        step = stepper.advance(step, position, tokens[:, position])
        found.append(step.z)
    return torch.stack(found, dim=1)


register(Member(name="sequential", gate=IndependentGate, steps=True, single=True))
register(Member(name="recurrent", gate=IndependentGate, steps=True, single=True))

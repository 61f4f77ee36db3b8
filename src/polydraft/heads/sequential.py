"""A small network per position, over the embeddings of all drafts before it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import rms_norm, silu

from polydraft.heads.past import Past
from polydraft.heads.steps import Steps
from polydraft.joint import Step
from polydraft.joint.gate import last_repeated

if TYPE_CHECKING:
    from polydraft.heads.draft_head import DraftHead


class Network(nn.Module):
    """D silu(A x); (B, inputs) -> (B, d)."""

    def __init__(self, inputs: int, width: int, hidden_size: int) -> None:
        super().__init__()
        self.inner = nn.Linear(inputs, width, bias=False)
        self.outer = nn.Linear(width, hidden_size, bias=False)

    def forward(self, seen: Tensor) -> Tensor:
        """See the class."""
        out: Tensor = self.outer(silu(self.inner(seen)))
        return out


class Sequential(Steps):
    """z_s = u + D_s silu(A_s [norm(u); norm(E x_1); ..; norm(E x_{s-1})]), one D_s, A_s per position.

    The sequentially dependent heads of Hydra (Ankner et al. 2024, arXiv 2402.05109), with the base model's
    own unembedding for all. D_s starts at zero, so z starts as u.

    Args:
        hidden_size: d. width: rows of A_s. positions: n.
    """

    def __init__(self, hidden_size: int, width: int, positions: int) -> None:
        super().__init__()
        sizes = ((1 + s) * hidden_size for s in range(positions))
        self.networks = nn.ModuleList(Network(size, width, hidden_size) for size in sizes)

    def network(self, position: int) -> Network:
        """Return the network of a 0-based position."""
        found = self.networks[position]
        assert isinstance(found, Network)
        return found

    def reset(self) -> None:
        """Random A_s, D_s = 0."""
        for s in range(len(self.networks)):
            inner = self.network(s).inner
            nn.init.normal_(inner.weight, std=inner.in_features**-0.5)
            nn.init.zeros_(self.network(s).outer.weight)

    @torch.no_grad()
    def take(self, trained: Sequential) -> None:
        """Start from another one of the same width, position by position; further ones start as its last.

        They see nothing yet of the drafts that it does not see.
        """
        for s, which in enumerate(last_repeated(len(self.networks), len(trained.networks)).tolist()):
            own, old = self.network(s), trained.network(which)
            own.inner.weight.zero_()
            own.inner.weight[:, : old.inner.in_features] = old.inner.weight
            own.outer.weight.copy_(old.outer.weight)

    def stepper(self, head: DraftHead, features: Tensor, past: Past | None) -> SequentialStepper:
        """See `Steps`."""
        return SequentialStepper(self, head, features)


class SequentialStepper:
    """See `polydraft.joint.Stepper`; what it remembers is u and what A_s reads."""

    def __init__(self, steps: Sequential, head: DraftHead, features: Tensor) -> None:
        self._steps, self._head, self._features = steps, head, features
        self.batch_size, self.device = len(features), features.device

    def start(self) -> Step:
        """From u alone."""
        return self._step(self._features, rms_norm(self._features, self._features.shape[-1:]), 0)

    def advance(self, step: Step, position: int, tokens: Tensor) -> Step:
        """With one embedding more."""
        features, seen = step.memory
        told = self._head.told(tokens)
        return self._step(features, torch.cat([seen, rms_norm(told, told.shape[-1:])], -1), position + 1)

    def select(self, rows: Tensor) -> SequentialStepper:
        """See `polydraft.joint.Stepper`."""
        return SequentialStepper(self._steps, self._head, self._features[rows])

    def _step(self, features: Tensor, seen: Tensor, position: int) -> Step:
        return Step(features + self._steps.network(position)(seen), (features, seen))

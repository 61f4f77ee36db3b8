"""Modules that turn features into a hidden process; every member brings one."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from polydraft.joint.latent import Latent

INIT_STD = 0.02
STAY = 0.98
"""Probability of keeping the component, where transitions start."""


class Gate(nn.Module, ABC):
    """What decides over components; the base of every member's module.

    Args:
        hidden_size: d, width of the features. rank: r. positions: n, of the joint.
    """

    def __init__(self, hidden_size: int, rank: int, positions: int) -> None:
        super().__init__()
        self.hidden_size, self.rank, self.positions = hidden_size, rank, positions

    @abstractmethod
    def reset(self) -> None:
        """Set initial values."""

    @abstractmethod
    def scores(self, features: Tensor) -> Tensor:
        """Scores whose softmax is the prior over components, at least float32; (B, d) -> (B, r)."""

    @abstractmethod
    def forward(self, features: Tensor, noise: float = 0.0) -> Latent:
        """The process of every row; features (B, d).

        Args:
            noise: deviation of normal noise on the scores (training).
        """

    @abstractmethod
    def take(self, trained: Gate, index: Tensor) -> None:
        """Start from another gate, where it has what this one needs: component a is its `index[a]`."""


class LinearGate(Gate):
    """Prior over components, w = softmax(W u + b), near even at the start."""

    def __init__(self, hidden_size: int, rank: int, positions: int) -> None:
        super().__init__(hidden_size, rank, positions)
        self.weight = nn.Parameter(torch.empty(rank, hidden_size))
        self.bias = nn.Parameter(torch.empty(rank))

    def reset(self) -> None:
        """Small random weights, no bias."""
        nn.init.normal_(self.weight, std=INIT_STD * self.hidden_size**-0.5)
        nn.init.zeros_(self.bias)

    def scores(self, features: Tensor) -> Tensor:
        """W u + b; (B, d) -> (B, r)."""
        out = nn.functional.linear(features, self.weight, self.bias)
        return out.to(torch.promote_types(out.dtype, torch.float32))

    def prior(self, features: Tensor, noise: float = 0.0) -> Tensor:
        """log w, with noise on its scores; (B, d) -> (B, r)."""
        scores = self.scores(features)
        if noise > 0:
            scores = scores + noise * torch.randn_like(scores)
        return scores.log_softmax(-1)

    @torch.no_grad()
    def take(self, trained: Gate, index: Tensor) -> None:
        """Copies of one component share its weight evenly."""
        if isinstance(trained, LinearGate):
            copies = _copies(index, trained.bias)
            self.weight.copy_(trained.weight[index])
            self.bias.copy_(trained.bias[index] - copies)


class Transitions(nn.Module):
    """Row-stochastic r x r matrices from the features, near the identity at the start; log space.

        T_e[a, b] = softmax_b(W_e u + B_e)[a, b]

    Args:
        hidden_size: d. rank: r. count: matrices.
    """

    def __init__(self, hidden_size: int, rank: int, count: int) -> None:
        super().__init__()
        self.shape = (count, rank, rank)
        self.weight = nn.Parameter(torch.empty(count * rank * rank, hidden_size))
        self.bias = nn.Parameter(torch.empty(self.shape))

    def reset(self) -> None:
        """The same matrix for all features: `STAY` on the diagonal, the rest even."""
        rank = self.shape[-1]
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)
        if rank > 1:
            with torch.no_grad():
                self.bias.diagonal(dim1=1, dim2=2).fill_(torch.tensor(STAY * (rank - 1) / (1 - STAY)).log())

    def forward(self, features: Tensor) -> Tensor:
        """(B, d) -> (B, count, r, r), log T."""
        out = nn.functional.linear(features, self.weight).unflatten(-1, self.shape) + self.bias
        log_rows: Tensor = out.to(torch.promote_types(out.dtype, torch.float32)).log_softmax(-1)
        return log_rows

    @torch.no_grad()
    def take(self, trained: Transitions, index: Tensor) -> None:
        """Start from `trained`, in order, its last matrix repeated: component a is its `index[a]`.

        Of no matrices, or of one component, there is nothing to take.
        """
        if not trained.shape[0] or trained.shape[-1] == 1:
            return
        which = last_repeated(self.shape[0], trained.shape[0])
        copies = _copies(index, trained.bias)
        old = trained.weight.unflatten(0, trained.shape)[which]
        self.weight.copy_(old[:, index][:, :, index].flatten(0, 2))
        self.bias.copy_(trained.bias[which][:, index][:, :, index] - copies)


def _copies(index: Tensor, like: Tensor) -> Tensor:
    """log of how often each entry of `index` occurs in it, on the device of `like`; (r,) -> (r,) float."""
    return index.bincount()[index].to(like.device, torch.float32).log()


def last_repeated(count: int, available: int) -> Tensor:
    """Indices 0, 1, ... of `count` things out of `available`, the last one as often as it takes; int64."""
    return torch.arange(count).clamp(max=available - 1)

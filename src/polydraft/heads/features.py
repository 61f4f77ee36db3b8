"""From the base model's hidden state to the features u_t that the joint is computed from."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import rms_norm, silu


class FusedFeatures(nn.Module):
    """u_t = h_t + W_down(silu(W_gate z) * W_up z), z = [norm(h_t); norm(h_t^k) ..; norm(E x[t+1])].

    A gated layer over the hidden state, those of further layers k, and the embedding of the token sampled
    from it; all are RMS-normalised, since their scales differ. W_down starts at zero, so u starts as h.

    Args:
        hidden_size: d. feature_size: width of the gated layer. layers: how many further ones are read.
    """

    def __init__(self, hidden_size: int, feature_size: int, layers: int = 0) -> None:
        super().__init__()
        self.size = hidden_size
        self.up = nn.Linear((2 + layers) * hidden_size, 2 * feature_size, bias=False)
        self.down = nn.Linear(feature_size, hidden_size, bias=False)

    def forward(self, hidden: Tensor, embedding: Tensor) -> Tensor:
        """hidden (..., (1 + layers) d), the last layer's first; embedding (..., d) -> u (..., d)."""
        parts = [rms_norm(part, (self.size,)) for part in (*hidden.split(self.size, -1), embedding)]
        gate, value = self.up(torch.cat(parts, -1)).chunk(2, -1)
        out: Tensor = hidden[..., : self.size] + self.down(silu(gate) * value)
        return out


class LowRankMaps(nn.Module):
    """z_{s,a} = u + B_{s,a} A_{s,a} u: one low-rank residual map per position and component.

    B starts as small noise, so z starts near u; at zero, all components would have the same gradients.
    """

    def __init__(self, positions: int, rank: int, hidden_size: int, map_rank: int) -> None:
        super().__init__()
        self.shape = (positions, rank, map_rank)
        self.inner = nn.Linear(hidden_size, positions * rank * map_rank, bias=False)
        self.outer = nn.Parameter(torch.empty(positions, rank, map_rank, hidden_size))

    def forward(self, features: Tensor) -> Tensor:
        """u (B, d) -> z (B, positions, rank, d)."""
        inner = self.inner(features).unflatten(-1, self.shape)
        return features[:, None, None, :] + torch.einsum("bsak,sakd->bsad", inner, self.outer)

    def selected(self, features: Tensor, kept: Tensor) -> Tensor:
        """z of the components `kept` (B, positions, c) alone; u (B, d) -> (B, positions, c, d)."""
        positions, rank, map_rank = self.shape
        first = map_rank * (kept + rank * torch.arange(positions, device=kept.device)[:, None])
        index = (first[..., None] + torch.arange(map_rank, device=kept.device)).flatten()
        inner = self.inner.weight.index_select(0, index)
        outer = self.outer.flatten(0, 2).index_select(0, index).unflatten(0, (-1, map_rank))
        inner = inner.view(len(features), kept.shape[1] * kept.shape[2] * map_rank, features.shape[-1])
        projected = torch.bmm(inner, features[:, :, None])
        out = torch.bmm(projected.view(len(outer), 1, map_rank), outer)
        return features[:, None, None, :] + out.view(*kept.shape, features.shape[-1])


class FullMaps(nn.Module):
    """z_{s,a} = W_{s,a} u: the paper's retrofit form, a d x d map per position and component."""

    def __init__(self, positions: int, rank: int, hidden_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(positions, rank, hidden_size, hidden_size))

    def forward(self, features: Tensor) -> Tensor:
        """u (B, d) -> z (B, positions, rank, d)."""
        return torch.einsum("be,sade->bsad", features, self.weight)

    def selected(self, features: Tensor, kept: Tensor) -> Tensor:
        """z of the components `kept` (B, positions, c) alone; u (B, d) -> (B, positions, c, d)."""
        position = torch.arange(self.weight.shape[0], device=kept.device)[:, None]
        return torch.einsum("be,bscde->bscd", features, self.weight[position, kept])

"""The low-rank bias that the token before adds to each row, for Markov members."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import rms_norm, silu

from polydraft.joint.gate import last_repeated


class PreviousToken(nn.Module):
    """Shifts z by what the token before says, so that every row gets a bias of rank k.

        z_{s,a}(x_{s-1}) = z_{s,a} + D silu(A norm(E x_{s-1}) + C_s u)
        bias_s(v | x_{s-1}) = U'_v D silu(A norm(E x_{s-1}) + C_s u)

    The form of DSpark (DeepSeek, 2026), W_1[x_{s-1}] W_2, with both tables tied to the base model's (its
    embedding E, its unembedding U'), and gated by the features. D starts at zero: no bias.

    Args:
        hidden_size: d. rank: k. positions: n of the joint; the first has no token before.
    """

    def __init__(self, hidden_size: int, rank: int, positions: int) -> None:
        super().__init__()
        self.embedded = nn.Linear(hidden_size, rank, bias=False)
        self.context = nn.Linear(hidden_size, positions * rank, bias=False)
        self.out = nn.Linear(rank, hidden_size, bias=False)
        self.shape = (positions, rank)

    def reset(self) -> None:
        """Random inner maps, D = 0."""
        for part in (self.embedded, self.context):
            nn.init.normal_(part.weight, std=part.in_features**-0.5)
        nn.init.zeros_(self.out.weight)

    def contexts(self, features: Tensor) -> Tensor:
        """C_s u of all positions; (B, d) -> (B, n, k)."""
        out: Tensor = self.context(features).unflatten(-1, self.shape)
        return out

    def inner(self, context: Tensor, embedding: Tensor) -> Tensor:
        """The k numbers before D; context (B, k), embedding (B, d) of the token before -> (B, k)."""
        seen: Tensor = self.embedded(rms_norm(embedding, embedding.shape[-1:]))
        out: Tensor = silu(seen + context)
        return out

    def forward(self, context: Tensor, embedding: Tensor) -> Tensor:
        """The shift of z; context (B, k), embedding (B, d) -> (B, d)."""
        out: Tensor = self.out(self.inner(context, embedding))
        return out

    def table(self, rows: Tensor) -> Tensor:
        """U' D, the part of the bias that no token changes; rows (V', d) -> (V', k)."""
        return rows @ self.out.weight.to(rows.dtype)

    @torch.no_grad()
    def take(self, trained: PreviousToken) -> None:
        """Start from another one of the same rank, position by position, its last one repeated."""
        self.embedded.weight.copy_(trained.embedded.weight)
        self.out.weight.copy_(trained.out.weight)
        which = last_repeated(self.shape[0], trained.shape[0])
        self.context.weight.copy_(trained.context.weight.unflatten(0, trained.shape)[which].flatten(0, 1))

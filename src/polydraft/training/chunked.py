"""Loss and gradient of a few rows at a time: memory does not grow with the batch.

The gradient of the loss with respect to features and parameters is computed in the forward pass, chunk by
chunk, and added up; the backward pass scales it. What is kept is the size of the parameters and of the
features, where a plain graph would keep several (P, S, r, d) tensors. No figure is computed twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

PartLoss = Callable[[Tensor, slice], tuple[Tensor, Tensor]]
"""(features of a chunk (C, d), which rows they are) -> (their summed loss, any figures that add up)."""


class ChunkedSum(torch.autograd.Function):
    """(features, parameters) -> (sum of the losses, sum of the figures); the first is differentiable."""

    @staticmethod
    def forward(
        ctx: Any, loss: PartLoss, size: int, features: Tensor, *parameters: Tensor
    ) -> tuple[Tensor, Tensor]:
        """`size` rows of `features` (P, d) at a time."""
        gradients: list[Tensor | None] = [None] * len(parameters)
        by_features = torch.empty_like(features)
        sums: list[Tensor] = []
        for i in range(0, len(features), size):
            part = slice(i, i + size)
            with torch.enable_grad():
                own = features[part].detach().requires_grad_()
                total, figures = loss(own, part)
                found = torch.autograd.grad(total, [own, *parameters], allow_unused=True)
            by_features[part] = found[0]
            gradients = [_add(a, b) for a, b in zip(gradients, found[1:], strict=True)]
            both = [total.detach(), figures.detach()]
            sums = [a + b for a, b in zip(sums, both, strict=True)] if sums else both
        ctx.gradients = [by_features, *gradients]
        ctx.mark_non_differentiable(sums[1])
        return sums[0], sums[1]

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        """Scale what the forward pass has computed, in place: it can be asked for once."""
        gradients, ctx.gradients = ctx.gradients, None
        return None, None, *(None if g is None else g.mul_(upstream[0]) for g in gradients)


def _add(sum_so_far: Tensor | None, more: Tensor | None) -> Tensor | None:
    """The sum of two gradients, in place; None is zero."""
    if sum_so_far is None or more is None:
        return sum_so_far if more is None else more.clone()
    return sum_so_far.add_(more)


def chunked_sum(
    loss: PartLoss, features: Tensor, parameters: Iterable[Tensor], *, size: int
) -> tuple[Tensor, Tensor]:
    """`loss` summed over all rows of `features` (P, d), P >= 1, `size` at a time.

    Args:
        parameters: what else gradients are wanted of; those that need none are left out.
    """
    if torch.is_grad_enabled():
        wanted = [p for p in parameters if p.requires_grad]
        found: tuple[Tensor, Tensor] = ChunkedSum.apply(loss, size, features, *wanted)
        return found
    parts = [loss(features[i : i + size], slice(i, i + size)) for i in range(0, len(features), size)]
    return torch.stack([p[0] for p in parts]).sum(0), torch.stack([p[1] for p in parts]).sum(0)

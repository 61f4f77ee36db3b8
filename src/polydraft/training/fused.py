"""The loss of one position of the joint, with its gradient computed in the forward pass.

The same figures as `losses.position_reference`, which states them plainly. Since U' is frozen, all
that the backward pass needs is the gradient with respect to z, (C, r, d); computing it at once means
that logits are made once, never stored, and never made again.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

FLOOR = 1e-30
"""Below this a probability counts as this; only gradients of impossible tokens see it."""


class FusedPosition(torch.autograd.Function):
    """(z, log w, U', targets, keep, p) -> (log P_a(x), summed cross-entropy of q against p).

        L_a = U' z_a,  P_a = softmax(L_a),  q = sum_a w_a P_a,  kl = -sum_v p(v) log q(v)

    with g = p / q and S_a = sum_v P_a(v) g(v):

        d kl / dL_a(v) = w_a P_a(v) (S_a - g(v))        d kl / d log w_a = -w_a S_a
        d log P_a(x) / dL_a(v) = [v = x] - P_a(v)
    """

    @staticmethod
    def forward(
        ctx: Any,
        mapped: Tensor,
        log_weights: Tensor,
        rows: Tensor,
        targets: Tensor,
        keep: Tensor,
        teacher: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Shapes as in `losses.position_reference`; rows is U' (V', d)."""
        count, rank, width = mapped.shape
        logits = (mapped.reshape(-1, width).to(rows.dtype) @ rows.T).float().unflatten(0, (count, rank))
        normaliser = logits.logsumexp(-1)
        index = targets.clamp(min=0)
        token = logits.gather(-1, index[:, None, None].expand(-1, rank, 1)).squeeze(-1) - normaliser
        factors = logits.sub_(normaliser[..., None]).exp_()
        expected = (factors.flatten(0, 1).to(rows.dtype) @ rows).float().view_as(mapped)
        token_grad = rows[index].float()[:, None] - expected
        kl = mapped.new_zeros((), dtype=torch.float32)
        kl_grad, state_grad = torch.zeros_like(token_grad), torch.zeros_like(token)
        if teacher is not None:
            weights = log_weights.exp()
            mixture = torch.bmm(weights[:, None], factors).squeeze(1).clamp_(min=FLOOR)
            kl = -((teacher * mixture.log()).sum(-1) * keep).sum()
            ratio = teacher / mixture * keep[:, None]
            share = torch.bmm(factors, ratio[:, :, None])
            slope = factors.mul_(share - ratio[:, None]).mul_(weights[..., None])
            kl_grad = (slope.flatten(0, 1).to(rows.dtype) @ rows).float().view_as(mapped)
            state_grad = -weights * share.squeeze(-1)
        ctx.save_for_backward(token_grad, kl_grad, state_grad)
        return token, kl

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Scale what the forward pass has computed."""
        by_token, by_kl = gradients
        token_grad, kl_grad, state_grad = ctx.saved_tensors
        return by_token[..., None] * token_grad + by_kl * kl_grad, by_kl * state_grad, None, None, None, None


def position_fused(
    mapped: Tensor, log_weights: Tensor, rows: Tensor, targets: Tensor, keep: Tensor, teacher: Tensor | None
) -> tuple[Tensor, Tensor]:
    """`losses.position_reference` over the base model's frozen rows U' (V', d)."""
    found: tuple[Tensor, Tensor] = FusedPosition.apply(mapped, log_weights, rows, targets, keep, teacher)
    return found

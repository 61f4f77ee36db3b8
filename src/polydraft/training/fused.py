"""The loss of one position of the joint, with its gradient computed in the forward pass.

The same figures as `losses.position_reference`, which states them plainly. Since U' is frozen, all
that the backward pass needs is the gradient with respect to z, (C, r, d); computing it at once means
that logits are made once, never stored, and never made again. They are made a few anchors at a time, in
the same memory over and over: fresh pages would cost more time than the arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

FLOOR = 1e-30
"""Below this a probability counts as this; only the figures of impossible tokens see it."""

MOST_LOGITS = 2**24
"""Of one matrix product; 32 MiB in bfloat16."""

MOST_FACTORS = 2**19
"""Handled at a time between the products; 2 MiB in float32, what a core's cache holds."""

TeacherRows = Callable[[Tensor], Tensor]
"""Indices of anchors (B,) -> the base model's p of theirs (B, V')."""


class FusedRows:
    """The frozen rows U', and memory for the logits of a few anchors.

    Args:
        rows: U' (V', d). rank: r. most: anchors that are ever asked for at once.
    """

    def __init__(self, rows: Tensor, *, rank: int, most: int) -> None:
        self.rows = rows
        self.size, few = (
            min(max(bound // (rank * len(rows)), 1), most) for bound in (MOST_LOGITS, MOST_FACTORS)
        )
        self._logits, self._slopes = (rows.new_empty(self.size, rank, len(rows)) for _ in range(2))
        self._factors, self._scratch = (
            rows.new_empty(few, rank, len(rows), dtype=torch.float32) for _ in range(2)
        )

    def position(
        self, mapped: Tensor, log_weights: Tensor, targets: Tensor, keep: Tensor, teacher: TeacherRows | None
    ) -> tuple[Tensor, Tensor]:
        """`losses.position_reference` of C anchors, their logits given by z, (C, r, d).

        Anchors that do not count cost nothing; their log P_a(x) is zero.
        """
        kept = keep.nonzero().squeeze(-1)
        token, kl = FusedPosition.apply(self, mapped[kept], log_weights[kept], targets[kept], kept, teacher)
        return log_weights.new_zeros(log_weights.shape).index_put((kept,), token), kl

    def block(
        self,
        mapped: Tensor,
        log_weights: Tensor,
        targets: Tensor,
        teacher: Tensor | None,
        *,
        gradients: bool,
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        """The formulas of `FusedPosition` for B <= `size` anchors; teacher is p (B, V').

        Returns:
            its two outputs, and if asked for d token / dz and, with a teacher, d kl / dz and d kl / d log w.
        """
        count, weights = len(mapped), log_weights.exp()
        logits, slopes = self._logits[:count], self._slopes[:count]
        torch.mm(mapped.flatten(0, 1).to(logits.dtype), self.rows.T, out=logits.flatten(0, 1))
        token, share = torch.empty_like(weights), torch.zeros_like(weights)
        kl = token.new_zeros(())
        for i in range(0, count, len(self._factors)):
            part = slice(i, i + len(self._factors))
            some = logits[part]
            factors, scratch = self._factors[: len(some)], self._scratch[: len(some)]
            torch.softmax(scratch.copy_(some), -1, out=factors)
            some.copy_(factors)
            index = targets[part, None, None].expand(-1, factors.shape[1], 1)
            token[part] = factors.gather(-1, index).squeeze(-1)
            if teacher is None:
                continue
            mixture = torch.bmm(weights[part, None], factors).squeeze(1).clamp_(min=FLOOR)
            ratio = teacher[part] / mixture
            kl -= mixture.log_().mul_(teacher[part]).sum()
            if gradients:
                total = torch.bmm(factors, ratio[:, :, None])
                torch.sub(total, ratio[:, None], out=scratch)
                slopes[part] = factors.mul_(scratch)
                share[part] = total.squeeze(-1)
        token.clamp_(min=FLOOR).log_()
        if not gradients:
            return token, kl, []
        token_by_z = self.rows[targets].float()[:, None] - self._times_rows(logits)
        if teacher is None:
            return token, kl, [token_by_z]
        return token, kl, [token_by_z, self._times_rows(slopes).mul_(weights[..., None]), -weights * share]

    def _times_rows(self, values: Tensor) -> Tensor:
        """sum_v values(v) U'_v; (B, r, V') -> (B, r, d), float32."""
        out: Tensor = (values.flatten(0, 1) @ self.rows).float().unflatten(0, values.shape[:2])
        return out


class FusedPosition(torch.autograd.Function):
    """(z, log w, targets, p) -> (log P_a(x), summed cross-entropy of q against p).

        L_a = U' z_a,  P_a = softmax(L_a),  q = sum_a w_a P_a,  kl = -sum_v p(v) log q(v)

    with g = p / q and S_a = sum_v P_a(v) g(v):

        d kl / dL_a(v) = w_a P_a(v) (S_a - g(v))        d kl / d log w_a = -w_a S_a
        d log P_a(x) / dL_a(v) = [v = x] - P_a(v)
    """

    @staticmethod
    def forward(
        ctx: Any,
        fused: FusedRows,
        mapped: Tensor,
        log_weights: Tensor,
        targets: Tensor,
        which: Tensor,
        teacher: TeacherRows | None,
    ) -> tuple[Tensor, Tensor]:
        """Shapes as in `losses.position_reference`, all rows count; `which` (C,) is what `teacher` wants."""
        tokens, kls, gradients = [], [], []
        for i in range(0, max(len(mapped), 1), fused.size):
            part = slice(i, i + fused.size)
            rows = None if teacher is None else teacher(which[part])
            inputs = (mapped[part], log_weights[part], targets[part], rows)
            token, kl, found = fused.block(*inputs, gradients=ctx.needs_input_grad[1])
            tokens.append(token)
            kls.append(kl)
            gradients.append(found)
        ctx.save_for_backward(*(torch.cat(parts) for parts in zip(*gradients, strict=True)))
        return torch.cat(tokens), torch.stack(kls).sum()

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        """Scale what the forward pass has computed."""
        of_token, of_kl = upstream
        token_by_z, *kl_by = ctx.saved_tensors
        by_z = of_token[..., None] * token_by_z
        if not kl_by:
            return None, by_z, None, None, None, None
        kl_by_z, kl_by_weights = kl_by
        return None, by_z.add_(of_kl * kl_by_z), of_kl * kl_by_weights, None, None, None

"""The loss of one position of the joint, with its gradient computed in the forward pass.

The same figures as `terms.position_reference`, which states them plainly. Since U' is frozen, all
that the backward pass needs is the gradient with respect to z, (C, r, d); computing it at once means
that logits are made once, never stored, and never made again. They are made a few anchors at a time, in
the same memory over and over: fresh pages would cost more time than the arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from polydraft.training.teacher import probabilities
from polydraft.training.weights import RowWeights

FLOOR = 1e-30
"""Below this a probability counts as this; only the figures of impossible tokens see it."""

MOST_LOGITS = 2**24
"""Numbers that one matrix product gives at most; 32 MiB in bfloat16."""

MOST_FACTORS = 2**18
"""Handled at a time between the products; 1 MiB in float32, so that two tensors fit a core's cache."""

TeacherScores = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Indices of anchors (B,) -> the base model's logits (B, V') and normalisers (B, 1), `Teacher.scores`."""


class FusedRows:
    """The frozen rows U', and memory for the logits of a few anchors.

    Args:
        rows: U' (V', d). rank: r. most: anchors that are ever asked for at once.
        weights: of the terms that hold rows against the base model's.
    """

    def __init__(self, rows: Tensor, *, rank: int, most: int, weights: RowWeights) -> None:
        self.rows = rows
        self.weights = weights
        self.size, few = (
            min(max(bound // (rank * len(rows)), 1), most) for bound in (MOST_LOGITS, MOST_FACTORS)
        )
        self._logits, self._slopes = (rows.new_empty(self.size, rank, len(rows)) for _ in range(2))
        self._factors, self._scratch = (
            rows.new_empty(few, rank, len(rows), dtype=torch.float32) for _ in range(2)
        )

    def position(
        self,
        mapped: Tensor,
        log_weights: Tensor,
        targets: Tensor,
        keep: Tensor,
        teacher: TeacherScores | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """`terms.position_reference` of C anchors, their logits given by z, (C, r, d).

        Anchors that do not count cost nothing; their log P_a(x) is zero.
        """
        kept = keep.nonzero().squeeze(-1)
        inputs = (mapped[kept], log_weights[kept], targets[kept], kept, teacher)
        token, total, figures = FusedPosition.apply(self, *inputs)
        return log_weights.new_zeros(log_weights.shape).index_put((kept,), token), total, figures

    def block(
        self,
        mapped: Tensor,
        log_weights: Tensor,
        targets: Tensor,
        teacher: tuple[Tensor, Tensor] | None,
        *,
        gradients: bool,
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        """The formulas of `FusedPosition` for B <= `size` anchors.

        Returns:
            log P_a(x) (B, r), summed kl and tv (2,), and if asked for d log P_a(x) / dz and, with a teacher,
            d total / dz and d total / d log w.
        """
        count, weights = len(mapped), log_weights.exp()
        logits, slopes = self._logits[:count], self._slopes[:count]
        torch.mm(mapped.flatten(0, 1).to(logits.dtype), self.rows.T, out=logits.flatten(0, 1))
        token, share = torch.empty_like(weights), torch.empty_like(weights)
        figures = token.new_zeros(2)
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
            mixture = torch.bmm(weights[part, None], factors).squeeze(1)
            slope, found = self._rows(mixture, probabilities(*(of_all[part] for of_all in teacher)))
            figures += found
            if gradients:
                share[part] = torch.mul(factors, slope[:, None], out=scratch).sum(-1)
                slopes[part] = scratch.addcmul_(factors, share[part, :, None], value=-1)
        token.clamp_(min=FLOOR).log_()
        if not gradients:
            return token, figures, []
        token_by_z = self.rows[targets].float()[:, None] - self._times_rows(logits)
        if teacher is None:
            return token, figures, [token_by_z]
        by_z = self._times_rows(slopes).mul_(-weights[..., None])
        return token, figures, [token_by_z, by_z, -weights * share]

    def _rows(self, mixture: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """Return g of `FusedPosition`, (B, V'), for rows q and p (B, V'), and the summed kl and tv, (2,)."""
        mass = teacher.sum(-1)
        tv = (1 - torch.minimum(teacher, mixture).sum(-1)).sum()
        ratio = teacher / mixture.clamp_(min=FLOOR)
        slope = self.weights.kl * ratio
        if self.weights.tv:
            slope += self.weights.tv * (ratio > 1)
        kl = ratio.clamp_(min=FLOOR).log_().mul_(teacher).sum() + torch.special.entr(mass).sum()
        return slope, torch.stack([kl, tv])

    def _times_rows(self, values: Tensor) -> Tensor:
        """sum_v values(v) U'_v; (B, r, V') -> (B, r, d), float32."""
        out: Tensor = (values.flatten(0, 1) @ self.rows).float().unflatten(0, values.shape[:2])
        return out


class FusedPosition(torch.autograd.Function):
    """(z, log w, targets, p) -> (log P_a(x), total = w_kl kl + w_tv tv, the sums of kl and tv).

        L_a = U' z_a,  P_a = softmax(L_a),  q = sum_a w_a P_a

    With g(v) = -d total / dq(v) = w_kl p(v) / q(v) + w_tv [q(v) < p(v)] and S_a = sum_v P_a(v) g(v):

        d total / dL_a(v) = w_a P_a(v) (S_a - g(v))        d total / d log w_a = -w_a S_a
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
        teacher: TeacherScores | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Shapes as in `terms.position_reference`, all rows count; `which` (C,) is what `teacher` wants."""
        tokens, figures, gradients = [], [], []
        for i in range(0, max(len(mapped), 1), fused.size):
            part = slice(i, i + fused.size)
            scores = None if teacher is None else teacher(which[part])
            inputs = (mapped[part], log_weights[part], targets[part], scores)
            with torch.autocast(mapped.device.type, enabled=False):
                token, sums, found = fused.block(*inputs, gradients=ctx.needs_input_grad[1])
            tokens.append(token)
            figures.append(sums)
            gradients.append(found)
        ctx.save_for_backward(*(_joined(parts) for parts in zip(*gradients, strict=True)))
        shown = torch.stack(figures).sum(0)
        ctx.mark_non_differentiable(shown)
        return _joined(tokens), fused.weights.kl * shown[0] + fused.weights.tv * shown[1], shown

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        """Scale what the forward pass has computed."""
        of_token, of_total, _ = upstream
        token_by_z, *total_by = ctx.saved_tensors
        by_z = of_token[..., None] * token_by_z
        if not total_by:
            return None, by_z, None, None, None, None
        total_by_z, total_by_weights = total_by
        return None, by_z.addcmul_(of_total, total_by_z), of_total * total_by_weights, None, None, None


def _joined(parts: Sequence[Tensor]) -> Tensor:
    """The parts as one; a single one as it is."""
    return torch.cat(list(parts)) if len(parts) > 1 else parts[0]

"""The terms of the loss, said plainly; `fused` is the fast form of those of a position."""

from __future__ import annotations

import torch
from torch import Tensor

from polydraft.training.weights import RowWeights


def position_reference(
    logits: Tensor,
    log_weights: Tensor,
    targets: Tensor,
    keep: Tensor,
    teacher: Tensor | None,
    weights: RowWeights,
) -> tuple[Tensor, Tensor, Tensor]:
    """What one position adds to the losses.

        q(v) = sum_a w_a P_a(v)                 P_a = softmax(logits_a)
        kl   = P KL(p / P || q) = sum_v p(v) log(p(v) / q(v)) - P log P,    P = sum_v p(v)
        tv   = 1 - sum_v min(p(v), q(v))

    with sums over the draft vocabulary. kl is zero where q is the base model's row confined to what can be
    drafted, and differs from the cross-entropy -sum_v p(v) log q(v) by what no parameter changes. tv is
    the total variation 1/2 sum_v |p - q| over the whole vocabulary of the base model, where tokens that
    cannot be drafted have q = 0: the probability that token-wise verification rejects a draft from q.

    Args:
        logits: (C, r, V') of the components. log_weights: (C, r), posterior given the tokens before.
        targets: (C,) draft indices, -1 outside. keep: (C,) 0 or 1, whether the row counts.
        teacher: (C, V') p, or None for neither kl nor tv.

    Returns:
        log P_a(x) of the targets (C, r); `weights.kl` kl + `weights.tv` tv, summed over rows,
        differentiable; and kl and tv themselves (2,), summed, for show.
    """
    factors = logits.log_softmax(-1)
    index = targets.clamp(min=0)[:, None, None].expand(-1, factors.shape[1], 1)
    token = factors.gather(-1, index).squeeze(-1)
    if teacher is None:
        return token, token.new_zeros(()), token.new_zeros(2)
    row = torch.logsumexp(log_weights[:, :, None] + factors, 1)
    mass = teacher.sum(-1)
    entropy = torch.special.entr(teacher).sum(-1) - torch.special.entr(mass)
    kl = ((-(teacher * row).sum(-1) - entropy) * keep).sum()
    tv = ((1 - torch.minimum(teacher, row.exp()).sum(-1)) * keep).sum()
    return token, weights.kl * kl + weights.tv * tv, torch.stack([kl, tv]).detach()


def balance_loss(log_weights: Tensor) -> Tensor:
    """r * sum_a f_a mean(w_a), f_a the share of rows whose largest weight is a; 1 when balanced.

    Fedus et al. 2021 (Switch Transformer), equation 4. The paper names a balancing term without its
    form; this is the usual one. log_weights (P, r) -> scalar.
    """
    rank = log_weights.shape[-1]
    share = torch.nn.functional.one_hot(log_weights.argmax(-1), rank).to(log_weights.dtype).mean(0)
    return rank * (share * log_weights.exp().mean(0)).sum()


def router_z_loss(scores: Tensor) -> Tensor:
    """mean(logsumexp_a(scores)^2); Zoph et al. 2022 (ST-MoE, arXiv 2202.08906), equation 5.

    scores (P, r) -> scalar.
    """
    return scores.logsumexp(-1).square().mean()

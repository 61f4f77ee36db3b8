"""Losses of a draft head, chunked over positions so that memory stays bounded.

Notation: P anchors (positions t of the text), S modelled positions per anchor, r components, V' draft
tokens. Logits of shape (P, S, r, V') never exist: a chunk of `CHUNK` anchors computes its own
(CHUNK, r, V') one position at a time, and `fused` turns them into gradients at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from polydraft.heads import DraftHead
from polydraft.training.fused import position_fused

CHUNK = 128


@dataclass(frozen=True, kw_only=True)
class LossWeights:
    """Coefficients of the terms of the loss.

    Attributes:
        nll: joint negative log-likelihood of the text (the paper's loss).
        kl: cross-entropy of the conditional rows against the base model's rows (distillation).
        balance: load balancing over components, Switch-Transformer form.
        discount: gamma; position s of a row counts gamma^s, s = 0..n-1.
    """

    nll: float = 1.0
    kl: float = 0.0
    balance: float = 0.01
    discount: float = 1.0


class Anchors(NamedTuple):
    """Flattened training positions.

    Attributes:
        hidden: (P, d), h_t. next_tokens: (P,) int64 base ids, x[t+1].
        targets: (P, S) int64 draft indices of the tokens the joint models, -1 outside the draft vocabulary.
        valid: (P, S) bool; a target counts only while all drafts before it could have been drafted.
        teacher: (P, S) int64 row of `teacher_log_probs` that predicts each target, or None.
        teacher_log_probs: (Q, V') log p of the base model on the draft vocabulary, or None; a row sums
            to at most 1, what is missing being the tokens that cannot be drafted.
    """

    hidden: Tensor
    next_tokens: Tensor
    targets: Tensor
    valid: Tensor
    teacher: Tensor | None = None
    teacher_log_probs: Tensor | None = None


class Losses(NamedTuple):
    """Sums over anchors, and what the progress line shows.

    Attributes:
        total: the weighted loss, differentiable; a sum over anchors.
        nll: (S,) summed negative log-likelihood per position. counts: (S,) targets in that sum.
        kl: (S,) summed cross-entropy against the base model's rows (zeros when not asked for).
        load: (r,) mean gate weight of each component.
    """

    total: Tensor
    nll: Tensor
    kl: Tensor
    counts: Tensor
    load: Tensor


def balance_loss(log_weights: Tensor) -> Tensor:
    """r * sum_a f_a mean(w_a), f_a the share of rows whose largest weight is a; 1 when balanced.

    Fedus et al. 2021 (Switch Transformer), equation 4. The paper names a balancing term without its
    form; this is the usual one. log_weights (P, r) -> scalar.
    """
    rank = log_weights.shape[-1]
    share = torch.nn.functional.one_hot(log_weights.argmax(-1), rank).to(log_weights.dtype).mean(0)
    return rank * (share * log_weights.exp().mean(0)).sum()


def position_reference(
    logits: Tensor, log_weights: Tensor, targets: Tensor, keep: Tensor, teacher: Tensor | None
) -> tuple[Tensor, Tensor]:
    """What one position adds to the losses, plainly.

    Args:
        logits: (C, r, V') of the components. log_weights: (C, r), posterior given the tokens before.
        targets: (C,) draft indices, -1 outside. keep: (C,) 0 or 1, whether the row counts.
        teacher: (C, V') p, or None for no distillation.

    Returns:
        log P_a(x) of the targets (C, r), and the summed cross-entropy -sum_v p(v) log q(v), q the
        mixture row: KL(p || q) up to the entropy of p.
    """
    factors = logits.log_softmax(-1)
    index = targets.clamp(min=0)[:, None, None].expand(-1, factors.shape[1], 1)
    token = factors.gather(-1, index).squeeze(-1)
    if teacher is None:
        return token, token.new_zeros(())
    row = torch.logsumexp(log_weights[:, :, None] + factors, 1)
    return token, -((teacher * row).sum(-1) * keep).sum()


def chunk_losses(
    head: DraftHead,
    features: Tensor,
    log_weights: Tensor,
    targets: Tensor,
    valid: Tensor,
    teacher: Tensor | None,
    teacher_index: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Per-position losses of one chunk, by the chain rule on conditional rows.

        nll_s = -log q(x_s | x_<s) = -logsumexp_a(log w_a(x_<s) + log P_a^(s)(x_s))
        kl_s  = -sum_v p_s(v) log q(v | x_<s)

    and sum_s nll_s is the joint negative log-likelihood.

    Args:
        features: (C, d). log_weights: (C, r). targets, valid: (C, S).
        teacher: (Q, V') p, of which `teacher_index` (C, S) picks the rows; None for no distillation.

    Returns:
        nll (S,) and kl (S,), summed over the chunk.
    """
    mapped, state = head.maps(features), log_weights
    nll, kl = [], []
    for s in range(targets.shape[1]):
        keep = valid[:, s].to(state.dtype)
        rows = None if teacher is None or teacher_index is None else teacher[teacher_index[:, s]]
        if head.config.own_unembedding:
            token, part = position_reference(head.logits(mapped[:, s], s), state, targets[:, s], keep, rows)
        else:
            token, part = position_fused(mapped[:, s], state, head.rows, targets[:, s], keep, rows)
        nll.append(-(torch.logsumexp(state + token, -1) * keep).sum())
        kl.append(part)
        state = torch.where((targets[:, s] >= 0)[:, None], (state + token).log_softmax(-1), state)
    return torch.stack(nll), torch.stack(kl)


def head_losses(head: DraftHead, anchors: Anchors, weights: LossWeights, *, chunk: int = CHUNK) -> Losses:
    """All losses of a batch of anchors; see `LossWeights` for the terms."""
    features = head.features(anchors.hidden, anchors.next_tokens)
    log_weights = head.gate(features).float().log_softmax(-1)
    nll = log_weights[:0].sum().expand(anchors.targets.shape[1])  # zeros in the graph, anchors or none
    kl = torch.zeros_like(nll)
    teacher = (
        anchors.teacher_log_probs.exp() if weights.kl > 0 and anchors.teacher_log_probs is not None else None
    )
    for i in range(0, len(features), chunk):
        part = slice(i, i + chunk)
        inputs = (
            features[part],
            log_weights[part],
            anchors.targets[part],
            anchors.valid[part],
            teacher,
            anchors.teacher[part] if anchors.teacher is not None else None,
        )
        if head.config.own_unembedding:  # its logits would be kept for the backward pass: make them again
            part_nll, part_kl = checkpoint(lambda *x: chunk_losses(head, *x), *inputs, use_reentrant=False)
        else:
            part_nll, part_kl = chunk_losses(head, *inputs)
        nll, kl = nll + part_nll, kl + part_kl
    gamma = weights.discount ** torch.arange(len(nll), device=nll.device, dtype=nll.dtype)
    total = ((weights.nll * nll + weights.kl * kl) * gamma).sum()
    if weights.balance > 0 and head.config.rank > 1 and len(features):
        total = total + weights.balance * len(features) * balance_loss(log_weights)
    load = log_weights.detach().exp().sum(0) / max(len(features), 1)
    return Losses(total, nll.detach(), kl.detach(), anchors.valid.sum(0), load)

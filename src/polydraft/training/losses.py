"""Losses of a draft head, a chunk of anchors at a time, so that memory stays bounded.

Notation: P anchors (positions t of the text), S modelled positions per anchor, r components, V' draft
tokens. Logits of shape (P, S, r, V') never exist: `chunked_sum` takes a few anchors through loss and
gradient before it turns to the next, and within them `fused` makes the logits of one position at a time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from polydraft.heads import DraftConfig, DraftHead
from polydraft.training.chunked import chunked_sum
from polydraft.training.fused import FusedRows, TeacherRows
from polydraft.training.teacher import Teacher

MOST_ANCHORS = 128
MOST_LOGITS = 2**25
"""Of one position at once; 128 MiB a tensor in float32."""


@dataclass(frozen=True, kw_only=True)
class LossWeights:
    """Coefficients of the terms of the loss.

    Attributes:
        nll: joint negative log-likelihood of the text (the paper's loss).
        kl: cross-entropy of the conditional rows against the base model's rows (distillation).
        balance: load balancing over components, Switch-Transformer form.
        z_loss: of the gate's scores, ST-MoE form; keeps them small.
        discount: gamma; position s of a row counts gamma^s, s = 0..n-1.
        gate_noise: deviation of normal noise on the gate's scores while training.
    """

    nll: float = 1.0
    kl: float = 0.0
    balance: float = 0.01
    z_loss: float = 0.0
    discount: float = 1.0
    gate_noise: float = 0.0


class Anchors(NamedTuple):
    """Flattened training positions.

    Attributes:
        hidden: (P, d), h_t. next_tokens: (P,) int64 base ids, x[t+1].
        targets: (P, S) int64 draft indices of the tokens the joint models, -1 outside the draft vocabulary.
        valid: (P, S) bool; a target counts only while all drafts before it could have been drafted.
        teacher: the base model's rows, or None. teacher_index: (P, S) int64, the one that predicts each
            target, or None.
        share: how many positions of the text every anchor stands for.
    """

    hidden: Tensor
    next_tokens: Tensor
    targets: Tensor
    valid: Tensor
    teacher: Teacher | None = None
    teacher_index: Tensor | None = None
    share: float = 1.0

    def part(self, rows: slice) -> Anchors:
        """Some of the anchors, targets alone: the features of `hidden` are computed for all at once."""
        index = self.teacher_index
        return self._replace(
            targets=self.targets[rows],
            valid=self.valid[rows],
            teacher_index=None if index is None else index[rows],
        )

    def teacher_rows(self, position: int) -> TeacherRows | None:
        """p (C, V') of some anchors at a 0-based position; None without a teacher."""
        teacher, index = self.teacher, self.teacher_index
        if teacher is None or index is None:
            return None
        return lambda rows: teacher.log_rows(index[rows, position]).exp_()


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


def router_z_loss(scores: Tensor) -> Tensor:
    """mean(logsumexp_a(scores)^2); Zoph et al. 2022 (ST-MoE, arXiv 2202.08906), equation 5.

    scores (P, r) -> scalar.
    """
    return scores.logsumexp(-1).square().mean()


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
    head: DraftHead, features: Tensor, anchors: Anchors, weights: LossWeights, fused: FusedRows | None
) -> tuple[Tensor, Tensor]:
    """Per-position losses of a few anchors, by the chain rule on conditional rows.

        nll_s = -log q(x_s | x_<s) = -logsumexp_a(log P(z_s = a | x_<s) + log P_a^(s)(x_s | x_{s-1}))
        kl_s  = -sum_v p_s(v) log q(v | x_<s)

    and sum_s nll_s is the joint negative log-likelihood.

    Args:
        features: (C, d), u of the anchors.
        fused: the rows U' that all positions share; None for a head with unembeddings of its own.

    Returns:
        nll (S,) and kl (S,), summed over the anchors.
    """
    latent = head.gate(features, weights.gate_noise if head.training else 0.0)
    mapped, state = head.maps(features).unbind(1), latent.start()
    contexts = head.previous.contexts(features) if head.previous is not None else None
    nll, kl = [], []
    for s in range(anchors.targets.shape[1]):
        target = anchors.targets[:, s]
        log_weights = latent.log_weights(state, s)
        keep = anchors.valid[:, s].to(log_weights.dtype)
        teacher = anchors.teacher_rows(s) if weights.kl > 0 else None
        z = mapped[s]
        if contexts is not None and s > 0:
            z = z + head.shift(contexts[:, s], anchors.targets[:, s - 1])[:, None]
        if fused is not None:
            token, part = fused.position(z, log_weights, target, keep, teacher)
        else:
            rows = teacher(torch.arange(len(target), device=target.device)) if teacher is not None else None
            token, part = position_reference(head.logits(z, s), log_weights, target, keep, rows)
        nll.append(-(torch.logsumexp(log_weights + token, -1) * keep).sum())
        kl.append(part)
        if s + 1 < anchors.targets.shape[1]:
            state = latent.advance(state, s, torch.where((target >= 0)[:, None], token, 0.0))
    return torch.stack(nll), torch.stack(kl)


def chunk_size(config: DraftConfig) -> int:
    """Anchors at a time: as many as keep the logits of one position, (C, r, V'), within bounds."""
    return min(max(MOST_LOGITS // (config.rank * config.draft_vocab_size), 1), MOST_ANCHORS)


def head_losses(
    head: DraftHead, anchors: Anchors, weights: LossWeights, *, chunk: int | None = None
) -> Losses:
    """All losses of a batch of anchors; see `LossWeights` for the terms.

        total = share (sum_s gamma^s (w_nll nll_s + w_kl kl_s) + P (w_balance balance + w_z z))

    Args:
        chunk: anchors at a time; by default `MOST_ANCHORS`, or `chunk_size` where logits are not fused.
    """
    features = head.features(anchors.hidden, anchors.next_tokens)
    count, steps = anchors.targets.shape
    gamma = weights.discount ** torch.arange(steps, device=features.device, dtype=torch.float32)

    def part_loss(own: Tensor, part: slice) -> tuple[Tensor, Tensor]:
        nll, kl = chunk_losses(head, own, anchors.part(part), weights, fused)
        return ((weights.nll * nll + weights.kl * kl) * gamma).sum(), torch.stack([nll, kl])

    scores = head.gate.scores(features)
    load = scores.detach().softmax(-1).sum(0) / max(count, 1)
    if count == 0:
        zeros = torch.zeros(steps, device=features.device)
        return Losses(head.maps(features).sum(), zeros, zeros, anchors.valid.sum(0), load)
    own_rows = head.config.own_unembedding
    size = min(chunk or (chunk_size(head.config) if own_rows else MOST_ANCHORS), count)
    fused = None if own_rows else FusedRows(head.rows, rank=head.config.rank, most=size)
    total, figures = chunked_sum(part_loss, features, head.parameters(), size=size)
    if head.config.rank > 1 and (weights.balance > 0 or weights.z_loss > 0):
        craft = weights.balance * balance_loss(scores.log_softmax(-1)) + weights.z_loss * router_z_loss(
            scores
        )
        total = total + count * craft
    return Losses(total * anchors.share, figures[0], figures[1], anchors.valid.sum(0), load)

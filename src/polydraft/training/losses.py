"""Losses of a draft head, a chunk of anchors at a time, so that memory stays bounded.

Notation: P anchors (positions t of the text), S modelled positions per anchor, r components, V' draft
tokens. Logits of shape (P, S, r, V') never exist: `chunked_sum` takes a few anchors through loss and
gradient before it turns to the next, and within them `fused` makes the logits of one position at a time.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from polydraft.heads import DraftConfig, DraftHead
from polydraft.heads.past import Past
from polydraft.training.chunked import chunked_sum
from polydraft.training.fused import FusedRows, TeacherScores
from polydraft.training.teacher import Teacher, probabilities
from polydraft.training.terms import balance_loss, position_reference, router_z_loss
from polydraft.training.weights import LossWeights

MOST_ANCHORS = 128
"""At a time, at least where logits are fused; with few components more of them, for wide products."""
MOST_ROWS = 1024
"""Anchors times components at a time, where that is more."""
MOST_LOGITS = 2**25
"""Logits of one position that exist together, at most; 128 MiB a tensor in float32."""


class Context(NamedTuple):
    """Whole rows of text, for features that depend on all before a position.

    Attributes:
        hidden: (B, T, D). next_tokens: (B, T) int64, the token after each position.
        position_ids: (B, T), of packed rows; None elsewhere.
        places: (P,) int64, the anchors among the B T positions.
    """

    hidden: Tensor
    next_tokens: Tensor
    position_ids: Tensor | None
    places: Tensor


class Anchors(NamedTuple):
    """Flattened training positions.

    Attributes:
        hidden: (P, D), h_t and the states of further layers. next_tokens: (P,) int64 base ids, x[t+1].
        targets: (P, S) int64 draft indices of the tokens the joint models, -1 outside the draft vocabulary.
        valid: (P, S) bool; a target counts only while all drafts before it could have been drafted.
        teacher: the base model's rows, or None. teacher_index: (P, S) int64, the one that predicts each
            target, or None.
        share: how many positions of the text every anchor stands for.
        context: the rows that the anchors lie in, for features "block".
    """

    hidden: Tensor
    next_tokens: Tensor
    targets: Tensor
    valid: Tensor
    teacher: Teacher | None = None
    teacher_index: Tensor | None = None
    share: float = 1.0
    context: Context | None = None

    def features(self, head: DraftHead) -> Tensor:
        """What `feature_losses` starts from: u of the anchors, (P, d), or z along the text, (P, S d)."""
        features, past = self.read(head)
        return features if head.steps is None else head.unrolled(features, self.targets, past)

    def read(self, head: DraftHead) -> tuple[Tensor, Past | None]:
        """u of the anchors, (P, d), and for a recurrent head what they see of their texts."""
        context = self.context
        if context is None:
            return head.features(self.hidden, self.next_tokens), None
        features, memory = head.read(context.hidden, context.next_tokens, position_ids=context.position_ids)
        width = features.shape[1]
        rows, places = context.places // width, context.places % width
        return features[rows, places], None if memory is None else memory.at(rows, places)

    def part(self, rows: slice) -> Anchors:
        """Some of the anchors, targets alone: the features of `hidden` are computed for all at once."""
        index = self.teacher_index
        return self._replace(
            targets=self.targets[rows],
            valid=self.valid[rows],
            teacher_index=None if index is None else index[rows],
        )

    def teacher_scores(self, position: int) -> TeacherScores | None:
        """`Teacher.scores` of some anchors at a 0-based position; None without a teacher."""
        teacher, index = self.teacher, self.teacher_index
        if teacher is None or index is None:
            return None
        return lambda rows: teacher.scores(index[rows, position])


class Losses(NamedTuple):
    """Sums over anchors, and what the progress line shows.

    Attributes:
        total: the weighted loss, differentiable; a sum over anchors.
        nll: (S,) summed negative log-likelihood per position. counts: (S,) targets in that sum.
        kl, tv: (S,) summed divergence from the base model's rows, and total variation (zeros when neither is
            asked for).
        load: (r,) mean gate weight of each component. likeliest: (r,) share of anchors where it is largest.
        balance, z_loss: of the gate, times the anchors (zeros where neither has a weight).
    """

    total: Tensor
    nll: Tensor
    kl: Tensor
    tv: Tensor
    counts: Tensor
    load: Tensor
    likeliest: Tensor
    balance: Tensor
    z_loss: Tensor


def chunk_losses(
    head: DraftHead, features: Tensor, anchors: Anchors, weights: LossWeights, fused: FusedRows | None
) -> tuple[Tensor, Tensor]:
    """Per-position losses of a few anchors, by the chain rule on conditional rows.

        nll_s = -log q(x_s | x_<s) = -logsumexp_a(log P(z_s = a | x_<s) + log P_a^(s)(x_s | x_{s-1}))
        kl_s, tv_s: of the row q(. | x_<s) against the base model's; see `terms.position_reference`

    and sum_s nll_s is the joint negative log-likelihood.

    Args:
        features: (C, d), u of the anchors, or (C, S d), z of a stepwise head.
        fused: the rows U' that all positions share; None for a head with unembeddings of its own.

    Returns:
        w_nll nll + w_kl kl + w_tv tv (S,), differentiable; and nll, kl and tv (3, S) themselves. Summed over
        the anchors.
    """
    latent = head.gate(features, weights.gate_noise if head.training else 0.0)
    mapped, state = head.maps(features).unbind(1), latent.start()
    contexts = head.previous.contexts(features) if head.previous is not None else None
    totals, figures = [], []
    for s in range(anchors.targets.shape[1]):
        target = anchors.targets[:, s]
        log_weights = latent.log_weights(state, s)
        keep = anchors.valid[:, s].to(log_weights.dtype)
        teacher = anchors.teacher_scores(s) if weights.needs_teacher else None
        z = mapped[s]
        if contexts is not None and s > 0:
            z = z + head.shift(contexts[:, s], anchors.targets[:, s - 1])[:, None]
        if fused is not None:
            token, total, of_rows = fused.position(z, log_weights, target, keep, teacher)
        else:
            every = torch.arange(len(target), device=target.device)
            rows = None if teacher is None else probabilities(*teacher(every))
            logits = head.logits(z, s)
            token, total, of_rows = position_reference(logits, log_weights, target, keep, rows, weights.rows)
        nll = -(torch.logsumexp(log_weights + token, -1) * keep).sum()
        totals.append(weights.nll * nll + total)
        figures.append(torch.cat([nll.detach()[None], of_rows]))
        if s + 1 < anchors.targets.shape[1]:
            state = latent.advance(state, s, torch.where((target >= 0)[:, None], token, 0.0))
    return torch.stack(totals), torch.stack(figures, -1)


def chunk_size(config: DraftConfig) -> int:
    """Anchors at a time; unfused, as many as keep the logits of one position, (C, r, V'), within bounds."""
    if not config.own_unembedding:
        return max(MOST_ROWS // config.rank, MOST_ANCHORS)
    return min(max(MOST_LOGITS // (config.rank * config.draft_vocab_size), 1), MOST_ANCHORS)


def head_losses(
    head: DraftHead, anchors: Anchors, weights: LossWeights, *, chunk: int | None = None
) -> Losses:
    """All losses of a batch of anchors; see `LossWeights` for the terms.

        total = share (sum_s gamma^s (w_nll nll_s + w_kl kl_s + w_tv tv_s) + P (w_balance balance + w_z z))

    Under autocast the features alone are made in the lower precision: that is where the time goes.

    Args:
        chunk: anchors at a time; by default `chunk_size`.
    """
    features = anchors.features(head).float()
    with torch.autocast(features.device.type, enabled=False):
        return feature_losses(head, features, anchors, weights, chunk=chunk)


def feature_losses(
    head: DraftHead, features: Tensor, anchors: Anchors, weights: LossWeights, *, chunk: int | None = None
) -> Losses:
    """`head_losses` from `Anchors.features` on."""
    count, steps = anchors.targets.shape
    gamma = weights.discount ** torch.arange(steps, device=features.device, dtype=torch.float32)

    def part_loss(own: Tensor, part: slice) -> tuple[Tensor, Tensor]:
        totals, figures = chunk_losses(head, own, anchors.part(part), weights, fused)
        return (totals * gamma).sum(), figures

    scores = head.gate.scores(features)
    load = scores.detach().softmax(-1).sum(0) / max(count, 1)
    likeliest = torch.nn.functional.one_hot(scores.argmax(-1), scores.shape[-1]).sum(0) / max(count, 1)
    balance = z_loss = torch.zeros((), device=features.device)
    if count == 0:
        zeros = torch.zeros(steps, device=features.device)
        nothing = head.maps(features).sum()
        counts = anchors.valid.sum(0)
        return Losses(nothing, zeros, zeros, zeros, counts, load, likeliest, balance, z_loss)
    size, fused = min(chunk or chunk_size(head.config), count), None
    if not head.config.own_unembedding:
        fused = FusedRows(head.rows, rank=head.config.rank, most=size, weights=weights.rows)
    total, figures = chunked_sum(part_loss, features, head.parameters(), size=size)
    if head.config.rank > 1 and (weights.balance > 0 or weights.z_loss > 0):
        balance, z_loss = count * balance_loss(scores.log_softmax(-1)), count * router_z_loss(scores)
        total = total + weights.balance * balance + weights.z_loss * z_loss
        balance, z_loss = balance.detach(), z_loss.detach()
    nll, kl, tv = figures
    counts = anchors.valid.sum(0)
    return Losses(total * anchors.share, nll, kl, tv, counts, load, likeliest, balance, z_loss)

"""What a head says of the text that follows each position: its probabilities, and what would be accepted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from polydraft.heads import DraftHead
from polydraft.joint import JointDistribution
from polydraft.training.losses import MOST_ANCHORS, Anchors


class Along(NamedTuple):
    """What a joint says of the tokens that follow in the text, each given those before it.

    Attributes:
        log_q: (B, n) float32, log q(x_s | x_<s); of no meaning from the first token outside on.
        hits: (B, n) bool, whether x_s is the likeliest there; None where it was not asked for.
    """

    log_q: Tensor
    hits: Tensor | None


def along(joint: JointDistribution, targets: Tensor, *, hits: bool) -> Along:
    """Follow the text's own path through `joint`.

    Up to the first miss, `hits` are those of the greedy chain.

    Args:
        targets: (B, n) draft ids, -1 outside.
    """
    state, log_q, hit = joint.start(), [], []
    for s in range(joint.horizon):
        token = targets[:, s].clamp(min=0)
        if hits:
            row = joint.row(state, s)
            log_q.append(row.gather(-1, token[:, None])[:, 0])
            hit.append(row.argmax(-1) == targets[:, s])
        else:
            log_q.append(joint.token_log_prob(state, s, token))
        if s + 1 < joint.horizon:
            state = joint.advance(state, s, token)
    return Along(torch.stack(log_q, dim=-1), torch.stack(hit, dim=-1) if hits else None)


def kept(log_q: Tensor, log_p: Tensor, targets: Tensor) -> Tensor:
    """min(1, q / p) of each target given those before it; 0 for one outside the draft vocabulary.

    Args:
        log_q, log_p: (B, n) of the targets. targets: (B, n) draft ids, -1 outside.

    Returns:
        (B, n) float64.
    """
    return (log_q - log_p).clamp(max=0).double().exp() * (targets >= 0)


@dataclass(frozen=True, kw_only=True)
class Paths:
    """What a head says along the text, one row per anchor.

    Attributes:
        log_q: (P, n) float32, of the tokens that follow, each given those before it. valid: (P, n) bool,
            it and all before it can be drafted.
        greedy, sampled: (P, n) float64, chance that the first s drafts are all accepted; None where not
            asked for.
    """

    log_q: Tensor
    valid: Tensor
    greedy: Tensor | None
    sampled: Tensor | None


@torch.no_grad()
def paths(head: DraftHead, anchors: Anchors, *, greedy: bool = True, sampled: bool = True) -> Paths:
    """Go along the text from every anchor.

        greedy_s  = prod_{j<=s} [x_j = argmax q(. | x_<j)]
        sampled_s = prod_{j<=s} min(1, q(x_j | x_<j) / p(x_j | x_<j))

    The second averages to sum_x prod_j min(p_j, q_j) over text sampled from p.

    Args:
        anchors: with a teacher where `sampled`.
    """
    skip = anchors.targets.shape[1] - head.config.horizon
    features, past = anchors.read(head)
    targets, valid = anchors.targets[:, skip:], anchors.valid[:, skip:]
    log_q, hits, ratios = [], [], []
    for i in range(0, len(targets), MOST_ANCHORS):
        part = slice(i, i + MOST_ANCHORS)
        seen = None if past is None else past.part(part)
        joint = head.joint(features[part], anchors.next_tokens[part], seen)
        found = along(joint, targets[part], hits=greedy)
        log_q.append(found.log_q.float())
        if found.hits is not None:
            hits.append(found.hits.double())
        if sampled:
            assert anchors.teacher is not None and anchors.teacher_index is not None
            log_p = anchors.teacher.log_probs(anchors.teacher_index[part, skip:], targets[part])
            ratios.append(kept(found.log_q, log_p, targets[part]))
    return Paths(
        log_q=torch.cat(log_q),
        valid=valid,
        greedy=(torch.cat(hits) * valid).cumprod(-1) if hits else None,
        sampled=(torch.cat(ratios) * valid).cumprod(-1) if ratios else None,
    )

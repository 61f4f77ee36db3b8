"""Held-out figures of a head without decoding: likelihood per position and expected acceptance."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from polydraft.heads import DraftHead
from polydraft.training.anchors import build_anchors
from polydraft.training.data import Document, collate
from polydraft.training.losses import MOST_ANCHORS, Anchors, LossWeights, head_losses


def expected_acceptance(head: DraftHead, anchors: Anchors) -> tuple[Tensor, Tensor]:
    """Probability that the first s drafts are all accepted, s = 1..n, along the text's own path.

        greedy_s  = prod_{j<=s} [x_j = argmax q(. | x_<j)]
        sampled_s = prod_{j<=s} min(1, q(x_j | x_<j) / p(x_j | x_<j))

    The first is what greedy decoding accepts where the base model wrote the text greedily; the second
    is an unbiased estimate for token-wise rejection sampling where the text was sampled from p at
    temperature 1 (expectation over x ~ p of the product equals sum_x prod_j min(p_j, q_j)).

    Args:
        anchors: with teacher rows.

    Returns:
        greedy and sampled, each (P, n) float32.
    """
    assert anchors.teacher is not None and anchors.teacher_index is not None
    skip = anchors.targets.shape[1] - head.config.horizon
    greedy, sampled = [], []
    for i in range(0, len(anchors.hidden), MOST_ANCHORS):
        part = slice(i, i + MOST_ANCHORS)
        joint = head(anchors.hidden[part], anchors.next_tokens[part])
        targets = anchors.targets[part, skip:].clamp(min=0)
        valid = anchors.valid[part, skip:].float()
        state, hits, ratios = joint.start(), [], []
        for s in range(head.config.horizon):
            row = joint.row(state, s)
            token = targets[:, s : s + 1]
            log_p = anchors.teacher.log_rows(anchors.teacher_index[part, skip + s]).gather(-1, token)
            hits.append((row.argmax(-1, keepdim=True) == token).float())
            ratios.append((row.gather(-1, token) - log_p).clamp(max=0).exp())
            if s + 1 < head.config.horizon:
                state = joint.advance(state, s, token[:, 0])
        greedy.append((torch.cat(hits, -1) * valid).cumprod(-1))
        sampled.append((torch.cat(ratios, -1) * valid).cumprod(-1))
    return torch.cat(greedy), torch.cat(sampled)


@torch.no_grad()
def validate(
    head: DraftHead,
    model: PreTrainedModel,
    documents: Sequence[Document],
    *,
    batch_size: int = 8,
    anchors_per_window: int = 0,
) -> dict[str, float]:
    """Held-out figures; see `expected_acceptance` for the two acceptance lengths (1 + accepted drafts).

    Greedy figures come from documents written at temperature 0, sampled ones from temperature 1;
    text of unknown temperature counts for both.

    Args:
        anchors_per_window: positions looked at per window, on average, the same ones every time; 0 is all.

    Returns:
        nll (joint, nats per anchor), nll_s per position, greedy_acceptance_length,
        sampled_acceptance_length (where there is such text), coverage (share of targets at the first
        position that can be drafted).
    """
    ordered = sorted(documents, key=lambda d: len(d.input_ids))
    nll: Tensor | None = None
    counts: Tensor | None = None
    anchors_seen, drafts = 0, 0.0
    accepted: dict[str, list[float]] = {"greedy": [0.0, 0.0], "sampled": [0.0, 0.0]}
    for temperature in sorted({d.temperature for d in ordered}, key=str):
        group = [d for d in ordered if d.temperature == temperature]
        for i in range(0, len(group), batch_size):
            batch = collate([vars(d) for d in group[i : i + batch_size]])
            batch = {k: v.to(head.device) for k, v in batch.items()}
            with torch.random.fork_rng():
                torch.manual_seed(i)
                anchors = build_anchors(head, model, batch, teacher=True, most=anchors_per_window)
            if not len(anchors.hidden):
                continue
            losses = head_losses(head, anchors, LossWeights())
            nll = losses.nll if nll is None else nll + losses.nll
            counts = losses.counts if counts is None else counts + losses.counts
            anchors_seen += len(anchors.hidden)
            drafts += float(anchors.valid[:, -head.config.horizon].sum())
            for name, table in zip(("greedy", "sampled"), expected_acceptance(head, anchors), strict=True):
                if temperature is None or temperature == {"greedy": 0.0, "sampled": 1.0}[name]:
                    accepted[name][0] += float(table.sum())
                    accepted[name][1] += len(table)
    if nll is None or counts is None:
        return {}
    figures = {"nll": float(nll.sum() / anchors_seen), "coverage": drafts / anchors_seen}
    figures |= {f"nll_{s + 1}": float(v) for s, v in enumerate(nll / counts.clamp(min=1))}
    figures |= {
        f"{k}_acceptance_length": 1 + total / count for k, (total, count) in accepted.items() if count
    }
    return figures

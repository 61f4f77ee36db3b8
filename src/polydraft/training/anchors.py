"""From a batch of text to training anchors: one forward of the frozen base model."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

from polydraft.heads import DraftHead
from polydraft.hidden import HiddenTap
from polydraft.training.losses import Anchors


def anchor_mask(input_ids: Tensor, labels: Tensor) -> Tensor:
    """Positions t whose x[t+1] is labelled and that have an x[t+2]; (B, T) -> (B, T) bool."""
    mask = torch.zeros_like(input_ids, dtype=torch.bool)
    mask[:, :-2] = (labels[:, 1:-1] != -100) & (labels[:, 2:] != -100)
    return mask


@torch.no_grad()
def trunk_states(
    head: DraftHead, model: PreTrainedModel, batch: dict[str, Tensor], *, teacher: bool
) -> tuple[Tensor, Tensor | None]:
    """Hidden states (B, T, d) and, for distillation, log rows over the draft vocabulary (B T, V').

    From the batch's cache where it has one, else by a forward of the base model; the peak is then its
    logits (B, T, V), once, in its own dtype.
    """
    if "hidden" in batch:
        hidden = batch["hidden"]
        if not teacher:
            return hidden, None
        scores = (hidden.to(head.rows.dtype) @ head.rows.T).flatten(0, 1).float()
        return hidden, scores - batch["log_normaliser"].flatten()[:, None]
    with HiddenTap(model) as tap:
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        logits = model(**inputs, use_cache=False).logits.flatten(0, 1)
        hidden = tap.hidden
    if not teacher:
        return hidden, None
    rows = [(p.float() - p.float().logsumexp(-1, keepdim=True))[:, head.draft_ids] for p in logits.split(256)]
    return hidden, torch.cat(rows)


def build_anchors(
    head: DraftHead, model: PreTrainedModel, batch: dict[str, Tensor], *, teacher: bool
) -> Anchors:
    """Anchors of a right-padded batch as `data.collate` makes it; `teacher` adds the base model's rows."""
    input_ids, labels = batch["input_ids"], batch["labels"]
    hidden, log_probs = trunk_states(head, model, batch, teacher=teacher)
    width = input_ids.shape[1]
    row, t = anchor_mask(input_ids, labels).nonzero(as_tuple=True)
    first = 1 if head.config.features == "hidden" else 2
    offsets = torch.arange(first, 2 + head.config.horizon, device=input_ids.device)
    position = t[:, None] + offsets
    inside = position < width
    position = position.clamp(max=width - 1)
    inside &= labels[row[:, None], position] != -100
    targets = torch.where(inside, head.draft_index(input_ids[row[:, None], position]), -1)
    known = targets >= 0
    drafts = known[:, first == 1 :].int().cumprod(-1).bool()
    valid = torch.cat([known[:, :1], drafts], -1) if first == 1 else drafts
    return Anchors(
        hidden=hidden[row, t],
        next_tokens=input_ids[row, t + 1],
        targets=targets,
        valid=valid,
        teacher=row[:, None] * width + position - 1 if teacher else None,
        teacher_log_probs=log_probs,
    )

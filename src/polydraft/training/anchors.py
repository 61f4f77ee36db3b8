"""From a batch of text to training anchors: one forward of the frozen base model."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

from polydraft.forwards import lean
from polydraft.heads import DraftHead
from polydraft.heads.fingerprint import unembedding
from polydraft.hidden import HiddenTap
from polydraft.training.losses import Anchors, Context
from polydraft.training.teacher import Teacher, has_linear_logits, log_normalisers, state_normalisers


def anchor_mask(input_ids: Tensor, labels: Tensor) -> Tensor:
    """Positions t whose x[t+1] is labelled and that have an x[t+2]; (B, T) -> (B, T) bool."""
    mask = torch.zeros_like(input_ids, dtype=torch.bool)
    mask[:, :-2] = (labels[:, 1:-1] != -100) & (labels[:, 2:] != -100)
    return mask


def thinned(mask: Tensor, most: int) -> tuple[Tensor, float]:
    """B times `most` of the positions in `mask` (B, T), and how many each stands for.

    All have the same chance, whatever row they lie in, so that a sum over those kept, times the share,
    is that over all on average. `most` of 0 keeps all.
    """
    whole, count = int(mask.sum()), most * len(mask)
    if not most or whole <= count:
        return mask, 1.0
    order = torch.where(mask, torch.rand(mask.shape, device=mask.device), -1.0).flatten()
    kept = torch.zeros_like(order, dtype=torch.bool)
    kept[order.topk(count).indices] = True
    return kept.view_as(mask), whole / count


def trunk_inputs(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """What the base model reads of a batch."""
    return {name: batch[name] for name in ("input_ids", "attention_mask", "position_ids") if name in batch}


def run_trunk(head: DraftHead, model: PreTrainedModel, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Hidden states (B, T, D) and logits (B, T, V) of a forward, with gradients where they are enabled."""
    with HiddenTap(model, **head.config.taps) as tap:
        logits: Tensor = model(**trunk_inputs(batch), use_cache=False, **lean(model)).logits
        return tap.hidden, logits


def decoder_states(head: DraftHead, model: PreTrainedModel, batch: dict[str, Tensor]) -> Tensor:
    """Hidden states (B, T, D) without the unembedding, where `teacher.has_linear_logits`."""
    with HiddenTap(model, layers=head.config.layers, every=True) as tap:
        model.get_decoder()(**trunk_inputs(batch), use_cache=False, **lean(model))
        return tap.hidden


@torch.no_grad()
def trunk_states(
    head: DraftHead, model: PreTrainedModel, batch: dict[str, Tensor], *, wanted: Tensor | None
) -> tuple[Tensor, Teacher | None]:
    """Hidden states (B, T, D) and, for distillation, rows of the B T positions.

    From the batch's cache where it has one, or from `hidden` (with its gradient) and `logits` (B, T, V),
    the teacher's, of a trained trunk; else by a forward of the base model: without the unembedding, where
    the rows follow from the states, else the peak is its logits, once, in its own dtype.

    Args:
        wanted: positions whose rows will be asked for, int64, of B T; None for no rows.
    """
    if "log_normaliser" in batch:
        hidden = batch["hidden"]
        last = hidden[..., : head.config.hidden_size]
        rows = Teacher(batch["log_normaliser"].flatten(), hidden=last.flatten(0, 1), rows=head.rows)
        return hidden, rows if wanted is not None else None
    logits: Tensor | None = None
    if "logits" in batch:
        hidden, logits = batch["hidden"], batch["logits"]
    elif has_linear_logits(model):
        hidden = decoder_states(head, model, batch)
    else:
        hidden, logits = run_trunk(head, model, batch)
    if wanted is None:
        return hidden, None
    normalisers = torch.full(hidden.shape[:2], torch.nan, device=hidden.device).flatten()
    if logits is None:
        last = hidden[..., : head.config.hidden_size].flatten(0, 1)
        normalisers[wanted] = state_normalisers(last[wanted], unembedding(model))
        return hidden, Teacher(normalisers, hidden=last, rows=head.rows)
    logits = logits.flatten(0, 1)
    normalisers[wanted] = log_normalisers(logits[wanted])
    return hidden, Teacher(normalisers, logits=logits, draft_ids=head.draft_ids)


def build_anchors(
    head: DraftHead, model: PreTrainedModel, batch: dict[str, Tensor], *, teacher: bool, most: int = 0
) -> Anchors:
    """Anchors of a right-padded batch as `data.collate` makes it.

    Args:
        teacher: add the base model's rows. most: anchors per row of the batch, drawn at random (`thinned`);
            0 is all.
    """
    input_ids, labels = batch["input_ids"], batch["labels"]
    width = input_ids.shape[1]
    mask, share = thinned(anchor_mask(input_ids, labels), most)
    row, t = mask.nonzero(as_tuple=True)
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
    index = row[:, None] * width + position - 1 if teacher else None
    hidden, rows = trunk_states(head, model, batch, wanted=None if index is None else index.unique())
    context = None
    if head.config.features == "block":
        following = torch.cat([input_ids[:, 1:], input_ids[:, -1:]], dim=1)
        context = Context(hidden, following, batch.get("position_ids"), row * width + t)
    return Anchors(
        hidden=hidden[row, t],
        next_tokens=input_ids[row, t + 1],
        targets=targets,
        valid=valid,
        teacher=rows,
        teacher_index=index,
        share=share,
        context=context,
    )

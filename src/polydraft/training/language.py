"""The base model's own next-token loss: trained along with a trunk, and reported before and after."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from polydraft.forwards import lean
from polydraft.training.chunked import chunked_sum
from polydraft.training.data import Document, collate

ROWS = 256
"""Rows of logits that are copied to float32 at a time."""


def next_targets(labels: Tensor) -> Tensor:
    """The label that each position predicts, -100 for none; (B, T) -> (B, T)."""
    return torch.cat([labels[:, 1:], labels.new_full((len(labels), 1), -100)], dim=-1)


def next_token_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """sum_t -log p(x[t+1] | x_<=t) over the labelled x[t+1], in nats; scalar float32.

    Args:
        logits: (B, T, V), any dtype. labels: (B, T), -100 where not learnt.
    """
    targets = next_targets(labels).flatten()

    def loss(rows: Tensor, part: slice) -> tuple[Tensor, Tensor]:
        total = cross_entropy(rows.float(), targets[part], ignore_index=-100, reduction="sum")
        return total, total.new_zeros(())

    return chunked_sum(loss, logits.flatten(0, 1), [], size=ROWS)[0]


@torch.no_grad()
def language_loss(model: PreTrainedModel, documents: Sequence[Document], *, batch_size: int = 8) -> float:
    """Mean of -log p(x[t+1] | x_<=t) over the learnt tokens of `documents`, in nats per token.

    The model is left in eval mode.
    """
    model.eval()
    ordered = sorted(documents, key=lambda d: len(d.input_ids))
    total, count = 0.0, 0
    for i in range(0, len(ordered), batch_size):
        batch = collate([vars(d) for d in ordered[i : i + batch_size]])
        labels = batch.pop("labels").to(model.device)
        inputs = {name: batch[name].to(model.device) for name in ("input_ids", "attention_mask")}
        logits = model(**inputs, use_cache=False, **lean(model)).logits
        total += float(next_token_loss(logits, labels))
        count += int((next_targets(labels) != -100).sum())
    return total / max(count, 1)

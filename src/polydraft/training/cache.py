"""Optional: keep the base model's hidden states in memory, so that later epochs cost no trunk forward."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from transformers import PreTrainedModel

from polydraft.errors import InputError
from polydraft.hidden import HiddenTap
from polydraft.training.data import Document, collate


def cache_bytes(model: PreTrainedModel, documents: Sequence[Document]) -> int:
    """Memory that `cache_hidden` will take."""
    width = model.config.get_text_config().hidden_size * model.dtype.itemsize + torch.float32.itemsize
    return sum(len(d.input_ids) for d in documents) * int(width)


@torch.no_grad()
def cache_hidden(
    model: PreTrainedModel,
    documents: Sequence[Document],
    *,
    batch_size: int = 8,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[Document]:
    """The same documents with `hidden` and `log_normaliser` filled in, in the same order.

    Raises:
        InputError: the model changes its logits after the unembedding, so they cannot be had from the
            hidden states alone.
    """
    output = model.get_output_embeddings()
    order = sorted(range(len(documents)), key=lambda i: len(documents[i].input_ids))
    out = list(documents)
    for start in range(0, len(order), batch_size):
        part = order[start : start + batch_size]
        batch = collate([vars(documents[i]) for i in part])
        ids, mask = batch["input_ids"].to(model.device), batch["attention_mask"].to(model.device)
        with HiddenTap(model) as tap:
            logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
            hidden = tap.hidden
        if start == 0 and not torch.equal(output(hidden), logits):
            raise InputError(f"{type(model).__name__} changes its logits after the unembedding: leave --cache-hidden off")
        for row, i in enumerate(part):
            length = len(documents[i].input_ids)
            out[i] = replace(
                documents[i],
                hidden=hidden[row, :length].cpu().clone(),
                log_normaliser=logits[row, :length].float().logsumexp(-1).cpu(),
            )
        if on_progress is not None:
            on_progress(start + len(part), len(order))
    return out

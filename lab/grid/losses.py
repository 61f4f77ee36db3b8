"""Losses of a head and of the model below it on text that neither has seen, window by window."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lab.grid.config import Cell, Evaluation
from lab.grid.store import Store, write_json
from lab.grid.targets import Target
from polydraft.heads import DraftHead
from polydraft.limits import embedding_rows
from polydraft.loading import load_head
from polydraft.training.anchors import build_anchors
from polydraft.training.data import Document, collate, read_documents, windows
from polydraft.training.language import language_loss
from polydraft.training.paths import paths


def measure_losses(evaluation: Evaluation, store: Store, cell: Cell, target: Target) -> None:
    """Keep the losses of a trained cell on its base's test text; nothing to do without such text.

    The windows are the first of the text, cut as training cuts them.
    """
    if not cell.base.test or store.losses(cell, evaluation):
        return
    rows = embedding_rows(target.model)
    documents = read_documents(cell.base.test, target.tokenizer, rows=rows)
    chosen = windows(documents, max_length=evaluation.test_length)[: evaluation.test_windows]
    head = load_head(str(store.head(cell.name)), model=target.model, tokenizer=target.tokenizer)
    losses = [window_losses(head, target.model, window) for window in chosen]
    made_with = store.loss_settings(cell, evaluation)
    write_json(store.loss_path(cell), {"made_with": made_with, "windows": losses})


@torch.no_grad()
def window_losses(head: DraftHead, model: PreTrainedModel, window: Document) -> dict[str, Any]:
    """Sums over one window.

    Returns:
        tokens, language: next tokens judged, and their summed -log p under `model`, nats.
        counts, nll: of anchors with all n tokens inside window and draft vocabulary, how many, and per
        position the summed -log q(x_s | x_<s), nats: their sum over positions is the joint's.
    """
    batch = {name: value.to(model.device) for name, value in collate([vars(window)]).items()}
    tokens = int((batch["labels"][:, 1:] != -100).sum())
    anchors = build_anchors(head, model, batch, teacher=False)
    found = paths(head, anchors, greedy=False, sampled=False)
    whole = found.valid.all(-1)
    nll: Tensor = -found.log_q[whole].double().sum(0)
    return {
        "tokens": tokens,
        "language": language_loss(model, [window]) * tokens,
        "counts": int(whole.sum()),
        "nll": nll.tolist(),
    }

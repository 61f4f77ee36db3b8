"""Several short documents in one row of a batch, none of which sees another.

A row carries `position_ids` that restart at every document and no attention mask. From the restarts
transformers makes a mask that is causal within each document, and the positions are those the document
would have alone. `check_packing` refuses a model for which that does not hold.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from polydraft.errors import InputError
from polydraft.forwards import lean
from polydraft.hidden import HiddenTap
from polydraft.training.data import Document
from polydraft.training.order import DocumentDataset

PROBES = (13, 21)
"""Lengths of the two documents that `check_packing` packs."""


def first_fit(lengths: Sequence[int], *, size: int) -> list[list[int]]:
    """Indices of `lengths` as rows: each in turn goes to the first row that has room, else to a new one.

    A tree over the rows holds at each node the most room below it, so a row is found in O(log n).

    Args:
        lengths: tokens of each document, none above `size`. size: tokens of a row at most.
    """
    leaves = 1 << max(len(lengths) - 1, 0).bit_length()
    room = [size] * (2 * leaves)
    rows: list[list[int]] = []
    for index, length in enumerate(lengths):
        node = 1
        while node < leaves:
            node = 2 * node + (room[2 * node] < length)
        if node - leaves == len(rows):
            rows.append([])
        rows[node - leaves].append(index)
        room[node] -= length
        while node > 1:
            node //= 2
            room[node] = max(room[2 * node], room[2 * node + 1])
    return rows


def collate_packed(documents: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
    """A batch of packed rows, each with its `documents`: input_ids, position_ids, labels (B, T); from a cache
    also hidden (B, T, d) and log_normaliser (B, T). No attention mask: what pads a row is one more document.

    The first token of a document has no label, so no anchor and no target crosses into the document before.
    """
    inputs, positions, labels = [], [], []
    for row in documents:
        ids = [torch.tensor(d["input_ids"]) for d in row["documents"]]
        learnt = [part.clone() for part in ids]
        for part, document in zip(learnt, row["documents"], strict=True):
            part[: max(document["learn_from"], 1)] = -100
        inputs.append(torch.cat(ids))
        positions.append(torch.cat([torch.arange(len(part)) for part in ids]))
        labels.append(torch.cat(learnt))
    width = max(map(len, inputs))
    filled = [torch.cat([part, torch.arange(width - len(part))]) for part in positions]
    batch = {
        "input_ids": pad_sequence(inputs, batch_first=True),
        "position_ids": torch.stack(filled),
        "labels": pad_sequence(labels, batch_first=True, padding_value=-100),
    }
    if documents[0]["documents"][0]["hidden"] is not None:
        for name in ("hidden", "log_normaliser"):
            parts = [torch.cat([d[name] for d in row["documents"]]) for row in documents]
            batch[name] = pad_sequence(parts, batch_first=True)
    return batch


class PackedDataset(DocumentDataset):
    """Rows of documents, packed by `first_fit` in the order given, for `data.collate`.

    Args:
        documents: windows. size: tokens of a row at most; no document is longer.

    Attributes:
        lengths: tokens of each row.
    """

    collate = staticmethod(collate_packed)

    def __init__(self, documents: Sequence[Document], *, size: int) -> None:
        rows = first_fit([len(d.input_ids) for d in documents], size=size)
        self.rows = [{"documents": [vars(documents[i]) for i in row]} for row in rows]
        self.lengths = [sum(len(documents[i].input_ids) for i in row) for row in rows]


@torch.no_grad()
def check_packing(model: PreTrainedModel) -> None:
    """Compare the hidden states of two packed documents with those of each alone.

    They may differ by sqrt(eps) of the model's dtype, in norm: rounding differs with the shapes.

    Raises:
        InputError: they differ by more, or the model takes no positions.
    """
    refusal = f"{type(model).__name__} does not keep packed documents apart: leave --packing off"
    if "position_ids" not in inspect.signature(model.forward).parameters:
        raise InputError(refusal)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(model.config.get_text_config().vocab_size, (1, sum(PROBES)), generator=generator)
    ids = ids.to(model.device)
    positions = torch.cat([torch.arange(n, device=model.device) for n in PROBES])[None]
    packed = _states(model, ids, positions).split(PROBES, dim=1)
    for document, together in zip(ids.split(PROBES, dim=1), packed, strict=True):
        alone = _states(model, document, torch.arange(document.shape[1], device=model.device)[None])
        if not bool((together - alone).norm() <= torch.finfo(model.dtype).eps ** 0.5 * alone.norm()):
            raise InputError(refusal)


def _states(model: PreTrainedModel, input_ids: Tensor, position_ids: Tensor) -> Tensor:
    """Hidden states (1, T, d) in float32."""
    with HiddenTap(model) as tap:
        model(input_ids=input_ids, position_ids=position_ids, use_cache=False, **lean(model))
        return tap.hidden.float()

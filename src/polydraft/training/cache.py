"""Optional: the base model's hidden states on disk, so that later epochs and runs cost no forward of it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import linear
from transformers import PreTrainedModel

from polydraft.errors import InputError
from polydraft.files import saving
from polydraft.forwards import lean
from polydraft.heads.fingerprint import config_fingerprint, unembedding, weights_fingerprint
from polydraft.hidden import HiddenTap
from polydraft.training.data import Document, collate, data_hash
from polydraft.training.teacher import log_normalisers

OnProgress = Callable[[int, int], None]
SAME = 0.1
"""Relative difference that rounding may make, bfloat16 included."""


def cache_path(
    folder: Path, model: PreTrainedModel, documents: Sequence[Document], *, layers: Sequence[int] = ()
) -> Path:
    """The file that holds the states of just these documents, model, dtype and layers."""
    parts = [data_hash(documents), config_fingerprint(model), weights_fingerprint(model), str(model.dtype)]
    key = json.dumps([*parts, list(layers)] if layers else parts)
    return folder / f"hidden-{hashlib.sha256(key.encode()).hexdigest()[:16]}.safetensors"


def load_or_cache(
    folder: Path,
    model: PreTrainedModel,
    documents: Sequence[Document],
    *,
    layers: Sequence[int] = (),
    batch_size: int = 8,
    on_progress: OnProgress | None = None,
) -> list[Document]:
    """`cache_hidden`, through a file below `folder`: written once (atomically), read afterwards.

    Raises:
        InputError: as `cache_hidden` and `check_states`, or the disk has no room for them.
        PolydraftError: the disk filled up meanwhile.
    """
    path = cache_path(folder, model, documents, layers=layers)
    if path.exists():
        stored = load_file(path)
        filled = _filled(documents, stored["hidden"], stored["log_normaliser"])
        check_states(path, model, min(filled, key=lambda d: len(d.input_ids)), layers=layers)
        return filled
    folder.mkdir(parents=True, exist_ok=True)
    needed, free = cache_bytes(model, documents, layers=layers), shutil.disk_usage(folder).free
    if needed > free:
        raise InputError(
            f"the hidden states need {needed / 2**20:,.0f} MiB, {folder} has {free / 2**20:,.0f} MiB left: "
            "make room, or leave --cache-hidden off"
        )
    filled = cache_hidden(model, documents, layers=layers, batch_size=batch_size, on_progress=on_progress)
    partial = path.with_suffix(f".{os.getpid()}.part")
    stored = {name: torch.cat([getattr(d, name) for d in filled]) for name in ("hidden", "log_normaliser")}
    try:
        with saving(path):
            save_file(stored, partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return filled


def check_states(path: Path, model: PreTrainedModel, stored: Document, *, layers: Sequence[int] = ()) -> None:
    """Compare the states of one document with what the model gives now.

    Fine-tuning may leave the unembedding alone, and then two models have one key.

    Raises:
        InputError: they are another model's.
    """
    (fresh,) = cache_hidden(model, [Document(stored.input_ids)], layers=layers)
    assert stored.hidden is not None and fresh.hidden is not None
    old, new = stored.hidden.float(), fresh.hidden.float()
    if (old - new).norm() > SAME * new.norm():
        raise InputError(f"{path} holds the states of another model with the same unembedding: remove it")


def state_size(model: PreTrainedModel, layers: Sequence[int]) -> int:
    """Columns of the states: of the last layer, then of each of `layers`."""
    return int(model.config.get_text_config().hidden_size) * (1 + len(layers))


def cache_bytes(model: PreTrainedModel, documents: Sequence[Document], *, layers: Sequence[int] = ()) -> int:
    """Size of the cache, on disk and in memory."""
    width = state_size(model, layers) * model.dtype.itemsize + torch.float32.itemsize
    return sum(len(d.input_ids) for d in documents) * width


@torch.no_grad()
def cache_hidden(
    model: PreTrainedModel,
    documents: Sequence[Document],
    *,
    layers: Sequence[int] = (),
    batch_size: int = 8,
    on_progress: OnProgress | None = None,
) -> list[Document]:
    """The same documents with `hidden` and `log_normaliser` filled in, in the same order.

    The store is allocated at once and filled from the longest document down: pieces allocated between
    growing batches would fragment the heap to many times their size.

    Raises:
        InputError: the model changes its logits after the unembedding, so they cannot be had from the
            hidden states alone.
    """
    lengths = [len(d.input_ids) for d in documents]
    width = state_size(model, layers)
    all_states = torch.empty(sum(lengths), width, dtype=model.dtype)
    all_normalisers = torch.empty(sum(lengths))
    states, normalisers = all_states.split(lengths), all_normalisers.split(lengths)
    order = sorted(range(len(documents)), key=lambda i: -lengths[i])
    for start in range(0, len(order), batch_size):
        part = order[start : start + batch_size]
        batch = collate([vars(documents[i]) for i in part])
        ids, mask = batch["input_ids"].to(model.device), batch["attention_mask"].to(model.device)
        with HiddenTap(model, layers=layers) as tap:
            logits = model(input_ids=ids, attention_mask=mask, use_cache=False, **lean(model)).logits
            hidden = tap.hidden
        if start == 0 and not torch.equal(
            linear(hidden[..., : state_size(model, ())], unembedding(model)), logits
        ):
            raise InputError(
                f"{type(model).__name__} changes its logits after the unembedding: leave --cache-hidden off"
            )
        for row, i in enumerate(part):
            states[i].copy_(hidden[row, : lengths[i]])
            normalisers[i].copy_(log_normalisers(logits[row, : lengths[i]]))
        if on_progress is not None:
            on_progress(start + len(part), len(order))
    return _filled(documents, all_states, all_normalisers)


def _filled(documents: Sequence[Document], hidden: Tensor, log_normaliser: Tensor) -> list[Document]:
    """Documents with their slices of the states of all."""
    lengths = [len(d.input_ids) for d in documents]
    parts = zip(documents, hidden.split(lengths), log_normaliser.split(lengths), strict=True)
    return [replace(document, hidden=h, log_normaliser=z) for document, h, z in parts]

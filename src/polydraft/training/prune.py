"""A smaller head out of a trained one: the components that carry the most weight, and no training."""

from __future__ import annotations

import copy
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from polydraft.errors import InputError
from polydraft.heads import DraftConfig, DraftHead
from polydraft.limits import position_rows
from polydraft.training.data import Document, data_hash, take_documents
from polydraft.training.gating import TextSample, draftings
from polydraft.training.start import MAPS
from polydraft.versions import versions


def prune(
    head: DraftHead,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    data: Sequence[Path] | Sequence[Document],
    out: Path,
    *,
    keep: int,
    sample: TextSample,
    command: str = "",
) -> dict[str, Any]:
    """Write the head that keeps the `keep` components of largest load on `data` to the folder `out`.

    Load is the mean weight of a component over anchors and drafted positions. The folder appears whole or
    not at all.

    Returns:
        what the new head's provenance says of it: rank before, components kept (from 1), the load of all,
        anchors it was measured on, hash of the data.

    Raises:
        InputError: `keep` does not fit, `out` is taken, or the data is bad.
    """
    check_keep(head.config, keep)
    check_out(out)
    documents = take_documents(data, model, tokenizer)
    load, anchors = component_load(head, model, documents, sample=sample)
    kept = sorted(load.argsort(descending=True, stable=True)[:keep].tolist())
    record = {
        "rank": head.config.rank,
        "kept": [component + 1 for component in kept],
        "load": [round(float(x), 6) for x in load],
        "anchors": anchors,
        "data": data_hash(documents),
    }
    smaller = confined(head, kept)
    smaller.config.provenance = {
        "command": command,
        "versions": versions(),
        "pruned": record,
        "before": head.config.provenance,
    }
    save_whole(smaller, out)
    return record


def check_out(out: Path) -> None:
    """Refuse a folder that holds something.

    Raises:
        InputError: it does.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} is not empty: choose another --out")


def check_keep(config: DraftConfig, keep: int) -> None:
    """Refuse what cannot be kept of a head.

    Raises:
        InputError: it has one component only, or `keep` lies outside 1..r.
    """
    if config.rank == 1:
        raise InputError(f"the head ({config.joint}) has one component: there is nothing to prune")
    if not 1 <= keep <= config.rank:
        raise InputError(f"keep must lie between 1 and the head's rank {config.rank}, got {keep}")


@torch.no_grad()
def component_load(
    head: DraftHead, model: PreTrainedModel, documents: Sequence[Document], *, sample: TextSample
) -> tuple[Tensor, int]:
    """Mean weight of every component over anchors and drafted positions, (r,) float64, and the anchors.

    Raises:
        InputError: no document is long enough.
    """
    total = torch.zeros(head.config.rank, dtype=torch.float64)
    anchors = 0
    drawn = sample.draw(documents, most=position_rows(model))
    for part in draftings(head, model, drawn, sample):
        weights = part.log_weights().double().exp()
        total += weights.mean(1).sum(0).cpu()
        anchors += len(weights)
    return total / anchors, anchors


@torch.no_grad()
def confined(head: DraftHead, kept: Sequence[int]) -> DraftHead:
    """The head that never leaves the components `kept` (0-based, distinct): weights among them normalised.

    At every position the same are kept; transitions into others go to these, in proportion. The rest of
    the head is as it was; it is not attached yet.
    """
    config = copy.deepcopy(head.config)
    config.rank = len(kept)
    config.components = config.components if config.components < len(kept) else 0
    smaller = DraftHead(config)
    nn.Module.to(smaller, head.dtype).train(mode=False)
    index = torch.tensor(kept)
    source = {name: value.cpu() for name, value in head.state_dict().items()}
    for name, value in smaller.state_dict().items():
        if name in MAPS:
            value.copy_(_taken(name, source[name], index, config))
        elif not name.startswith("gate."):
            value.copy_(source[name])
    smaller.gate.take(copy.deepcopy(head.gate).cpu(), index)
    return smaller


def _taken(name: str, value: Tensor, index: Tensor, config: DraftConfig) -> Tensor:
    """A parameter of all components, with its component axis taken at `index`."""
    if name == "maps.inner.weight":
        return value.view(config.positions, -1, config.map_rank, value.shape[-1])[:, index].flatten(0, 2)
    return value[:, index]


def save_whole(head: DraftHead, out: Path) -> None:
    """Write a head folder beside its place, then rename it; `out` must be free or empty."""
    out.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
    try:
        head.save_pretrained(beside)
        beside.chmod(0o755)
        beside.replace(out)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise

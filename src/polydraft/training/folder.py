"""The folder of a run: what it is the run of, and where it can continue."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.trainer_utils import get_last_checkpoint

from polydraft.errors import InputError
from polydraft.heads import DraftHead
from polydraft.ranks import world_size
from polydraft.textfiles import parse_json
from polydraft.training.data import Document, data_hash
from polydraft.training.options import TrainOptions


def run_identity(
    options: TrainOptions,
    documents: Sequence[Document],
    model: PreTrainedModel,
    init_from: DraftHead | None,
) -> dict[str, Any]:
    """All that the weights at the end depend on, for `run.json`."""
    return {
        "options": asdict(options),
        "data": data_hash(documents),
        "dtype": str(model.dtype).removeprefix("torch."),
        "processes": world_size(),
        "init_from": None if init_from is None else describe_head(init_from),
    }


def describe_head(head: DraftHead) -> dict[str, str]:
    """Where a head lies, and a hash of its weights."""
    digest = hashlib.sha256()
    for name, value in sorted(head.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return {"path": str(head.name_or_path), "hash": digest.hexdigest()[:32]}


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Names of what two identities differ in; where a head lies makes no difference."""
    old, new = ({**identity["options"], **identity} for identity in (old, new))
    for identity in (old, new):
        if identity.pop("options") and isinstance(identity.get("init_from"), dict):
            identity["init_from"] = identity["init_from"]["hash"]
    return sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name))


def check_free(out: Path, *, resume: bool) -> None:
    """Check that `out` is free, or holds a run to continue.

    Raises:
        InputError: it is no folder, holds a run and `resume` is off, a finished one, or something else.
    """
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file: choose another --out")
    if (out / "run.json").exists():
        if (out / "config.json").exists():
            raise InputError(f"{out} holds a finished run: choose another --out")
        if not resume:
            raise InputError(
                f"{out} already holds a training run: continue it with --resume, or choose another --out"
            )
    elif out.exists() and any(out.iterdir()):
        raise InputError(f"{out} is not empty and holds no training run: choose another --out")
    elif resume:
        raise InputError(f"{out} holds no training run to resume")


def check_folder(out: Path, identity: dict[str, Any], *, resume: bool) -> str | None:
    """Check that `out` is free, or holds the same run; returns the checkpoint to continue from.

    Raises:
        InputError: as of `check_free`, or a run of other options or data.
    """
    check_free(out, resume=resume)
    record = out / "run.json"
    if record.exists():
        names = differences(
            parse_json(record.read_text(), where=str(record)), json.loads(json.dumps(identity))
        )
        if names:
            raise InputError(
                f"{out} holds a run of other options or data ({', '.join(names)}): give the same ones, or "
                "choose another --out"
            )
    return last_complete_checkpoint(out / "checkpoints")


def last_complete_checkpoint(folder: Path) -> str | None:
    """The newest checkpoint that was written to its end; later, broken ones are removed.

    The Trainer writes `trainer_state.json` last, so a folder where it does not parse was cut short.
    """
    while folder.exists():
        found: str | None = get_last_checkpoint(str(folder))
        if found is None:
            break
        try:
            json.loads((Path(found) / "trainer_state.json").read_text())
        except (OSError, json.JSONDecodeError):
            shutil.rmtree(found)
        else:
            return found
    return None

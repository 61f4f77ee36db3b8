"""What a head folder holds, read without its weights or its base model."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from safetensors import safe_open

from polydraft.embedded import EMBEDDED
from polydraft.errors import InputError
from polydraft.heads import DraftConfig
from polydraft.loading import check_is_head
from polydraft.resources import shipped
from polydraft.sources import one_line_errors

WEIGHTS = "model.safetensors"
DRAFT_IDS = "draft_ids"
SHAPE = (
    "joint",
    "rank",
    "horizon",
    "features",
    "hidden_size",
    "feature_size",
    "map_rank",
    "markov_rank",
    "components",
    "own_unembedding",
    "vocab_size",
    "draft_vocab_size",
    "format_version",
)


def describe_head(name: str) -> dict[str, Any]:
    """Shape, size, base model and provenance of a head, ready for JSON.

    `parameters` counts trained numbers; the ids of the draft vocabulary are not among them.

    Args:
        name: a folder, or `smollm2-135m-instruct` for the shipped head.

    Raises:
        InputError: it is no head folder.
    """
    folder = shipped("heads", EMBEDDED) if name == EMBEDDED else Path(name)
    if not (folder / "config.json").is_file():
        raise InputError(f"{folder} is no head folder: it has no config.json")
    with one_line_errors(str(folder), what="head"):
        check_is_head(str(folder))
        if not (folder / WEIGHTS).is_file():
            raise InputError(f"{folder} is no whole head folder: it has no {WEIGHTS}")
        config = DraftConfig.from_pretrained(folder)
        with safe_open(folder / WEIGHTS, framework="pt") as weights:
            slices = {name: weights.get_slice(name) for name in weights.keys()}  # noqa: SIM118
            shapes = {name: part.get_shape() for name, part in slices.items()}
            dtypes = sorted({part.get_dtype() for name, part in slices.items() if name != DRAFT_IDS})
    out = {name: getattr(config, name) for name in SHAPE}
    return out | {
        "parameters": sum(math.prod(shape) for name, shape in shapes.items() if name != DRAFT_IDS),
        "stored_as": ", ".join(dtypes),
        "file_bytes": (folder / WEIGHTS).stat().st_size,
        "base_model": config.base_model,
        "provenance": config.provenance,
    }

"""Where a grid keeps what it has made, and whether what lies there is still what the file asks for.

    OUT/cells/NAME/cell.json            what the head was trained with, written before training
    OUT/cells/NAME/head/                the head; while it trains, its checkpoints
    OUT/cells/NAME/head/model, adapter  what was trained below it, where its options say so
    OUT/cells/NAME/seconds.json         time spent training it
    OUT/cells/NAME/NAME.loss.json       its losses on the test text
    OUT/cells/NAME/VARIANT.replay.json  its replay; VARIANT is NAME but for variants of the cell
    OUT/cells/NAME/VARIANT.speed.json   its timed runs
    OUT/texts/, OUT/texts-BASE/         the base model's continuations, and what they were made with
    OUT/cells/NAME/texts/               those of the model that the cell has trained
    OUT/results.json, results.md, *.png the report

All that depends on a head lies in its folder: remove the folder, and the cell is made again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lab.grid.config import Cell, Evaluation, GridConfig, Variant
from polydraft.bench.prompts import prompts_path
from polydraft.errors import InputError
from polydraft.files import write_atomic

RECORDS = ("cell.json", "seconds.json", "head/training.json")
"""What lies beside every head that is complete."""


class Store:
    """The folder of one grid."""

    def __init__(self, out: Path) -> None:
        self.out = out

    def folder(self, cell: str) -> Path:
        """Where all of one cell lies."""
        return self.out / "cells" / cell

    def head(self, cell: str) -> Path:
        """Its head folder."""
        return self.folder(cell) / "head"

    def is_trained(self, cell: str) -> bool:
        """Whether its head is complete: the configuration is written last."""
        return (self.head(cell) / "config.json").exists()

    def check(self, cells: Sequence[Cell]) -> None:
        """Refuse a complete head that does not say how it was made.

        Raises:
            InputError: names what is missing.
        """
        for folder in (self.folder(cell.name) for cell in cells if self.is_trained(cell.name)):
            for name in RECORDS:
                if not (folder / name).is_file():
                    raise InputError(
                        f"{folder} holds a head but no {name}, which says how it was made: put it back, "
                        "or remove the folder to make it again"
                    )

    def texts(self, cell: Cell) -> Path:
        """Continuations by the model that verifies it."""
        if cell.own_model:
            return self.folder(cell.name) / "texts"
        return self.out / (f"texts-{cell.base.name}" if cell.base.name else "texts")

    def loss_path(self, cell: Cell) -> Path:
        """Its losses on the test text."""
        return self.folder(cell.name) / f"{cell.name}.loss.json"

    def loss_settings(self, cell: Cell, evaluation: Evaluation) -> dict[str, Any]:
        """What they are made with, beside the head."""
        return {
            "test": [file_hash(path) for path in cell.base.test],
            "windows": evaluation.test_windows,
            "length": evaluation.test_length,
        }

    def losses(self, cell: Cell, evaluation: Evaluation) -> list[dict[str, Any]]:
        """A row per window of the test text; none if there are none with these settings."""
        found = read_json(self.loss_path(cell))
        current = found is not None and found["made_with"] == self.loss_settings(cell, evaluation)
        return list(found["windows"]) if current else []

    def replay_path(self, variant: Variant) -> Path:
        """Its replay."""
        return self.folder(variant.cell) / f"{variant.name}.replay.json"

    def speed_path(self, variant: Variant) -> Path:
        """Its timed runs."""
        return self.folder(variant.cell) / f"{variant.name}.speed.json"

    def replay_settings(self, variant: Variant, cell: Cell) -> dict[str, Any]:
        """What a replay is made with, beside the head: which texts, and how the variant drafts."""
        recipe = self.texts(cell) / "recipe.json"
        return {"texts": file_hash(recipe) if recipe.exists() else None, "components": variant.components}

    def replay(self, variant: Variant, cell: Cell) -> dict[str, Any]:
        """Rows of its replay by mode; empty if there is none along these texts."""
        found = read_json(self.replay_path(variant))
        current = found is not None and found["made_with"] == self.replay_settings(variant, cell)
        return dict(found["modes"]) if current else {}

    def speed_settings(self, variant: Variant, cell: Cell, evaluation: Evaluation) -> dict[str, Any]:
        """What a timed run is made with, beside the head; every row says so."""
        return {
            "prompts": file_hash(prompts_path(cell.base.prompts)),
            "max_new_tokens": evaluation.speed_tokens,
            "seed": evaluation.seed,
            "components": variant.components,
            "verification": variant.verification,
        }

    def speed(self, variant: Variant, cell: Cell, evaluation: Evaluation) -> list[dict[str, Any]]:
        """Its timed runs with the settings asked for."""
        wanted = self.speed_settings(variant, cell, evaluation).items()
        return [row for row in read_json(self.speed_path(variant)) or [] if row.items() >= wanted]


def file_hash(path: Path) -> str:
    """Tells whether a file is still the same."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def write_json(path: Path, content: Any) -> None:
    """Write `content`, whole or not at all; makes the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, json.dumps(content, indent=1) + "\n")


def read_json(path: Path) -> Any:
    """What `write_json` wrote; None if there is no such file.

    Raises:
        InputError: it is damaged.
    """
    if not path.exists():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is damaged, it is no JSON: remove it, or give another --out") from error


def cell_identity(config: GridConfig, cell: Cell, *, data: str) -> dict[str, Any]:
    """What a head is determined by; `data` is the hash of the documents."""
    source = config.cell(cell.init_from) if cell.init_from else None
    return {
        "model": cell.base.model,
        "dtype": config.dtype,
        "data": data,
        "options": asdict(cell.options),
        "init_from": cell_identity(config, source, data=data) if source else cell.head,
    }


def claim(path: Path, identity: dict[str, Any], *, what: str, remove: str) -> None:
    """Record at `path` what something is made with, or check that it agrees with what is recorded.

    Names that only one of the two has are not compared: an option that came later changes nothing.

    Raises:
        InputError: they differ; names `what`, the first difference, and what to `remove` to make it again.
    """
    identity = json.loads(json.dumps(identity))
    recorded = read_json(path)
    if recorded is None:
        write_json(path, identity)
        return
    found = difference(recorded, identity)
    if found is not None:
        name, old, new = found
        raise InputError(
            f"{what} was made with {name} {old}, not {new}: remove {remove} to make it again, "
            "or give another --out"
        )


def difference(
    old: Mapping[str, Any], new: Mapping[str, Any], *, prefix: str = ""
) -> tuple[str, Any, Any] | None:
    """The first name both have with different values, as (dotted name, old, new)."""
    for name in old:
        if name not in new or old[name] == new[name]:
            continue
        if isinstance(old[name], dict) and isinstance(new[name], dict):
            found = difference(old[name], new[name], prefix=f"{prefix}{name}.")
            if found is not None:
                return found
            continue
        return f"{prefix}{name}", old[name], new[name]
    return None

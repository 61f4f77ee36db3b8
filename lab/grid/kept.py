"""Rows of a grid that were made elsewhere: on another machine, or in a folder that is gone.

A long grid goes on from the results.json of an earlier run of the same file: its rows stand in the report as
they are, and their cells are not trained again. A new cell whose reference is such a row has no paired
figures (difference of losses, ratio of acceptance): these need both in one folder.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lab.grid.config import GridConfig, Variant
from lab.grid.metrics import Row
from lab.grid.report import SETTINGS
from lab.grid.store import difference
from lab.reading import read_results
from polydraft.errors import InputError

KEYS = ("cells", "max_new_tokens", "draws")
"""What a results.json of `python -m lab grid` holds."""


def read_kept(path: Path, config: GridConfig) -> dict[str, Row]:
    """The rows of a results.json that `config` asks for too, by the names of their variants.

    Raises:
        InputError: it cannot be read, or a row was trained or judged with other options than `config` has;
            names the first that differs.
    """
    content = read_results(path, KEYS, of="grid")
    asked = {"dtype": config.dtype, **{name: getattr(config.evaluation, name) for name in SETTINGS}}
    _check_same({name: content.get(name) for name in asked}, asked, what=str(path))
    found: dict[str, Row] = {row["name"]: row for row in content["cells"]}
    kept = {variant.name: variant for variant in config.variants if variant.name in found}
    for name, variant in kept.items():
        if "options" not in found[name]:
            raise InputError(f"{path}: {name!r} does not say what it was trained with: train it again")
        _check_same(found[name], _fields(config, variant), what=f"{path}: {name!r}")
    return {name: found[name] for name in kept}


def check_text(row: Row, data: str) -> None:
    """Refuse a row that was learnt from other text than `data`, a hash of it.

    Rows from before they said so pass.

    Raises:
        InputError: names the row.
    """
    if row.get("data", data) != data:
        raise InputError(f"{row['name']!r} was kept from training on other text: leave that file out")


def _fields(config: GridConfig, variant: Variant) -> dict[str, Any]:
    cell = config.cell(variant.cell)
    drafting = {"components": variant.components, "verification": variant.verification}
    return {"cell": cell.name, "base": cell.base.name, "options": asdict(cell.options), **drafting}


def _check_same(found: Row, asked: Row, *, what: str) -> None:
    other = difference(found, json.loads(json.dumps(asked)))
    if other is not None:
        name, old, new = other
        raise InputError(f"{what} was made with {name} {old}, not {new}: it has no place in this grid")

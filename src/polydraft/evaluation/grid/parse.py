"""The TOML file of a grid -> `GridConfig`; what is unknown or wrong is refused in one line."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Collection, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from polydraft.errors import InputError, PolydraftError
from polydraft.evaluation.grid.config import NOTHING, START, Cell, Evaluation, GridConfig, Variant
from polydraft.modes import DRAFTING, check_modes
from polydraft.training.options import TrainOptions, default_rank

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def read_config(path: Path) -> GridConfig:
    """Read and check a grid's file.

    Raises:
        InputError: it is missing, no TOML, or holds something unknown or wrong; names it.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, IsADirectoryError) as error:
        raise InputError(f"{path}: no such file") from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"{path}: not TOML ({error})") from error
    try:
        return _parse(content)
    except PolydraftError as error:
        raise InputError(f"{path}: {error}") from error


def _parse(content: dict[str, Any]) -> GridConfig:
    shape = {"model": str, "dtype": str, "data": list, "cache": str, "start": dict, "defaults": dict}
    _check(content, shape | {"cells": list, "evaluation": dict}, where="")
    for name in ("model", "data", "cells"):
        if not content.get(name):
            raise InputError(f"`{name}` is missing")
    if not all(isinstance(item, str) for item in content["data"]):
        raise InputError("`data` must be a list of paths")
    if not all(isinstance(item, dict) for item in content["cells"]):
        raise InputError("`cells` must be tables: write [[cells]]")
    defaults = content.get("defaults", {})
    _options(defaults, where="[defaults]")
    start = None
    if "start" in content:
        start = _start(content["start"], defaults)
    cells: dict[str, Cell] = {}
    for row in content["cells"]:
        cell = _cell(row, defaults, earlier=cells, start=start)
        cells[cell.name] = cell
    rest = {name: content[name] for name in ("model", "dtype") if name in content}
    return GridConfig(
        data=tuple(map(Path, content["data"])),
        cache=Path(content["cache"]) if "cache" in content else None,
        start=start,
        cells=tuple(cells.values()),
        evaluation=_evaluation(content.get("evaluation", {}), cells),
        **rest,
    )


def _start(row: dict[str, Any], defaults: dict[str, Any]) -> Cell:
    head = row.get("head")
    if head is not None and not isinstance(head, str):
        raise InputError(f"[start]: `head` must name a folder, got {head!r}")
    options = {key: value for key, value in row.items() if key != "head"}
    return Cell(name=START, options=_options(defaults | options, where="[start]"), head=head)


def _cell(
    row: dict[str, Any], defaults: dict[str, Any], *, earlier: Mapping[str, Cell], start: Cell | None
) -> Cell:
    name = _name(row, taken=earlier)
    where = f"cell {name!r}"
    options = {key: value for key, value in row.items() if key not in ("name", "init_from")}
    source = row.get("init_from", START if start else NOTHING)
    if source not in (*earlier, NOTHING, *([START] if start else [])):
        raise InputError(f"{where} starts from {source!r}, which is no cell above it")
    return Cell(
        name=name,
        options=_options(defaults | options, where=where),
        init_from=None if source == NOTHING else source,
    )


def _evaluation(table: dict[str, Any], cells: Mapping[str, Cell]) -> Evaluation:
    shape = {f.name: type(f.default) for f in fields(Evaluation)} | {"variants": list}
    _check(table, shape, where="[evaluation]")
    variants: dict[str, Variant] = {}
    for row in table.get("variants", []):
        name = _name(row, taken=cells.keys() | variants.keys())
        where = f"variant {name!r}"
        _check(row, {"name": str, "cell": str, "components": int, "verification": str}, where=where)
        if row.get("cell") not in cells:
            raise InputError(f"{where}: `cell` must name one of the cells, got {row.get('cell')!r}")
        variants[name] = Variant(**row)
        rank = cells[row["cell"]].options.rank
        if not 0 <= row.get("components", 0) <= rank:
            raise InputError(f"{where}: components must be 0 (all) or at most the rank {rank}")
        try:
            check_modes(verification=variants[name].verification, drafting=DRAFTING)
        except InputError as error:
            raise InputError(f"{where}: {error}") from error
    if table.get("reference", "") not in ("", *cells):
        raise InputError(f"[evaluation]: `reference` must name one of the cells, got {table['reference']!r}")
    return Evaluation(**table | {"variants": tuple(variants.values())})


def _name(row: dict[str, Any], *, taken: Collection[str]) -> str:
    name = row.get("name")
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise InputError(f"every cell and variant needs a `name` of letters, digits, . _ -, got {name!r}")
    if name in taken or name in (START, NOTHING):
        raise InputError(f"the name {name!r} is taken: choose another")
    return name


def _options(table: dict[str, Any], *, where: str) -> TrainOptions:
    kinds: dict[object, type] = {None: float, (): list}  # a weight that a preset gives; a tuple
    known = {f.name: kinds.get(f.default) or type(f.default) for f in fields(TrainOptions)}
    del known["report_to"]
    _check(table, known, where=where)
    given: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in table.items()
    }
    try:
        joint = table.get("joint", TrainOptions.joint)
        return TrainOptions(**{"rank": default_rank(joint)} | given)
    except PolydraftError as error:
        raise InputError(f"{where}: {error}") from error


def _check(table: dict[str, Any], shape: Mapping[str, type], *, where: str) -> None:
    """Refuse keys outside `shape` and values of other types; a whole number will do for a float."""
    prefix = f"{where}: " if where else ""
    for key, value in table.items():
        if key not in shape:
            raise InputError(f"{prefix}unknown key {key!r}: known are {', '.join(shape)}")
        if type(value) is not shape[key] and not (shape[key] is float and type(value) is int):
            raise InputError(f"{prefix}`{key}` must be of type {shape[key].__name__}, got {value!r}")

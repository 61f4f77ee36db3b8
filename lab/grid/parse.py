"""The TOML file of a grid -> `GridConfig`; what is unknown or wrong is refused in one line."""

from __future__ import annotations

import itertools
import re
import tomllib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, TypeVar

from lab.grid.config import (
    NOTHING,
    START,
    Base,
    Cell,
    Evaluation,
    GridConfig,
    PictureSpec,
    TableSpec,
    Variant,
)
from polydraft.errors import InputError, PolydraftError
from polydraft.modes import DRAFTING, VERIFIER, check_modes
from polydraft.training.options import TrainOptions, default_rank

Spec = TypeVar("Spec", TableSpec, PictureSpec)
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
    shape = {"title": str, "model": str, "dtype": str, "data": list, "cache": str, "test": list}
    shape |= {"start": dict, "defaults": dict, "bases": list, "cells": list, "evaluation": dict}
    _check(content, shape | {"tables": list, "pictures": list}, where="")
    bases = _bases(content)
    defaults = content.get("defaults", {})
    _options(defaults, where="[defaults]")
    start = None
    if "start" in content:
        if len(bases) > 1:
            raise InputError("[start] is for grids of one base: give cells `init_from` instead")
        start = _start(content["start"], defaults, base=next(iter(bases.values())))
    cells: dict[str, Cell] = {}
    for block in _tables(content, "cells"):
        for row in expanded(block):
            cell = _cell(row, defaults, earlier=cells, start=start, bases=bases)
            cells[cell.name] = cell
    if not cells:
        raise InputError("`cells` is missing")
    rest = {name: content[name] for name in ("title", "dtype") if name in content}
    evaluation = {k: v for k, v in content.get("evaluation", {}).items() if k != "prompts"}
    return GridConfig(
        start=start,
        cells=tuple(cells.values()),
        evaluation=_evaluation(evaluation, cells),
        tables=tuple(_selection(TableSpec, row, where="[[tables]]") for row in _tables(content, "tables")),
        pictures=tuple(
            _selection(PictureSpec, row, where="[[pictures]]") for row in _tables(content, "pictures")
        ),
        **rest,
    )


def _tables(content: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    """The array of tables called `name`; none where it is missing."""
    rows = content.get(name, [])
    if not isinstance(rows, list) or not all(isinstance(item, dict) for item in rows):
        raise InputError(f"`{name}` must be tables: write [[{name}]]")
    return rows


def _bases(content: Mapping[str, Any]) -> dict[str, Base]:
    """Those of [[bases]], or the one that the top level gives."""
    own = {name: content[name] for name in ("model", "data", "cache", "test") if name in content}
    if "prompts" in content.get("evaluation", {}):
        own["prompts"] = content["evaluation"]["prompts"]
    rows = _tables(content, "bases")
    if not rows:
        return {"": _base(own, where="")}
    if {*own} - {"prompts"}:
        raise InputError(f"`{next(iter(own))}` stands beside [[bases]]: write it into each of them")
    out: dict[str, Base] = {}
    for row in rows:
        name = _name(row, taken=out)
        out[name] = _base(own | row, where=f"base {name!r}")
    return out


def _base(row: dict[str, Any], *, where: str) -> Base:
    prefix = f"{where}: " if where else ""
    _check(
        row,
        {"name": str, "model": str, "data": list, "cache": str, "test": list, "prompts": str},
        where=where,
    )
    for name in ("model", "data"):
        if not row.get(name):
            raise InputError(f"{prefix}`{name}` is missing")
    for name in ("data", "test"):
        if not all(isinstance(item, str) for item in row.get(name, [])):
            raise InputError(f"{prefix}`{name}` must be a list of paths")
    rest = {name: row[name] for name in ("name", "model", "prompts") if name in row}
    return Base(
        data=tuple(map(Path, row["data"])),
        test=tuple(map(Path, row.get("test", []))),
        cache=Path(row["cache"]) if "cache" in row else None,
        **rest,
    )


def _start(row: dict[str, Any], defaults: dict[str, Any], *, base: Base) -> Cell:
    head = row.get("head")
    if head is not None and not isinstance(head, str):
        raise InputError(f"[start]: `head` must name a folder, got {head!r}")
    options = {key: value for key, value in row.items() if key != "head"}
    return Cell(name=START, base=base, options=_options(defaults | options, where="[start]"), head=head)


def expanded(block: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A row per combination of the block's `axes`, the last one the fastest; without any, the block.

    `name` holds the axes in braces: "r{rank}-n{horizon}".
    """
    axes = block.get("axes", {})
    if not isinstance(axes, dict) or not all(isinstance(values, list) and values for values in axes.values()):
        raise InputError("`axes` must be a table of lists, such as { rank = [1, 2, 4] }")
    rest = {key: value for key, value in block.items() if key != "axes"}
    for values in itertools.product(*axes.values()):
        chosen = dict(zip(axes, values, strict=True))
        row = rest | chosen
        if chosen and isinstance(row.get("name"), str):
            try:
                row["name"] = row["name"].format(**chosen)
            except (KeyError, IndexError, ValueError) as error:
                raise InputError(f"the name {row['name']!r} holds what is no axis: {error}") from error
        yield row


def _cell(
    row: dict[str, Any],
    defaults: dict[str, Any],
    *,
    earlier: Mapping[str, Cell],
    start: Cell | None,
    bases: Mapping[str, Base],
) -> Cell:
    name = _name(row, taken=earlier)
    where = f"cell {name!r}"
    options = {key: value for key, value in row.items() if key not in ("name", "init_from", "base")}
    source = row.get("init_from", START if start else NOTHING)
    if source not in (*earlier, NOTHING, *([START] if start else [])):
        raise InputError(f"{where} starts from {source!r}, which is no cell above it")
    base = str(row.get("base", next(iter(bases)) if len(bases) == 1 else None))
    if base not in bases:
        raise InputError(f"{where}: `base` must be one of {', '.join(bases)}, got {base!r}")
    found = _options(defaults | options, where=where)
    if found.verifier != VERIFIER:
        raise InputError(f"{where}: a grid judges a trained model by itself: verifier must be {VERIFIER!r}")
    return Cell(name=name, base=bases[base], options=found, init_from=None if source == NOTHING else source)


def _selection(kind: type[Spec], row: dict[str, Any], *, where: str) -> Spec:
    """A `TableSpec` or `PictureSpec`; metrics and fields are checked where they are looked up."""
    lists = ("rows", "columns", "y")
    shape: dict[str, type] = {f.name: list if f.name in lists else str for f in fields(kind)}
    _check(row, shape | {"where": dict}, where=where)
    missing = [f.name for f in fields(kind) if f.default is MISSING and f.name not in {*row, "where"}]
    if missing:
        raise InputError(f"{where}: `{missing[0]}` is missing")
    given = {key: tuple(value) if key in lists else value for key, value in row.items()}
    chosen = {
        key: tuple(value) if isinstance(value, list) else (value,)
        for key, value in row.get("where", {}).items()
    }
    return kind(**given | {"where": chosen})


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

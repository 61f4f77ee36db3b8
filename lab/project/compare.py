"""Predictions from an overhead run against the timed cells of a grid, which they know nothing of.

Two questions are kept apart. `given`: with the tokens per step that the timed runs had, are costs right?
`replayed`: with the tokens per step replayed over all texts, is the whole ratio right, though the timed
prompts are few and other ones?
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from lab.grid.store import read_json
from lab.project.expectation import cell_tokens
from lab.project.measured import MODES, MeasuredCosts
from polydraft.errors import InputError

WITHIN = 0.1
"""The error that is aimed at."""


def head_of(cell: dict[str, Any], grid: Path, *, components: int) -> dict[str, Any]:
    """What a grid's row leaves out, from the head's folder beside the results, where it lies there.

    Args:
        components: evaluated at most, where there is no folder; 0 is all.
    """
    config = read_json(grid.parent / "cells" / cell["cell"] / "head" / "config.json") or {}
    chosen = cell["components"]
    if chosen is None:
        chosen = config.get("components", min(components, cell["rank"]))
    return {
        "components": chosen or cell["rank"],
        "features": config.get("features", cell.get("features", "fused")),
        "draft_vocab_size": config.get("draft_vocab_size"),
    }


def compare(
    costs: MeasuredCosts,
    content: dict[str, Any],
    grid: Path,
    *,
    prompt_tokens: int,
    components: int = 0,
    calibrate: str | None = None,
) -> dict[str, Any]:
    """A row per timed cell and mode, and the errors of all; heads of unknown cost are left out by name.

    Args:
        content: of the grid's results.json, at `grid`. prompt_tokens: of a timed prompt, on average.
        components: as of `head_of`.
        calibrate: a cell whose measured cycle cost sets one factor for all costs of its mode; it is then not
            judged itself.

    Raises:
        InputError: no cell was timed, none is called `calibrate`, the heads have another draft vocabulary
            than those measured, or costs are not known.
    """
    every = [cell for cell in content["cells"] if cell["speed"]]
    if not every:
        raise InputError(f"{grid} has no timed cells: run the stage speed of the grid")
    kinds = {cell["name"]: head_of(cell, grid, components=components)["features"] for cell in every}
    timed = [cell for cell in every if costs.knows(cell["joint"], kinds[cell["name"]])]
    if not timed:
        raise InputError(f"{grid} has timed cells, but of no head whose costs are predicted")
    if calibrate is not None and calibrate not in [cell["name"] for cell in timed]:
        raise InputError(f"{grid} has no timed cell {calibrate!r}")
    rows = [
        row(
            costs,
            cell,
            mode,
            grid,
            new_tokens=content["speed_tokens"],
            prompt_tokens=prompt_tokens,
            components=components,
        )
        for cell in timed
        for mode in MODES
        if mode in cell["speed"]
    ]
    if calibrate is not None:
        factors = {r["mode"]: r["cost"] / r["given"]["cost"] for r in rows if r["name"] == calibrate}
        rows = [
            scaled(
                costs, r, factors[r["mode"]], new_tokens=content["speed_tokens"], prompt_tokens=prompt_tokens
            )
            for r in rows
            if r["name"] != calibrate and r["mode"] in factors
        ]
    names = {
        "given cost": ("given", "cost"),
        "given ratio": ("given", "ratio"),
        "replayed ratio": ("replayed", "ratio"),
    }
    return {
        "grid": str(grid),
        "calibrated_by": calibrate,
        "prompt_tokens": prompt_tokens,
        "left_out": [cell["name"] for cell in every if cell not in timed],
        "rows": rows,
        "errors": {name: errors(rows, *path) for name, path in names.items()},
    }


def row(
    costs: MeasuredCosts,
    cell: dict[str, Any],
    mode: str,
    grid: Path,
    *,
    new_tokens: int,
    prompt_tokens: int,
    components: int,
) -> dict[str, Any]:
    """Measured ratio and cycle cost of a timed cell, and both predictions of them."""
    head = head_of(cell, grid, components=components)
    size = costs.content["sizes"]["draft_vocab_size"]
    if head["draft_vocab_size"] not in (None, size):
        raise InputError(
            f"heads of {grid} draft from {head['draft_vocab_size']} tokens, the overhead run's from {size}: "
            f"measure with --draft-vocab-size {head['draft_vocab_size']}"
        )
    features, horizon = head["features"], cell["horizon"]
    cost = costs.cost(cell["joint"], head["components"], horizon, mode=mode, features=features)
    found = cell["speed"][mode]
    replayed = cell_tokens(cell, mode)
    predicted = {
        "name": cell["name"],
        "mode": mode,
        "components": head["components"],
        "horizon": horizon,
        "ratio": found["median_ratio"],
        "interval": found["interval"],
        "cost": found["cycle_cost"],
        "tokens": {"given": found["length"], "replayed": replayed},
        "cycle": cost,
    }
    return scaled(costs, predicted, 1.0, new_tokens=new_tokens, prompt_tokens=prompt_tokens)


def scaled(
    costs: MeasuredCosts, found: dict[str, Any], factor: float, *, new_tokens: int, prompt_tokens: int
) -> dict[str, Any]:
    """The row with predictions of a cycle that costs `factor` times as much as it says."""
    out = found | {"cycle": found["cycle"] * factor}
    for name, tokens in found["tokens"].items():
        out[name] = None
        if tokens is not None:
            ratio, cost = costs.run_ratio(
                tokens=tokens,
                cost=out["cycle"],
                new_tokens=new_tokens,
                prompt_tokens=prompt_tokens,
                mode=found["mode"],
            )
            out[name] = {"ratio": ratio, "cost": cost}
    return out


def errors(rows: Sequence[dict[str, Any]], which: str, figure: str) -> dict[str, Any] | None:
    """Of predicted over measured less one: mean of sizes, worst, mean (bias), share within `WITHIN`.

    Also how many predicted ratios lie in the measured interval.
    """
    judged = [found for found in rows if found[which] is not None]
    if not judged:
        return None
    relative = [found[which][figure] / found[figure] - 1 for found in judged]
    inside = [found["interval"][0] <= found[which]["ratio"] <= found["interval"][1] for found in judged]
    return {
        "cells": len(judged),
        "mean": fmean(abs(e) for e in relative),
        "worst": max(relative, key=abs),
        "bias": fmean(relative),
        "within": fmean(abs(e) <= WITHIN for e in relative),
        "in_interval": sum(inside) if figure == "ratio" else None,
    }

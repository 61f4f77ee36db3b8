"""From rounds to figures: medians over rounds with 95% intervals, ratios taken within rounds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from lab.grid.figures import Bootstrap, interval
from lab.grid.store import read_json
from lab.overhead.cells import Cell, make_head, parameters
from lab.overhead.cycle import PARTS
from lab.overhead.rounds import MODES, Settings
from lab.overhead.store import memory_path, read_rounds
from polydraft.decoding.measuring import CONTEXT
from polydraft.versions import versions

DRAWS = 2000


class Estimator:
    """Medians over rounds, and their intervals by a bootstrap over rounds, the same draws for all figures."""

    def __init__(self, rounds: int) -> None:
        self._picks = Bootstrap.draw([None] * rounds, draws=DRAWS, seed=0).picks

    def __call__(self, values: Sequence[float]) -> dict[str, Any]:
        """`median` and `interval`; a value per round."""
        found = torch.tensor(values, dtype=torch.float64)
        drawn = found[self._picks].quantile(0.5, dim=-1)
        return {"median": float(found.quantile(0.5)), "interval": list(interval(drawn))}

    def ratio(self, over: Sequence[float], under: Sequence[float]) -> dict[str, Any]:
        """The same of ratios, each taken within its round."""
        return self([a / b for a, b in zip(over, under, strict=True)])


def results(
    settings: Settings, out: Path, model: PreTrainedModel, *, identity: dict[str, Any], command: str
) -> dict[str, Any]:
    """All that is measured in `out`, in seconds, bytes and ratios."""
    rounds = read_rounds(out)
    estimate = Estimator(len(rounds))
    widths = rounds[0]["forward"]
    return {
        **identity,
        "context": CONTEXT,
        "rounds": len(rounds),
        "draws": DRAWS,
        "machine": read_json(out / "machine.json"),
        "trunk": {
            "parameters": parameters(model),
            "bytes": sum(p.numel() * p.element_size() for p in model.parameters()),
            "forward": {width: estimate([found["forward"][width] for found in rounds]) for width in widths},
            **{mode: plain(rounds, mode, estimate) for mode in MODES},
            "training_forward": estimate(_over_cells(rounds, "training", "trunk")),
        },
        "cells": [
            row(cell, settings, [found["cells"][cell.name] for found in rounds], model, estimate)
            | {"memory": read_json(memory_path(out, cell.name))}
            for cell in settings.cells
        ],
        "versions": versions(),
        "command": command,
    }


def plain(rounds: Sequence[dict[str, Any]], mode: str, estimate: Estimator) -> dict[str, Any]:
    """Seconds of plain decoding: a step, the forward in it, the prompt's forward; medians over cells."""
    return {
        name: estimate(_over_cells(rounds, mode, "plain", name)) for name in ("step", "forward", "prompt")
    }


def _over_cells(rounds: Sequence[dict[str, Any]], *path: str) -> list[float]:
    """Per round the median over its cells of what lies at `path`."""
    out = []
    for found in rounds:
        values = []
        for cell in found["cells"].values():
            value = cell
            for name in path:
                value = value[name]
            values.append(value)
        out.append(float(torch.tensor(values, dtype=torch.float64).quantile(0.5)))
    return out


def row(
    cell: Cell,
    settings: Settings,
    rows: Sequence[dict[str, Any]],
    model: PreTrainedModel,
    estimate: Estimator,
) -> dict[str, Any]:
    """The figures of one head; `rows`: one per round, as `Benches.cell` gives them."""
    count = parameters(make_head(model, cell, settings.sizes))
    steps = [found["training"]["step"] for found in rows]
    training = {name: estimate([r["training"][name] for r in rows]) for name in ("step", "loss", "optimizer")}
    return {
        **asdict(cell),
        "parameters": count,
        "bytes": count * model.dtype.itemsize,
        "share_of_trunk": count / parameters(model),
        **{mode: cycle([found[mode] for found in rows], estimate) for mode in MODES},
        "drafting": {k: estimate([found["drafting"][k] for found in rows]) for k in rows[0]["drafting"]},
        "training": training
        | {
            "positions_per_second": estimate([settings.positions / seconds for seconds in steps]),
            "over_trunk": estimate.ratio(steps, [found["training"]["trunk"] for found in rows]),
        },
    }


def cycle(rows: Sequence[dict[str, Any]], estimate: Estimator) -> dict[str, Any]:
    """Seconds of a cycle and its parts; drafts kept; `cost`, in plain steps; `drafting_share`, of it."""
    whole = [found["cycle"] for found in rows]
    return {
        **{name: estimate([found[name] for found in rows]) for name in (*PARTS, "cycle", "kept")},
        "cost": estimate.ratio(whole, [found["plain"]["step"] for found in rows]),
        "drafting_share": estimate.ratio([found["draft"] for found in rows], whole),
    }

"""One projection: what is asked for, all of its results, and the files they go to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lab.grid.store import write_json
from lab.project.compare import compare, head_of
from lab.project.machine import Machine
from lab.project.measured import MeasuredCosts
from lab.project.reading import GRID, OVERHEAD
from lab.project.shapes import ModelShape
from lab.project.sweep import Sweep, grid_rows, rows
from lab.project.tables import markdown
from lab.project.validate import validate
from lab.reading import read_results
from polydraft.files import write_atomic
from polydraft.training.curves import can_plot
from polydraft.versions import versions


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What is projected from costs that were measured.

    Attributes:
        costs: results.json of an overhead run. grids: those of grids to predict.
        prompt_tokens: of a timed prompt; 0 for the context of the overhead run.
        components, calibrate: as of `compare`.
    """

    costs: Path
    grids: tuple[Path, ...] = ()
    prompt_tokens: int = 0
    components: int = 0
    calibrate: str | None = None


def from_measured(asked: Measured) -> dict[str, Any]:
    """The roofline judged by the overhead run, and every grid's cells predicted from it.

    Raises:
        InputError: as of `read_results`, `MeasuredCosts`, `compare` and `validate`.
    """
    content = read_results(asked.costs, OVERHEAD, of="overhead")
    costs = MeasuredCosts(content)
    return {
        "costs": str(asked.costs),
        "model": content["model"],
        "roofline": validate(content),
        "grids": [
            compare(
                costs,
                read_results(grid, GRID, of="grid"),
                grid,
                prompt_tokens=asked.prompt_tokens or costs.context,
                components=asked.components,
                calibrate=asked.calibrate,
            )
            for grid in asked.grids
        ],
    }


def from_roofline(
    models: Sequence[ModelShape],
    machine: Machine,
    sweep: Sweep,
    *,
    acceptance: Path | None = None,
    components: int = 0,
) -> dict[str, Any]:
    """Every model on `machine` over the sweep.

    Args:
        acceptance: results.json of a grid, whose heads are projected with their tokens per step.
        components: as of `head_of`.

    Raises:
        InputError: a model does not fit the machine, or as of `read_results`.
    """
    cells, evaluated = [], []
    if acceptance is not None:
        cells = read_results(acceptance, ("cells",), of="grid")["cells"]
        evaluated = [head_of(cell, acceptance, components=components)["components"] for cell in cells]
    return {
        "machine": asdict(machine),
        "models": [asdict(model) for model in models],
        "sweep": asdict(sweep),
        "rows": [row for model in models for row in rows(model, machine, sweep)],
        "grid_rows": [row for model in models for row in grid_rows(model, machine, sweep, cells, evaluated)],
    }


def run_projection(
    out: Path, *, measured: dict[str, Any] | None, roofline: dict[str, Any] | None, command: str = ""
) -> dict[str, Any]:
    """Write results.json, results.md and pictures below `out`; returns what results.json holds."""
    content = {"measured": measured, "roofline": roofline, "versions": versions(), "command": command}
    write_json(out / "results.json", content)
    write_atomic(out / "results.md", markdown(content))
    if can_plot():
        from lab.project.plots import plot_results

        plot_results(content, out)
    return content

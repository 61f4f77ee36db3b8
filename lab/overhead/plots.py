"""The results as pictures; needs the extra `plots`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from lab.overhead.cycle import PARTS
from lab.overhead.drawing import errors, panels, rank_axis, save
from lab.overhead.rounds import MODES
from lab.overhead.tables import MIB, TITLES

LABELS = {"draft": "drafting", "forward": "forward over 1 + n", "verify": "verification", "keep": "cache"}
Entry = Callable[[dict[str, Any]], dict[str, Any]]
"""From a cell to an entry with `median` and `interval`."""


def plot_results(content: dict[str, Any], folder: Path) -> list[Path]:
    """Draw rank.png, cycle.png and, where it was measured, memory.png; returns their paths."""
    out = [plot_rank(content, folder / "rank.png"), plot_cycle(content, folder / "cycle.png")]
    if any(cell["memory"] for cell in content["cells"]):
        out.append(plot_memory(content, folder / "memory.png"))
    return out


def series(content: dict[str, Any]) -> dict[int, list[dict[str, Any]]]:
    """By horizon the cells of the first cell's joint and features, in the order of their ranks."""
    first = content["cells"][0]
    same = [c for c in content["cells"] if (c["joint"], c["features"]) == (first["joint"], first["features"])]
    horizons = sorted({cell["horizon"] for cell in same})
    return {n: sorted((c for c in same if c["horizon"] == n), key=lambda c: int(c["rank"])) for n in horizons}


def part(group: str, name: str, cell: dict[str, Any]) -> dict[str, Any]:
    """One entry of a cell."""
    found: dict[str, Any] = cell[group][name]
    return found


def plot_rank(content: dict[str, Any], path: Path) -> Path:
    """Cost of a cycle, drafting share and training time against rank, a line per horizon."""
    rows: list[tuple[str, float, Entry]] = []
    for mode in MODES:
        of_mode = partial(part, mode)
        rows.append((f"cycle in plain steps, {TITLES[mode]}", 1.0, partial(of_mode, "cost")))
        rows.append((f"drafting, % of the cycle, {TITLES[mode]}", 100.0, partial(of_mode, "drafting_share")))
    rows.append(("training step, seconds", 1.0, partial(part, "training", "step")))
    rows.append(("training step, in trunk forwards", 1.0, partial(part, "training", "over_trunk")))
    figure, axes = panels(2, 3)
    lines = series(content)
    ranks = sorted({cell["rank"] for cells in lines.values() for cell in cells})
    for axis, (label, scale, entry) in zip(axes.T.flatten(), rows, strict=True):
        for horizon, cells in lines.items():
            found = [entry(cell) for cell in cells]
            middle = [scale * e["median"] for e in found]
            x = [cell["rank"] for cell in cells]
            axis.errorbar(x, middle, yerr=errors(found, scale), marker="o", capsize=3, label=f"n = {horizon}")
        rank_axis(axis, ranks, label)
        axis.set_ylim(bottom=0)
    figure.suptitle(f"{content['model']}, {content['cells'][0]['joint']} heads: costs by rank and horizon")
    return save(figure, path)


def plot_cycle(content: dict[str, Any], path: Path) -> Path:
    """Where the time of a cycle goes, a bar per head; the line is a plain step."""
    cells = content["cells"]
    figure, axes = panels(1, len(MODES), height=1.4 + 0.26 * len(cells), width=6.5)
    for axis, mode in zip(axes[0], MODES, strict=True):
        left = [0.0] * len(cells)
        for name in PARTS:
            widths = [1e3 * cell[mode][name]["median"] for cell in cells]
            axis.barh(range(len(cells)), widths, left=left, label=LABELS[name])
            left = [a + b for a, b in zip(left, widths, strict=True)]
        plain = 1e3 * content["trunk"][mode]["step"]["median"]
        axis.axvline(plain, color="black", linewidth=0.9, label="a plain step")
        axis.set_yticks(range(len(cells)), [cell["name"] for cell in cells], fontsize=8)
        axis.invert_yaxis()
        axis.set_xlabel("milliseconds")
        axis.set_title(f"a cycle, {TITLES[mode]}", fontsize=10)
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize=8)
    return save(figure, path)


def plot_memory(content: dict[str, Any], path: Path) -> Path:
    """Peak memory over the trunk's against rank, a line per horizon."""
    figure, axes = panels(1, 2)
    lines = {n: [c for c in cells if c["memory"]] for n, cells in series(content).items()}
    ranks = sorted({cell["rank"] for cells in lines.values() for cell in cells})
    titles = (("training", "a training step"), ("drafting", "drafting"))
    for axis, (name, title) in zip(axes[0], titles, strict=True):
        for horizon, cells in lines.items():
            values = [cell["memory"][name] / MIB for cell in cells]
            axis.plot([cell["rank"] for cell in cells], values, marker="o", label=f"n = {horizon}")
        rank_axis(axis, ranks, f"MiB over the trunk's, {title}")
        axis.set_ylim(bottom=0)
    return save(figure, path)

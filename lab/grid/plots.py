"""The results as pictures; needs the extra `plots`."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lab.grid.figures import ALL
from polydraft.files import write_atomic

MOST_CELLS = 40
"""Of a picture with a line for each cell; larger grids ask for pictures of their own."""
MODES = {"greedy": "greedy", "sampled": "T = 1"}


def plot_results(content: dict[str, Any], folder: Path) -> list[tuple[Path, str]]:
    """Draw what there is: acceptance.png, rank.png, speed.png; returns paths and what they show."""
    cells = content["cells"]
    replayed = [cell for cell in cells if cell["acceptance"]]
    timed = [cell for cell in cells if cell["speed"]]
    ranked = [cell for cell in replayed if is_of_rank_series(cell)]
    out = []
    for name, alt, rows, draw in (
        ("acceptance", "tokens per step of every cell", replayed, plot_acceptance),
        ("rank", "tokens per step against rank", ranked, plot_rank),
        ("speed", "wall clock of every cell, drafted over plain", timed, plot_speed),
    ):
        if rows and len(rows) <= MOST_CELLS:
            out.append((folder / f"{name}.png", alt))
            write_atomic(out[-1][0], draw(rows))
    return out


def is_of_rank_series(cell: dict[str, Any]) -> bool:
    """Whether it is a CP head, or the independent one that all others of its horizon are compared with."""
    if cell["name"] != cell["cell"]:
        return False
    return bool(cell["joint"] == "cp" or cell["name"] == cell["reference"])


def plot_acceptance(rows: Sequence[dict[str, Any]]) -> bytes:
    """Tokens per step of every cell with its interval, a panel per horizon and mode."""
    horizons = sorted({cell["horizon"] for cell in rows})
    tallest = max(sum(cell["horizon"] == n for cell in rows) for n in horizons)
    figure, axes = panels(len(horizons), len(MODES), height=1.2 + 0.28 * tallest)
    for line, horizon in zip(axes, horizons, strict=True):
        for axis, (mode, title) in zip(line, MODES.items(), strict=True):
            shown = [c for c in rows if c["horizon"] == horizon and mode in c["acceptance"]]
            found = [cell["acceptance"][mode][ALL] for cell in shown]
            values = [entry["length"] for entry in found]
            _dots(axis, [cell["name"] for cell in shown], values, [entry["interval"] for entry in found])
            axis.set_title(f"n = {horizon}, {title}", fontsize=10)
            axis.set_xlabel("tokens per step")
    return png(figure)


def plot_rank(rows: Sequence[dict[str, Any]]) -> bytes:
    """Ratio to the independent head against rank, a line per horizon and mode."""
    figure, axes = panels(1, len(MODES), height=3.6)
    ticks = sorted({cell["rank"] for cell in rows})
    for axis, (mode, title) in zip(axes[0], MODES.items(), strict=True):
        for horizon in sorted({cell["horizon"] for cell in rows}):
            shown = sorted(
                (c for c in rows if c["horizon"] == horizon and mode in c["acceptance"]),
                key=lambda cell: cell["rank"],
            )
            found = [cell["acceptance"][mode][ALL] for cell in shown]
            values = [entry.get("ratio", 1.0) for entry in found]
            bounds = [entry.get("ratio_interval", (1.0, 1.0)) for entry in found]
            ranks = [cell["rank"] for cell in shown]
            axis.errorbar(
                ranks, values, yerr=errors(values, bounds), marker="o", capsize=3, label=f"n = {horizon}"
            )
        axis.set_xscale("log", base=2)
        axis.set_xlabel("rank (1: independent)")
        axis.set_xticks(ticks, ticks)
        axis.set_ylabel("tokens per step, ratio to independent")
        axis.set_title(title, fontsize=10)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    return png(figure)


def plot_speed(rows: Sequence[dict[str, Any]]) -> bytes:
    """Median ratio per prompt of tokens per second, drafted over plain, with its interval."""
    figure, axes = panels(1, len(MODES), height=1.2 + 0.28 * len(rows))
    for axis, (mode, title) in zip(axes[0], MODES.items(), strict=True):
        shown = [cell for cell in rows if mode in cell["speed"]]
        found = [cell["speed"][mode] for cell in shown]
        values = [entry["median_ratio"] for entry in found]
        _dots(axis, [cell["name"] for cell in shown], values, [entry["interval"] for entry in found])
        axis.axvline(1.0, color="grey", linewidth=0.8)
        axis.set_title(f"wall clock, {title}", fontsize=10)
        axis.set_xlabel("drafted over plain tokens per second, median over prompts")
    return png(figure)


def panels(lines: int, columns: int, *, height: float) -> tuple[Any, Any]:
    """A figure and its axes, (lines, columns)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5 * columns, height * lines), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(lines, columns, squeeze=False)


def _dots(axis: Any, names: list[str], values: list[float], bounds: list[list[float]]) -> None:
    """A dot with its interval per name, the first on top."""
    places = range(len(names))
    axis.errorbar(values, places, xerr=errors(values, bounds), fmt="o", capsize=3)
    axis.set_yticks(places, names, fontsize=8)
    axis.margins(y=0.5 / max(len(names), 1))
    axis.invert_yaxis()
    axis.grid(alpha=0.3, axis="x")


def errors(values: list[float], bounds: list[list[float]]) -> list[list[float]]:
    """Lengths of error bars from the ends of intervals."""
    pairs = list(zip(values, bounds, strict=True))
    return [[max(v - low, 0) for v, (low, _) in pairs], [max(high - v, 0) for v, (_, high) in pairs]]


def png(figure: Any) -> bytes:
    """The figure as a PNG file."""
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=120)
    return picture.getvalue()

"""Pictures that a grid's file asks for; needs the extra `plots`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lab.grid.config import GridConfig, PictureSpec
from lab.grid.metrics import Row, metric
from lab.grid.pivot import chosen, grouped, pooled, text
from lab.grid.plots import errors, panels, png
from polydraft.files import write_atomic


def plot_specs(config: GridConfig, content: dict[str, Any], folder: Path) -> list[tuple[Path, str]]:
    """Draw every picture that has something to show, NAME.png; returns paths and titles."""
    out = []
    for spec in config.pictures:
        rows = chosen(content["cells"], spec)
        if rows:
            path = folder / f"{spec.name}.png"
            write_atomic(path, plot_spec(spec, rows))
            out.append((path, spec.title))
    return out


def plot_spec(spec: PictureSpec, rows: Sequence[Row]) -> bytes:
    """A row of panels per metric, a column per value of `panels`; a row in all without these."""
    columns = grouped(rows, [spec.panels]) if spec.panels else {("",): list(rows)}
    if spec.panels:
        figure, axes = panels(len(spec.y), len(columns), height=3.4)
    else:
        figure, axes = panels(1, len(spec.y), height=3.4)
        axes = axes.T
    for line, name in zip(axes, spec.y, strict=True):
        shown = metric(name)
        for axis, ((panel,), part) in zip(line, columns.items(), strict=True):
            for (label,), own in (grouped(part, [spec.lines]) if spec.lines else {("",): part}).items():
                _line(axis, spec, own, name, label=f"{spec.lines} {text(label)}" if spec.lines else "")
            ticks = sorted({row[spec.x] for row in part})
            if spec.x == "rank":
                axis.set_xscale("log", base=2)
            axis.set_xticks(ticks, [text(tick) for tick in ticks])
            axis.set_xlabel(spec.x)
            axis.set_ylabel(shown.title)
            axis.set_title(text(panel), fontsize=10)
            axis.grid(alpha=0.3)
            if spec.lines and axis.get_legend_handles_labels()[0]:
                axis.legend(fontsize=8)
    figure.suptitle(spec.title, fontsize=11)
    return png(figure)


def _line(axis: Any, spec: PictureSpec, rows: Sequence[Row], name: str, *, label: str) -> None:
    found = {
        x: pooled(part, metric(name), title=spec.title)
        for (x,), part in sorted(grouped(rows, [spec.x]).items())
    }
    points = {x: value for x, value in found.items() if value is not None}
    if points:
        values = [value for value, _ in points.values()]
        bounds = [bounds or [value, value] for value, bounds in points.values()]
        axis.errorbar(list(points), values, yerr=errors(values, bounds), marker="o", capsize=3, label=label)

"""The picture of a training run."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

Row = dict[str, Any]
Line = tuple[str, str]
"""A key of the history, and its label."""
COLUMNS = 4
"""Columns of panels."""


def can_plot() -> bool:
    """Whether matplotlib (the extra `plots`) is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def plot_curves(source: Path, out: Path) -> None:
    """Draw `training.json` as a PNG: loss and its terms, held-out figures, what the components do.

    A cross marks where a component was found dead.
    """
    from matplotlib.figure import Figure

    record: dict[str, Any] = json.loads(source.read_text())
    history: list[Row] = record["history"]
    shown = panels(history)
    columns = min(len(shown), COLUMNS)
    rows = -(-len(shown) // columns)
    figure = Figure(figsize=(3.4 * columns, 3.4 * rows), layout="constrained")
    for number, (title, lines) in enumerate(shown, start=1):
        axis = figure.add_subplot(rows, columns, number)
        for key, label in lines:
            points = [(row["step"], row[key]) for row in history if key in row]
            axis.plot(*zip(*points, strict=True), label=label, marker="." if len(points) == 1 else "")
            for dead in record.get("dead_components", []):
                if key in (f"load_{dead['component']}", f"likeliest_{dead['component']}"):
                    level = next(row[key] for row in history if key in row and row["step"] == dead["step"])
                    axis.plot(dead["step"], level, "kx")
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("step")
        if len(lines) > 1:
            axis.legend(fontsize=8)
        axis.grid(alpha=0.3)
    figure.savefig(out, dpi=110)


def panels(history: list[Row]) -> list[tuple[str, list[Line]]]:
    """Titles with the lines there is something to draw of."""
    lengths = [(f"eval_{k}_acceptance_length", k) for k in ("greedy", "sampled")]
    found = (
        ("training loss per label", [("loss", "loss")]),
        ("its terms, unweighted", _lines(history, "loss_")),
        ("held-out nats per position", _lines(history, "eval_nll_")),
        ("held-out tokens per step", [line for line in lengths if any(line[0] in row for row in history)]),
        ("base model, held-out nats per token", [(k, k) for k in _names(history, "eval_base_loss")]),
        ("mean weight of each component", _lines(history, "load_")),
        ("share led by each component", _lines(history, "likeliest_")),
    )
    several = len(_names(history, "load_")) > 1
    return [
        (title, lines)
        for title, lines in found
        if lines and (several or lines[0][0] not in ("load_1", "likeliest_1"))
    ]


def _lines(history: list[Row], prefix: str) -> list[Line]:
    return [(key, key.removeprefix(prefix)) for key in _names(history, prefix)]


def _names(history: list[Row], prefix: str) -> list[str]:
    """Keys in the order of their numbers."""
    names = {key for row in history for key in row if key.startswith(prefix)}
    return sorted(names, key=lambda name: (len(name), name) if name[-1].isdigit() else (0, name))

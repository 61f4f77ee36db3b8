"""The picture of a training run."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any


def can_plot() -> bool:
    """Whether matplotlib (the extra `plots`) is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def plot_curves(source: Path, out: Path) -> None:
    """Draw `training.json` as a PNG: training loss, held-out likelihood per position, acceptance, load."""
    from matplotlib.figure import Figure

    history: list[dict[str, Any]] = json.loads(source.read_text())["history"]
    figure = Figure(figsize=(13, 3.6), layout="constrained")
    axes = figure.subplots(1, 4)
    panels = (
        ("training loss", [("loss", "loss")]),
        (
            "held-out nats per position",
            [(k, k.removeprefix("eval_nll_")) for k in _names(history, "eval_nll_")],
        ),
        (
            "held-out acceptance length",
            [(f"eval_{k}_acceptance_length", k) for k in ("greedy", "sampled")],
        ),
        ("mean weight of each component", [(k, k.removeprefix("load_")) for k in _names(history, "load_")]),
    )
    for axis, (title, lines) in zip(axes, panels, strict=True):
        for key, label in lines:
            points = [(row["step"], row[key]) for row in history if key in row]
            if points:
                axis.plot(*zip(*points, strict=True), label=label)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("step")
        if len(lines) > 1:
            axis.legend(fontsize=8)
        axis.grid(alpha=0.3)
    figure.savefig(out, dpi=110)


def _names(history: list[dict[str, Any]], prefix: str) -> list[str]:
    return sorted({key for row in history for key in row if key.startswith(prefix)})

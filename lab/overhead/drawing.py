"""What the pictures of costs have in common; needs the extra `plots`."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from polydraft.files import write_atomic


def panels(lines: int, columns: int, *, width: float = 5.0, height: float = 3.8) -> tuple[Any, Any]:
    """A figure and its axes (lines, columns)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * columns, height * lines), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(lines, columns, squeeze=False)


def errors(found: Sequence[dict[str, Any]], scale: float = 1.0) -> list[list[float]]:
    """Lengths of error bars of entries with `median` and `interval`."""
    below = [scale * max(entry["median"] - entry["interval"][0], 0) for entry in found]
    return [below, [scale * max(entry["interval"][1] - entry["median"], 0) for entry in found]]


def rank_axis(axis: Any, ranks: Sequence[int], ylabel: str) -> None:
    """Ranks by powers of two."""
    axis.set_xscale("log", base=2)
    axis.set_xticks(list(ranks), [str(rank) for rank in ranks])
    axis.minorticks_off()
    axis.set_xlabel("rank")
    axis.set_ylabel(ylabel)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)


def save(figure: Any, path: Path) -> Path:
    """Write a PNG; returns its path."""
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=120)
    write_atomic(path, picture.getvalue())
    return path

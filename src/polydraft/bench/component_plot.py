"""The component report as a picture; needs the extra `plots`."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from polydraft.files import write_atomic

SHOWN = 5
"""Tokens per component."""
WIDTH = 96
"""Characters of a line of them."""


def plot_components(content: dict[str, Any], path: Path) -> None:
    """Write a PNG: load as a heat map, entropies by position, top tokens as text.

    Args:
        content: of `evaluation.components.component_report`.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rank = content["rank"]
    lines = 0.15 * (rank + 2)
    figure = Figure(figsize=(14, 3.6 + lines), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(2, 2, height_ratios=[3.2, lines])
    draw_load(figure, figure.add_subplot(grid[0, 0]), content)
    draw_entropy(figure.add_subplot(grid[0, 1]), content)
    for column, table in enumerate(content["tokens"]):
        draw_tokens(figure.add_subplot(grid[1, column]), table)
    figure.suptitle(
        f"{content['head']}: {content['joint']}, r = {rank}, {content['anchors']:,} anchors", parse_math=False
    )
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=120)
    write_atomic(path, picture.getvalue())


def draw_load(figure: Any, axis: Any, content: dict[str, Any]) -> None:
    """Mean weight of each component (across) at each position (down)."""
    table = [row["load"] for row in content["positions"]]
    image = axis.imshow(table, aspect="auto", cmap="viridis", vmin=0)
    figure.colorbar(image, ax=axis)
    step = 1 + (content["rank"] - 1) // 16
    axis.set_xticks(range(0, content["rank"], step), range(1, content["rank"] + 1, step))
    axis.set_yticks(range(len(table)), [row["position"] for row in content["positions"]])
    axis.set_xlabel("component")
    axis.set_ylabel("position")
    dead = ", ".join(map(str, content["dead"])) or "none"
    axis.set_title(f"mean weight; even is {1 / content['rank']:.3f}; dead: {dead}", fontsize=10)


def draw_entropy(axis: Any, content: dict[str, Any]) -> None:
    """Entropy of the gate, and of the mean weights, under log r."""
    places = [row["position"] for row in content["positions"]]
    for name, label in (("load_entropy", "of the mean weights"), ("gate_entropy", "of the gate, mean")):
        axis.plot(places, [row[name] for row in content["positions"]], marker="o", label=label)
    axis.axhline(content["max_entropy"], color="grey", linestyle="--", label="log r")
    axis.set_ylim(0, 1.1 * content["max_entropy"])
    axis.set_xticks(places)
    axis.set_xlabel("position")
    axis.set_title("entropy in nats", fontsize=10)
    axis.legend(fontsize=8)
    axis.grid(alpha=0.3)


def draw_tokens(axis: Any, table: dict[str, Any]) -> None:
    """A line of text per component; what the font may lack is written as an escape."""
    axis.axis("off")
    lines = [f"position {table['position']}, tokens likelier where a component speaks, and how many times:"]
    for component, tokens in enumerate(table["components"], start=1):
        words = "   ".join(f"{token['text']!a} {token['lift']:.1f}" for token in tokens[:SHOWN])
        lines.append(f"{component:>3}  {words}"[:WIDTH])
    style = {"va": "top", "fontsize": 8, "family": "monospace", "parse_math": False}
    axis.text(0, 1, "\n".join(lines), transform=axis.transAxes, in_layout=False, **style)

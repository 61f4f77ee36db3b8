"""The figures of a comparison of peers as a picture; needs the extra `plots`."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lab.peers.contestants import PLAIN
from lab.peers.rounds import Setting
from polydraft.files import write_atomic

COLOURS = ("#9ecae1", "#4292c6", "#fdd0a2", "#fd8d3c", "#d94801")
"""Of our own lines, in their order."""
HATCHES = ("", "//", "\\\\", "..", "xx", "--")
"""Of the others, so that one grey can be told from the next."""


def bar_styles(names: Sequence[str], *, own: Sequence[str]) -> dict[str, dict[str, str]]:
    """Colours of the bars: one of `COLOURS` for each of `own`, shades of grey for the others."""
    others = [name for name in names if name not in own]
    styles = {}
    for place, name in enumerate(others):
        grey = f"{0.45 + 0.4 * place / max(len(others) - 1, 1):.2f}"
        styles[name] = {"color": grey, "hatch": HATCHES[place % len(HATCHES)], "edgecolor": "white"}
    return styles | {name: {"color": COLOURS[place % len(COLOURS)]} for place, name in enumerate(own)}


def plot_peers(content: dict[str, Any], path: Path) -> None:
    """Write a PNG: a panel per setting, the ratios of all contestants by kind, plain decoding the line at 1.

    What is polydraft's own is coloured, all others are grey.

    Args:
        content: of `lab.peers.report.peer_report`.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = [name for name, _ in content["contestants"] if name != PLAIN]
    styles = bar_styles(names, own=content["own"])
    panels: dict[Setting, dict[str, dict[str, Any]]] = {}
    for cell in content["cells"]:
        setting = Setting(temperature=cell["temperature"], batch=cell["batch"])
        panels.setdefault(setting, {})[cell["kind"]] = cell["contestants"]
    columns = min(len(panels), 2)
    lines = -(-len(panels) // columns)
    figure = Figure(figsize=(7 * columns, 3.6 * lines + 0.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(lines, columns, squeeze=False).flatten()
    width = 0.84 / max(len(names), 1)
    for axis, (setting, kinds) in zip(axes, panels.items(), strict=False):
        for place, name in enumerate(names):
            there = [(i, kind[name]) for i, kind in enumerate(kinds.values()) if name in kind]
            at = [i + (place - (len(names) - 1) / 2) * width for i, _ in there]
            bars = axis.bar(at, [cell["ratio"] for _, cell in there], width, label=name, **styles[name])
            axis.bar_label(bars, fmt="%.2f", fontsize=6, rotation=90, padding=2)
        axis.axhline(1.0, color="black", linewidth=0.8)
        axis.set_xticks(range(len(kinds)), kinds)
        axis.set_ylabel("times as fast as plain")
        axis.margins(y=0.2)
        axis.set_title(str(setting))
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=max(len(names), 1))
    figure.suptitle(f"{content['model']}, {content['dtype']}: tokens/s over plain, medians over rounds")
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=120)
    write_atomic(path, picture.getvalue())

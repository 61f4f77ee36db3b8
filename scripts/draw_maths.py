"""Draw the pictures of docs/maths.md: `python scripts/draw_maths.py [FOLDER]`, docs/maths by default.

The numbers are those of the examples in the text; the last picture reads docs/results.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

DOCS = Path(__file__).parents[1] / "docs"
BLUE, ORANGE, GREY, GREEN = "#4477aa", "#ee7733", "#bbbbbb", "#228833"
INSIDE: dict[str, Any] = {"ha": "center", "va": "center", "color": "white", "fontsize": 8}
TARGET, ROW = np.array([0.4, 0.3, 0.2, 0.1]), np.array([0.2, 0.4, 0.3, 0.1])


def two_tokens() -> None:
    """The model's joint, the product of its marginals, and two components."""
    new, los = np.array([1.0, 0]), np.array([0, 1.0])
    first, second = np.array([0.4, 0.6]), np.array([0.4, 0.35, 0.25])
    york, angeles = np.array([1.0, 0, 0]), np.array([0, 7, 5]) / 12
    parts = {
        "the model": 0.4 * np.outer(new, york) + 0.6 * np.outer(los, angeles),
        "independent heads": np.outer(first, second),
        "component 1, weight 0.4": 0.4 * np.outer(new, york),
        "component 2, weight 0.6": 0.6 * np.outer(los, angeles),
    }
    _, axes = plt.subplots(1, 4, figsize=(10, 2.2), layout="constrained")
    for ax, (title, table) in zip(axes, parts.items(), strict=True):
        ax.imshow(table, cmap="Blues", vmin=0, vmax=0.6)
        ax.set_title(title, fontsize=9)
        ax.set_xticks(range(3), ["York", "Angeles", "Alamos"], fontsize=8)
        ax.set_yticks(range(2), ["New", "Los"], fontsize=8)
        for (i, j), value in np.ndenumerate(table):
            ax.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=8)


def posterior() -> None:
    """Weights of two components before and after a token."""
    prior, given = np.array([0.4, 0.6]), {"New": np.array([0.9, 0.05]), "Los": np.array([0.1, 0.95])}
    bars = {"before": prior}
    for word, likelihood in given.items():
        bars[f"after {word}"] = prior * likelihood / (prior @ likelihood)
    _, ax = plt.subplots(figsize=(5, 1.7), layout="constrained")
    for y, (label, weights) in enumerate(bars.items()):
        left = 0.0
        for weight, colour in zip(weights, (BLUE, ORANGE), strict=True):
            ax.barh(y, weight, left=left, color=colour)
            ax.text(left + weight / 2, y, f"{weight:.2f}", **INSIDE)
            left += weight
        ax.text(-0.02, y, label, ha="right", va="center", fontsize=9)
    ax.set_title("weights of component 1 (blue) and 2 (orange)", fontsize=9)
    ax.invert_yaxis()
    ax.axis("off")


Edge = tuple[str, str]
CHAIN = [f"x{s}" for s in range(1, 5)]
MEMBERS: dict[str, list[Edge]] = {
    "independent": [],
    "cp": [("z", x) for x in CHAIN],
    "hmm": [*pairwise(f"z{s}" for s in range(1, 5)), *((f"z{s}", f"x{s}") for s in range(1, 5))],
    "tree": [("z", "zl"), ("z", "zr"), *((f"z{'l' if s < 3 else 'r'}", f"z{s}") for s in range(1, 5))]
    + [(f"z{s}", f"x{s}") for s in range(1, 5)],
    "markov": list(pairwise(CHAIN)),
    "cp-markov": [*(("z", x) for x in CHAIN), *pairwise(CHAIN)],
}


def place(node: str) -> tuple[float, float]:
    """Where a node stands: tokens below, components above them."""
    if node[1:].isdigit():
        return float(node[1:]), 0.0 if node[0] == "x" else 1.0
    return {"z": (2.5, 2.6), "zl": (1.5, 1.8), "zr": (3.5, 1.8)}[node]


def members() -> None:
    """What depends on what, of four positions."""
    _, axes = plt.subplots(1, 6, figsize=(11, 2.3), layout="constrained")
    for ax, (name, edges) in zip(axes, MEMBERS.items(), strict=True):
        for a, b in edges:
            style = {"arrowstyle": "-|>", "color": "#555555", "shrinkA": 8, "shrinkB": 8}
            ax.annotate("", place(b), place(a), arrowprops=style)
        for node in sorted({*CHAIN, *(n for edge in edges for n in edge)}):
            x, y = place(node)
            token = node[0] == "x"
            ax.plot(x, y, "s" if token else "o", ms=15, color=BLUE if token else ORANGE)
            ax.text(x, y, node[0] + "₁₂₃₄"[int(x) - 1] if token else "z", **INSIDE)
        ax.set(xlim=(0.5, 4.5), ylim=(-0.5, 3.1), title=name)
        ax.axis("off")


def rejection() -> None:
    """p and q beside each other, and what of p is kept and corrected."""
    _, (left, right) = plt.subplots(1, 2, figsize=(8, 2.4), layout="constrained", sharey=True)
    at = np.arange(4)
    left.bar(at - 0.2, TARGET, 0.4, color=BLUE, label="p, the model")
    left.bar(at + 0.2, ROW, 0.4, color=ORANGE, label="q, the draft's row")
    kept = np.minimum(TARGET, ROW)
    right.bar(at, kept, 0.5, color=GREEN, label=f"min(p, q): kept, {kept.sum():.1f} in all")
    right.bar(at, TARGET - kept, 0.5, bottom=kept, color=GREY, label="max(0, p - q): corrected")
    for ax in (left, right):
        ax.legend(fontsize=8, frameon=False)
        ax.set_xticks(at, [f"token {i}" for i in at + 1], fontsize=8)
        ax.spines[["top", "right"]].set_visible(False)


def tree() -> None:
    """How often a node keeps a child, by how its children are made."""
    likeliest = ROW.argmax()
    others = ROW.copy()
    others[likeliest] = 0
    drawn = np.minimum(TARGET, others / others.sum())
    bars = {
        "one drawn from the whole row": (np.minimum(TARGET, ROW).sum(), 0.0),
        "the likeliest alone, chosen": (0.0, TARGET[likeliest]),
        "one drawn from the others": (drawn.sum(), 0.0),
        "both": (drawn.sum(), TARGET[likeliest]),
    }
    _, ax = plt.subplots(figsize=(6, 1.9), layout="constrained")
    for y, (label, (by_draw, by_choice)) in enumerate(bars.items()):
        ax.barh(y, by_draw, color=GREEN)
        ax.barh(y, by_choice, left=by_draw, color=BLUE)
        ax.text(by_draw + by_choice + 0.01, y, f"{by_draw + by_choice:.2f}", va="center", fontsize=8)
        ax.text(-0.02, y, label, ha="right", va="center", fontsize=8)
    ax.set_title("chance that a child is kept: drawn (green), chosen (blue)", fontsize=9)
    ax.invert_yaxis()
    ax.axis("off")


def hull() -> None:
    """Rows softmax(U' z) of three tokens with unembeddings -1, 0, 1, as points of the simplex."""
    corners = np.array([[0, 0], [0.5, np.sqrt(3) / 2], [1, 0]])
    z = np.linspace(-12, 12, 801)[:, None] * np.array([[-1, 0, 1]])
    rows = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    points = rows @ corners
    _, ax = plt.subplots(figsize=(4.2, 3.4), layout="constrained")
    ax.plot(*np.vstack([corners, corners[:1]]).T, color="#555555", lw=1)
    ax.fill(*points.T, color=ORANGE, alpha=0.25, label="mixtures of any rank")
    ax.plot(*points.T, color=ORANGE, label="one component")
    names = ("token at -1", "token at 0", "token at 1")
    for (x, y), name, above in zip(corners, names, (-0.07, 0.03, -0.07), strict=True):
        ax.text(x, y + above, name, ha="center", fontsize=8)
    ax.legend(fontsize=8, frameon=False, loc="upper left")
    ax.set(xlim=(-0.2, 1.2), aspect="equal")
    ax.axis("off")


def cost() -> None:
    """E, C and E / C of greedy trees of the shipped head, from docs/results."""
    kept = {int(r["nodes"]): r["greedy"] for r in _rows("trees.json") if r["nodes"].isdigit()}
    forward = {r["tokens"]: r["eager_ms"] for r in _rows("forward-cost.json")}
    drafting, widths = forward.pop("drafting"), sorted(forward)
    nodes = sorted(kept)
    tokens = np.array([kept[n] for n in nodes])
    verify = np.interp([n + 1 for n in nodes], widths, [forward[w] for w in widths])
    costs = (drafting + verify) / forward[1]
    _, ax = plt.subplots(figsize=(5.5, 2.8), layout="constrained")
    curves = {"E, tokens per step": (tokens, BLUE), "C, plain forwards": (costs, ORANGE)}
    curves["E / C, speed-up"] = (tokens / costs, GREEN)
    for label, (values, colour) in curves.items():
        _line(ax, nodes, values, colour, label)
    ax.set(xlabel="nodes of the tree", ylim=(0.9, None))
    ax.spines[["top", "right"]].set_visible(False)


def _line(ax: Axes, nodes: list[int], values: Any, colour: str, label: str) -> None:
    ax.plot(nodes, values, "o-", color=colour, ms=3)
    ax.text(nodes[-1] + 0.3, values[-1], label, color=colour, fontsize=8, va="center")


def _rows(name: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads((DOCS / "results" / name).read_text())["rows"]
    return rows


PICTURES: dict[str, Callable[[], None]] = {
    "two-tokens": two_tokens,
    "posterior": posterior,
    "members": members,
    "rejection": rejection,
    "tree": tree,
    "hull": hull,
    "cost": cost,
}


def draw(folder: Path) -> list[Path]:
    """Write all pictures to `folder`; the same files from the same numbers."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    with mpl.rc_context({"svg.hashsalt": "polydraft", "font.size": 9}):
        for name, picture in PICTURES.items():
            picture()
            path = folder / f"{name}.svg"
            plt.savefig(path, metadata={"Date": None}, facecolor="white")
            plt.close()
            written.append(path)
    return written


if __name__ == "__main__":
    mpl.use("svg")
    draw(Path(sys.argv[1]) if len(sys.argv) > 1 else DOCS / "maths")

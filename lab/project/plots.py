"""The projection as pictures; needs the extra `plots`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lab.overhead.drawing import panels, rank_axis, save

KINDS = {"given": "given tokens per step", "replayed": "tokens per step as replayed"}


def plot_results(content: dict[str, Any], folder: Path) -> list[Path]:
    """Draw what there is: curve.png, predicted.png; speedup.png, rank.png; returns their paths."""
    out = []
    measured, roofline = content["measured"], content["roofline"]
    if measured is not None:
        out.append(plot_curve(measured, folder / "curve.png"))
        if measured["grids"]:
            out.append(plot_predicted(measured["grids"], folder / "predicted.png"))
    if roofline is not None:
        out += [plot_speedup(roofline, folder / "speedup.png"), plot_rank(roofline, folder / "rank.png")]
    return out


def plot_curve(measured: dict[str, Any], path: Path) -> Path:
    """Forwards by new tokens: measured, and by the roofline."""
    rows = measured["roofline"]["forwards"]
    figure, axes = panels(1, 1)
    axis = axes[0][0]
    for name in ("measured", "predicted"):
        axis.plot([r["tokens"] for r in rows], [1e3 * r[name] for r in rows], marker="o", label=name)
    axis.set_xlabel("new tokens")
    axis.set_ylabel("milliseconds of a forward")
    axis.set_ylim(bottom=0)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    axis.set_title(f"{measured['model']}: roofline fitted at one token", fontsize=10)
    return save(figure, path)


def plot_predicted(grids: list[dict[str, Any]], path: Path) -> Path:
    """Measured against predicted speed-ups, a panel per question; the band is 10% off."""
    figure, axes = panels(1, len(KINDS))
    for axis, (name, title) in zip(axes[0], KINDS.items(), strict=True):
        ends: list[float] = []
        for grid in grids:
            for mode, marker in (("greedy", "o"), ("sampled", "^")):
                rows = [r for r in grid["rows"] if r["mode"] == mode and r[name] is not None]
                x, y = [r[name]["ratio"] for r in rows], [r["ratio"] for r in rows]
                ends += x + y
                label = f"{grid['grid']}, {'T = 1' if mode == 'sampled' else mode}"
                bars = [[max(r["ratio"] - r["interval"][0], 0) for r in rows]]
                bars.append([max(r["interval"][1] - r["ratio"], 0) for r in rows])
                axis.errorbar(x, y, yerr=bars, fmt=marker, elinewidth=0.5, alpha=0.8, label=label)
        line = [min(ends, default=1.0) * 0.95, max(ends, default=1.0) * 1.05]
        axis.plot(line, line, color="black", linewidth=0.8)
        low, high = [0.9 * v for v in line], [1.1 * v for v in line]
        axis.fill_between(line, low, high, color="grey", alpha=0.15)
        axis.set_xlabel(f"predicted speed-up, {title}")
        axis.set_ylabel("measured speed-up, median over prompts")
        axis.legend(fontsize=6)
    return save(figure, path)


def plot_speedup(found: dict[str, Any], path: Path) -> Path:
    """Speed-up by n, a line per rank: a row of panels per model, a column per acceptance; the first batch."""
    sweep, models = found["sweep"], found["models"]
    figure, axes = panels(len(models), len(sweep["acceptances"]), width=4.2, height=3.2)
    batch = sweep["batches"][0]
    for line, model in zip(axes, models, strict=True):
        for at, (axis, acceptance) in enumerate(zip(line, sweep["acceptances"], strict=True)):
            for rank in sorted(sweep["ranks"]):
                rows = [
                    r
                    for r in found["rows"]
                    if (r["model"], r["batch"], r["rank"]) == (model["name"], batch, rank)
                ]
                x, y = [r["horizon"] for r in rows], [r["speedups"][at] for r in rows]
                axis.plot(x, y, marker="o", markersize=3, label=f"rank {rank}")
            axis.axhline(1.0, color="grey", linewidth=0.8)
            named = ", ".join(f"{a:g}" for a in acceptance)
            axis.set_title(f"{model['name']}, acceptance {named}, batch {batch}", fontsize=8)
            axis.set_xlabel("drafts a step, n")
            axis.set_ylabel("speed-up")
            axis.grid(alpha=0.3)
    axes[0][0].legend(fontsize=7)
    return save(figure, path)


def plot_rank(found: dict[str, Any], path: Path) -> Path:
    """What rank must add to tokens a cycle to be as fast as the lowest, a line per batch; the largest n."""
    sweep, models = found["sweep"], found["models"]
    horizon = max(sweep["horizons"])
    figure, axes = panels(1, len(models), width=4.2, height=3.6)
    for axis, model in zip(axes[0], models, strict=True):
        for batch in sweep["batches"]:
            rows = [
                r
                for r in found["rows"]
                if (r["model"], r["batch"], r["horizon"]) == (model["name"], batch, horizon)
            ]
            x, y = [r["rank"] for r in rows], [100 * r["gain_needed"] for r in rows]
            axis.plot(x, y, marker="o", label=f"batch {batch}")
        rank_axis(axis, sorted(sweep["ranks"]), "% more tokens a step needed")
        axis.set_title(f"{model['name']}, n = {horizon}", fontsize=9)
        axis.set_yscale("symlog", linthresh=1)
        axis.set_ylim(bottom=0)
    return save(figure, path)

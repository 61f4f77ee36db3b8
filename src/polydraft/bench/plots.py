"""The figures of a report as a picture; needs the extra `plots`."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from polydraft.files import write_atomic

PLAIN, EAGER, DRAFTED = "0.45", "0.75", "tab:blue"
"""Colours of decoding without drafts, of the same not compiled, and of drafted decoding."""


def plot_report(content: dict[str, Any], path: Path) -> None:
    """Write a PNG: tokens per second by kind, and the share of steps that accept each position.

    Decoding without drafts is grey, drafted decoding coloured, with its ratio, like for like.

    Args:
        content: of `bench.report.report`.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    groups = content["kinds"] | {"all": content["all"]}
    figure = Figure(figsize=(10, 4), layout="constrained")
    FigureCanvasAgg(figure)
    speed, acceptance = figure.subplots(1, 2)
    bars_of = speeds(groups)
    width = 0.76 / len(bars_of)
    for place, (name, (heights, colour)) in enumerate(bars_of.items()):
        at = [i + (place - (len(bars_of) - 1) / 2) * width for i in range(len(groups))]
        bars = speed.bar(at, heights, width, label=name, color=colour)
        if colour == DRAFTED:
            speed.bar_label(bars, [f"{group['ratio']:.2f}x" for group in groups.values()])
    speed.set_xticks(range(len(groups)), groups)
    speed.set_ylabel("tokens per second, median over prompts")
    speed.margins(y=0.2)
    speed.legend(loc="upper center", ncols=len(bars_of))
    for name, group in groups.items():
        shares = group["acceptance_per_position"]
        label = f"{name} ({group['mean_acceptance_length']:.2f} tokens per step)"
        acceptance.plot(range(1, len(shares) + 1), shares, marker="o", label=label)
    acceptance.set_xlabel("draft position")
    acceptance.set_ylabel("share of steps that accept it")
    acceptance.set_ylim(0, 1)
    acceptance.xaxis.get_major_locator().set_params(integer=True)
    acceptance.legend()
    sampling = "greedy" if content["temperature"] == 0 else f"temperature {content['temperature']:g}"
    figure.suptitle(
        f"{content['model']}, {content['dtype']}, {sampling}, {content['all']['prompts']} prompts"
    )
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=120)
    write_atomic(path, picture.getvalue())


def speeds(groups: dict[str, dict[str, Any]]) -> dict[str, tuple[list[float], str]]:
    """For each way to decode its median tokens per second in every group, and its colour."""
    compiled = all(group["eager"] is not None for group in groups.values())
    after = ", compiled" * compiled
    ways = {
        f"plain{after}": ([group["plain_tokens_per_second"] for group in groups.values()], PLAIN),
        f"drafted{after}": ([group["drafted_tokens_per_second"] for group in groups.values()], DRAFTED),
    }
    if compiled:
        return {"plain": ([group["eager"]["tokens_per_second"] for group in groups.values()], EAGER)} | ways
    return ways

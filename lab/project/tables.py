"""The projection as markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lab.grid.tables import table

LABELS = {
    "given cost": "cycle cost, given the timed runs' tokens per step",
    "given ratio": "speed-up, given the timed runs' tokens per step",
    "replayed ratio": "speed-up, from tokens per step as replayed",
}


def markdown(content: dict[str, Any]) -> str:
    """What was measured and predicted, then the roofline."""
    parts = ["# Projected speed-ups\n", f"`{content['command']}`\n"]
    if content["measured"] is not None:
        parts += measured_parts(content["measured"])
    if content["roofline"] is not None:
        parts += roofline_parts(content["roofline"])
    return "\n".join(parts)


def measured_parts(found: dict[str, Any]) -> list[str]:
    """The roofline against the machine, and grids predicted."""
    roofline = found["roofline"]
    parts = [
        f"## Roofline against {found['model']} as measured\n",
        f"{roofline['bandwidth'] / 1e9:.1f} GB/s, {roofline['flops'] / 1e9:,.0f} GFLOP/s; "
        f"{1e6 * roofline['launch']:.0f} us an operation, fitted to the forward over one token alone.\n",
        table(["forward over", "measured ms", "predicted ms", "error"], [
            [str(row["tokens"]), *both(row)] for row in roofline["forwards"]
        ]),
        table(["drafting with", "measured ms", "predicted ms", "error"], [
            [row["name"], *both(row)] for row in roofline["drafts"]
        ]),
        table(["a cycle with", "measured, plain steps", "predicted", "error"], [
            [row["name"], f"{row['measured']:.2f}", f"{row['predicted']:.2f}", f"{row['error']:+.0%}"]
            for row in roofline["cycles"]
        ]),
    ]  # fmt: skip
    for grid in found["grids"]:
        parts += [f"## {grid['grid']}, predicted from measured costs\n", error_table(grid), cell_table(grid)]
    return parts


def both(row: dict[str, float]) -> list[str]:
    """Measured, predicted, error."""
    return [f"{1e3 * row['measured']:.1f}", f"{1e3 * row['predicted']:.1f}", f"{row['error']:+.0%}"]


def error_table(grid: dict[str, Any]) -> str:
    """Errors of all cells of a grid."""
    rows = []
    for name, found in grid["errors"].items():
        if found is not None:
            inside = "-" if found["in_interval"] is None else f"{found['in_interval']} of {found['cells']}"
            shares = [f"{found['mean']:.1%}", f"{found['bias']:+.1%}", f"{found['worst']:+.1%}"]
            rows.append([LABELS[name], str(found["cells"]), *shares, f"{found['within']:.0%}", inside])
    headings = ["", "cells", "mean error", "bias", "worst", "within 10%", "in the 95% interval"]
    told = grid["calibrated_by"]
    note = f"\nCosts are scaled so that {told} is right; it is not judged.\n" if told else ""
    return table(headings, rows) + note


def cell_table(grid: dict[str, Any]) -> str:
    """Each timed cell, measured and predicted."""
    rows = []
    for row in grid["rows"]:
        low, high = row["interval"]
        given, replayed = row["given"], row["replayed"]
        rows.append(
            [
                row["name"],
                "T = 1" if row["mode"] == "sampled" else row["mode"],
                f"{row['cost']:.2f}",
                f"{given['cost']:.2f}",
                f"{row['ratio']:.2f} [{low:.2f}, {high:.2f}]",
                f"{given['ratio']:.2f}",
                "-" if replayed is None else f"{replayed['ratio']:.2f}",
            ]
        )
    headings = [
        "cell",
        "mode",
        "cost",
        "predicted",
        "speed-up",
        "predicted, given tokens",
        "predicted, replayed",
    ]
    return table(headings, rows)


def roofline_parts(found: dict[str, Any]) -> list[str]:
    """A table per model and batch."""
    machine, sweep = found["machine"], found["sweep"]
    parts = [
        f"## Roofline: {machine['devices']} x {machine['name']}\n",
        f"{machine['bandwidth'] / 1e12:.2f} TB/s, of it {machine['bandwidth_share']:.0%}; "
        f"{machine['flops'] / 1e12:,.0f} TFLOP/s, of it {machine['compute_share']:.0%}; "
        f"{1e6 * machine['launch']:g} us an operation. {sweep['joint']} heads, {sweep['features']} features, "
        f"draft vocabulary {sweep['draft_vocab_size']}, {sweep['context']} tokens of context, "
        f"{sweep['mode']}. Speed-ups by conditional acceptance, the same for all ranks. What rank must add: "
        "by how much tokens a cycle must grow for it to be as fast as the lowest rank.\n",
    ]
    for model in found["models"]:
        for batch in sweep["batches"]:
            rows = [r for r in found["rows"] if (r["model"], r["batch"]) == (model["name"], batch)]
            title = f"### {model['name']}, {model['weight_bytes']:g} bytes a weight, batch {batch}\n"
            parts += [title, sweep_table(rows, sweep["acceptances"])]
            named = [r for r in found["grid_rows"] if (r["model"], r["batch"]) == (model["name"], batch)]
            if named:
                parts.append(
                    table(
                        ["head", "tokens/step", "plain steps", "speed-up"],
                        [
                            [r["name"], f"{r['tokens']:.2f}", f"{r['cost']:.3f}", f"{r['speedup']:.2f}"]
                            for r in named
                        ],
                    )
                )
    return parts


def sweep_table(rows: Sequence[dict[str, Any]], acceptances: Sequence[Sequence[float]]) -> str:
    """A line per horizon and rank."""
    named = [f"at {', '.join(f'{a:g}' for a in acceptance)}" for acceptance in acceptances]
    headings = ["n", "rank", "parameters", "plain steps", "drafting", "rank must add", *named]
    out = []
    for row in rows:
        cost = [f"{row['cost']:.3f}", f"{row['drafting_share']:.1%}", f"{row['gain_needed']:.1%}"]
        speedups = [f"{speedup:.2f}" for speedup in row["speedups"]]
        size = f"{row['parameters'] / 1e6:.0f}M"
        out.append([str(row["horizon"]), str(row["rank"]), size, *cost, *speedups])
    return table(headings, out)

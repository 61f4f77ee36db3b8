"""`python -m lab project`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from polydraft.cli import options

WEIGHTS = {"bf16": 2.0, "fp8": 1.0}
"""Bytes of a weight; fp8 doubles the arithmetic too."""


def project(
    *,
    costs: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="results.json of evaluate overhead: predict from measured costs.",
            show_default=False,
        ),
    ] = None,
    grid: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="results.json of a grid with timed cells: predicted and compared, with --costs; several.",
            show_default=False,
        ),
    ] = None,
    calibrate: Annotated[
        str | None,
        typer.Option(
            metavar="CELL", help="Scale all costs so that this cell of the grid is right.", show_default=False
        ),
    ] = None,
    prompt_tokens: Annotated[
        int, typer.Option(help="Tokens of a timed prompt; 0 for the context of --costs.")
    ] = 0,
    components: Annotated[
        int, typer.Option(help="Components that the grid's heads evaluate, where it has no folders; 0: all.")
    ] = 0,
    shape: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Model to project by the roofline: llama-3.2-1b, llama-3.1-8b, llama-3.1-70b, smollm2-135m, "
            "or a config.json; several. By default the first two, without --costs.",
            show_default=False,
        ),
    ] = None,
    machine: Annotated[str, typer.Option(metavar="NAME", help="h100-sxm.")] = "h100-sxm",
    bandwidth: Annotated[
        float | None, typer.Option(help="GB/s, instead of the machine's.", show_default=False)
    ] = None,
    flops: Annotated[
        float | None, typer.Option(help="TFLOP/s in bf16, instead of the machine's.", show_default=False)
    ] = None,
    bandwidth_share: Annotated[
        float | None, typer.Option(help="Of it that is reached.", show_default=False)
    ] = None,
    compute_share: Annotated[
        float | None, typer.Option(help="Of it that is reached.", show_default=False)
    ] = None,
    launch: Annotated[
        float | None, typer.Option(help="Microseconds of an operation beside its work.", show_default=False)
    ] = None,
    gpus: Annotated[int, typer.Option(help="Devices that divide the weights among themselves.")] = 1,
    weights: Annotated[str, typer.Option(metavar="NAME", help="bf16 or fp8.")] = "bf16",
    rank: Annotated[
        list[int] | None, typer.Option(help="Several. By default 1 2 4 8 16 32.", show_default=False)
    ] = None,
    horizon: Annotated[
        list[int] | None, typer.Option(help="Drafts a step; several. By default 2 4 6 8.", show_default=False)
    ] = None,
    batch: Annotated[
        list[int] | None, typer.Option(help="Texts at once; several. By default 1 8 32.", show_default=False)
    ] = None,
    acceptance: Annotated[
        list[str] | None,
        typer.Option(
            metavar="P",
            help="Conditional acceptance, of all positions (0.8) or of each (0.8,0.7,0.6); several. By "
            "default 0.5 0.7 0.85.",
            show_default=False,
        ),
    ] = None,
    acceptance_from: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="results.json of a grid: project its heads with their tokens per step.",
            show_default=False,
        ),
    ] = None,
    joint: Annotated[str, typer.Option(help="Member of the family.")] = "cp",
    features: Annotated[str, typer.Option(help="fused, hidden or block.")] = "fused",
    draft_vocab_size: Annotated[int, typer.Option(help="Tokens that can be drafted.")] = 32768,
    map_rank: Annotated[int, typer.Option(help="Of the map per position and component; 0 is full.")] = 128,
    feature_size: Annotated[int, typer.Option(help="Width of the fusing layer; 0 is 4 d.")] = 0,
    context: Annotated[int, typer.Option(help="Tokens of each text before the step.")] = 512,
    mode: Annotated[str, typer.Option(help="greedy or sampled.")] = "greedy",
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for all.")] = Path("runs/project"),
) -> None:
    """Predict how much faster drafted decoding is: by a roofline, or from costs measured here.

    E tokens a cycle over the cost of a cycle in plain steps. Nothing is run.
    """
    from lab.project import report
    from lab.project.expectation import parse_acceptance
    from lab.project.presets import on_machine
    from lab.project.reading import read_shape
    from lab.project.sweep import Sweep
    from polydraft.errors import InputError

    if costs is None and (grid or calibrate):
        raise InputError("--grid and --calibrate need measured costs: give --costs, of evaluate overhead")
    if weights not in WEIGHTS:
        raise InputError(f"weights must be one of {', '.join(WEIGHTS)}, got {weights!r}")
    measured = None
    if costs is not None:
        asked = report.Measured(
            costs=costs,
            grids=tuple(grid or ()),
            prompt_tokens=prompt_tokens,
            components=components,
            calibrate=calibrate,
        )
        measured = report.from_measured(asked)
    names = ([] if costs is not None else ["llama-3.2-1b", "llama-3.1-8b"]) if shape is None else shape
    roofline = None
    if names:
        device = on_machine(
            machine,
            devices=gpus,
            fp8=weights == "fp8",
            bandwidth=None if bandwidth is None else 1e9 * bandwidth,
            flops=None if flops is None else 1e12 * flops,
            bandwidth_share=bandwidth_share,
            compute_share=compute_share,
            launch=None if launch is None else 1e-6 * launch,
        )
        sweep = Sweep(
            ranks=tuple([1, 2, 4, 8, 16, 32] if rank is None else rank),
            horizons=tuple([2, 4, 6, 8] if horizon is None else horizon),
            batches=tuple([1, 8, 32] if batch is None else batch),
            acceptances=tuple(
                parse_acceptance(text)
                for text in (["0.5", "0.7", "0.85"] if acceptance is None else acceptance)
            ),
            context=context,
            mode=mode,
            joint=joint,
            features=features,
            draft_vocab_size=draft_vocab_size,
            map_rank=map_rank,
            feature_size=feature_size,
        )
        models = [read_shape(name, weight_bytes=WEIGHTS[weights]) for name in names]
        roofline = report.from_roofline(
            models, device, sweep, acceptance=acceptance_from, components=components
        )
    content = report.run_projection(
        out, measured=measured, roofline=roofline, command=options.command_line("python -m lab")
    )
    console = Console()
    if measured is not None:
        console.print(measured_table(measured))
    if roofline is not None:
        console.print(roofline_table(content["roofline"]))
    options.error_console().print(f"report in {out}", markup=False, soft_wrap=True)


def measured_table(found: dict[str, Any]) -> Table:
    """Errors of what was predicted."""
    table = Table(title=f"{found['model']}: predicted over measured", box=box.SIMPLE)
    table.add_column("what")
    for heading in ("figures", "mean error", "bias", "worst", "within 10%"):
        table.add_column(heading, justify="right")
    roofline = found["roofline"]
    for what, name, first in (("forwards", "worst_forward", 1), ("cycles", "worst_cycle", 0)):
        if roofline[name] is not None:
            count = str(len(roofline[what]) - first)
            table.add_row(f"roofline: {what}", count, "", "", f"{roofline[name]:+.1%}", "")
    for grid in found["grids"]:
        for name, errors in grid["errors"].items():
            if errors is not None:
                shares = [f"{errors['mean']:.1%}", f"{errors['bias']:+.1%}", f"{errors['worst']:+.1%}"]
                label = f"{Path(grid['grid']).parent.name}: {name}"
                table.add_row(label, str(errors["cells"]), *shares, f"{errors['within']:.0%}")
    return table


def roofline_table(found: dict[str, Any]) -> Table:
    """Speed-ups of the middle acceptance by model, batch and horizon, a column per rank."""
    sweep, machine = found["sweep"], found["machine"]
    at = len(sweep["acceptances"]) // 2
    named = ", ".join(f"{a:g}" for a in sweep["acceptances"][at])
    ranks = sorted(sweep["ranks"])
    title = f"{machine['devices']} x {machine['name']}: speed-up at acceptance {named}, by rank"
    table = Table(title=title, box=box.SIMPLE)
    for heading in ("model", "batch", "n", *map(str, ranks)):
        table.add_column(heading, justify="left" if heading == "model" else "right", no_wrap=True)
    lines: dict[tuple[str, int, int], list[str]] = {}
    for row in found["rows"]:
        key = (row["model"], row["batch"], row["horizon"])
        lines.setdefault(key, []).append(f"{row['speedups'][at]:.2f}")
    for (model, batch, horizon), cells in lines.items():
        table.add_row(model, str(batch), str(horizon), *cells)
    return table

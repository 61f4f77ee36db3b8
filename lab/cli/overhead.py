"""`python -m lab overhead`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from polydraft.cli import options


def overhead(
    *,
    model: options.ModelName = "smollm2-135m-instruct",
    joint: Annotated[str, typer.Option(help="Member of the family whose ranks are compared.")] = "cp",
    rank: Annotated[
        list[int] | None,
        typer.Option(help="Components; several. By default 1 2 4 8 16 32.", show_default=False),
    ] = None,
    horizon: Annotated[
        list[int] | None, typer.Option(help="Drafts a step; several. By default 2 4 8.", show_default=False)
    ] = None,
    extra: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Further heads: a member, features, or both: markov, block, hmm:8, cp:4+block; several. "
            "By default markov and block.",
            show_default=False,
        ),
    ] = None,
    draft_vocab_size: Annotated[int, typer.Option(help="Tokens that can be drafted.")] = 8192,
    feature_size: Annotated[int, typer.Option(help="Width of the layer that fuses features.")] = 2304,
    map_rank: Annotated[int, typer.Option(help="Rank of the map per position and component.")] = 128,
    markov_rank: Annotated[int, typer.Option(help="Rank of the bias from the token before.")] = 128,
    positions: Annotated[int, typer.Option(help="Positions of a training step.")] = 256,
    cycles: Annotated[int, typer.Option(help="Cycles per head and round, of each mode.")] = 8,
    rounds: Annotated[int, typer.Option(help="Rounds over all heads.")] = 10,
    memory: Annotated[bool, typer.Option(help="Peak memory, in a process per head.")] = True,
    budget_minutes: Annotated[
        float | None, typer.Option(help="No further round begins after these.", show_default=False)
    ] = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for all.")] = Path("runs/overhead"),
    dtype: options.DtypeName = "auto",
    threads: options.Threads = None,
) -> None:
    """Measure what heads cost beside the trunk, by rank and horizon: cycles, training steps, memory.

    The heads are untrained: what they cost does not depend on their weights. What is measured already is
    skipped: a killed run goes on where it was when called again.
    """
    from lab.cli.grid import GridProgress
    from lab.overhead.cells import Sizes, make_cells
    from lab.overhead.rounds import Settings
    from lab.overhead.run import run_overhead

    console = options.error_console()
    ranks = [1, 2, 4, 8, 16, 32] if rank is None else rank
    horizons = [2, 4, 8] if horizon is None else horizon
    extras = ["markov", "block"] if extra is None else extra
    settings = Settings(
        cells=tuple(make_cells(joint=joint, ranks=ranks, horizons=horizons, extra=extras)),
        sizes=Sizes(
            draft_vocab_size=draft_vocab_size,
            feature_size=feature_size,
            map_rank=map_rank,
            markov_rank=markov_rank,
        ),
        cycles=cycles,
        positions=positions,
        rounds=rounds,
    )
    base, _, note = options.open_model(model=model, dtype=dtype, threads=threads, console=console)
    console.print(note)
    content = run_overhead(
        settings,
        out,
        base,
        name=model,
        memory=memory,
        budget_seconds=None if budget_minutes is None else 60 * budget_minutes,
        progress=GridProgress(console),
        command=options.command_line("python -m lab"),
    )
    Console().print(overhead_table(content))
    console.print(f"report in {out}", markup=False, soft_wrap=True)


def overhead_table(content: dict[str, Any]) -> Table:
    """Size, cost of a cycle and of a training step of every head."""
    machine = content["machine"]
    table = Table(title=f"{content['model']}, {machine['dtype']}, {content['rounds']} rounds", box=box.SIMPLE)
    table.add_column("head", no_wrap=True)
    headings = ("parameters", "greedy cycle\nplain steps", "T = 1 cycle\nplain steps", "drafting\ngreedy")
    for heading in (*headings, "training\ntrunk forwards", "training\nMiB"):
        table.add_column(heading, justify="right")
    for cell in content["cells"]:
        memory = cell["memory"]
        table.add_row(
            cell["name"],
            f"{cell['parameters'] / 1e6:.1f}M",
            *[f"{cell[mode]['cost']['median']:.2f}" for mode in ("greedy", "sampled")],
            f"{cell['greedy']['drafting_share']['median']:.0%}",
            f"{cell['training']['over_trunk']['median']:.2f}",
            f"{memory['training'] / 2**20:,.0f}" if memory else "-",
        )
    return table

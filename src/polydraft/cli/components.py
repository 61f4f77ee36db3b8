"""`polydraft components`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from polydraft.cli import options

Windows = Annotated[int, typer.Option(help="Windows of text to look at, at most, drawn at random.")]
AnchorsPerWindow = Annotated[
    int, typer.Option(help="Positions per window, on average at most, drawn at random; 0 for all.")
]

SHOWN = 4
"""Tokens per component in the terminal."""


def components(
    *,
    head: options.HeadName,
    model: options.ModelName,
    data: Annotated[list[Path], typer.Option(help="Text that the head has not seen, as in train; several.")],
    windows: Windows = 64,
    anchors_per_window: AnchorsPerWindow = 64,
    json_path: Annotated[
        Path | None,
        typer.Option("--json", metavar="FILE", help="Keep the figures here.", show_default=False),
    ] = None,
    plot_path: Annotated[
        Path | None,
        typer.Option("--plot", metavar="FILE", help="Draw them as a PNG here.", show_default=False),
    ] = None,
    dtype: options.DtypeName = "auto",
    threads: options.Threads = None,
) -> None:
    """Show how a head uses its components: entropy of the gate, load, dead ones, what each specialises in."""
    from polydraft.bench.component_plot import plot_components
    from polydraft.bench.components import component_report
    from polydraft.bench.report import check_writable, write_report
    from polydraft.errors import InputError
    from polydraft.extras import install
    from polydraft.training.curves import can_plot
    from polydraft.training.data import check_paths
    from polydraft.training.gating import TextSample

    console = options.error_console()
    sample = TextSample(windows=windows, anchors_per_window=anchors_per_window)
    check_paths(data)
    for path in (json_path, plot_path):
        if path is not None:
            check_writable(path)
    if plot_path is not None and not can_plot():
        raise InputError(f"--plot needs matplotlib: {install('plots')}")
    session = options.open_session(model=model, head=head, dtype=dtype, threads=threads, console=console)
    config = session.head.config
    if config.rank == 1:
        console.print(f"the head {head} ({config.joint}) has one component: nothing to report", markup=False)
        return
    with console.status("reading and counting"):
        content = component_report(
            session.head,
            session.model,
            session.tokenizer,
            data,
            sample=sample,
            names={"head": head, "model": model, "dtype": str(session.dtype).removeprefix("torch.")},
            command=options.command_line(),
        )
    out = Console()
    out.print(load_table(content))
    for table in content["tokens"]:
        out.print(token_table(table))
    out.print(dead_line(content))
    if json_path is not None:
        write_report(content, json_path)
    if plot_path is not None:
        plot_components(content, plot_path)


def load_table(content: dict[str, Any]) -> Table:
    """A column per position: entropies; of each component its mean weight and how often it is the largest."""
    title = f"{content['head']}: {content['joint']}, r = {content['rank']}, {content['anchors']:,} anchors"
    caption = (
        f"entropies in nats, at most {content['max_entropy']:.2f}; components: mean weight, even is "
        f"{1 / content['rank']:.0%}, and share of anchors where it is the largest"
    )
    rows = content["positions"]
    table = Table(title=Text(title), caption=caption, box=box.SIMPLE, padding=(0, 1, 0, 0))
    table.add_column("position")
    for row in rows:
        table.add_column(str(row["position"]), justify="right")
    for name in ("gate", "load"):
        figures = [f"{row[f'{name}_entropy']:.2f}" for row in rows]
        table.add_row(f"{name} entropy", *figures, end_section=name == "load")
    for a in range(content["rank"]):
        shares = [f"{row['load'][a]:.0%} {row['largest'][a]:>4.0%}" for row in rows]
        table.add_row(f"component {a + 1}", *shares)
    return table


def token_table(content: dict[str, Any]) -> Table:
    """A row per component: its tokens of largest lift at one position."""
    title = f"position {content['position']}: tokens likelier where a component speaks, and how many times"
    table = Table(title=title, box=box.SIMPLE, padding=(0, 1, 0, 0), show_header=False)
    for component, tokens in enumerate(content["components"], start=1):
        words = [Text(f"{token['text']!r} {token['lift']:.1f}") for token in tokens[:SHOWN]]
        table.add_row(f"component {component}", *words)
    return table


def dead_line(content: dict[str, Any]) -> str:
    """Which components carry next to nothing."""
    bound = f"below {content['dead_below']:.1%} of the weight at every position"
    if not content["dead"]:
        return f"no dead component ({bound})"
    names, alive = ", ".join(map(str, content["dead"])), content["rank"] - len(content["dead"])
    return f"dead ({bound}): {names}; polydraft prune --keep {alive} drops them"

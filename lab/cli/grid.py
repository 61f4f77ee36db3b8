"""`python -m lab grid`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from polydraft.cli import options

if TYPE_CHECKING:
    from transformers import TrainerCallback


class GridProgress:
    """Notes, training lines and counts on one console."""

    def __init__(self, console: Console) -> None:
        self.console = console

    def note(self, line: str) -> None:
        """Print it."""
        self.console.print(line, markup=False, highlight=False)

    @contextmanager
    def training(self, steps: int) -> Iterator[TrainerCallback]:
        """The line of `polydraft train`."""
        from polydraft.cli.progress import TrainingProgress

        with TrainingProgress(self.console, steps=steps) as progress:
            yield progress

    @contextmanager
    def counting(self, what: str, total: int) -> Iterator[Callable[[str], None]]:
        """A bar with the last thing done."""
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn

        from polydraft.cli.progress import Bar

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Bar(*columns, console=self.console) as progress:
            task = progress.add_task(what, total=total)
            yield lambda line: progress.update(task, advance=1, description=f"{what}: {line}")


def grid(
    config: Annotated[Path, typer.Argument(help="TOML file: the heads to train and how to judge them.")],
    *,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Folder for all; by default runs/NAME of the file.", show_default=False
        ),
    ] = None,
    stage: Annotated[
        list[str] | None,
        typer.Option(help="train, replay, speed or report; several. By default all.", show_default=False),
    ] = None,
    budget_minutes: Annotated[
        float | None,
        typer.Option(help="Nothing further is begun after these: no cell, no prompt.", show_default=False),
    ] = None,
    keep: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="results.json of an earlier run, on another machine or in a folder that is gone: its rows "
            "stay, and their cells are not trained again.",
            show_default=False,
        ),
    ] = None,
    threads: options.Threads = None,
) -> None:
    """Train every head of a file on the same data, and compare them on the same texts of the base model.

    What is done already is skipped: a killed run goes on where it was when called again.
    """
    from lab.grid.parse import read_config
    from lab.grid.run import STAGES, check_stages, run_grid

    console = options.error_console()
    found = read_config(config)
    stages = tuple(stage or STAGES)
    check_stages(stages)
    folder = out or Path("runs") / config.stem
    dtype, note = options.begin(dtype=found.dtype, threads=threads, console=console)
    console.print(note)
    from polydraft.loading import load_model

    content = run_grid(
        found,
        folder,
        partial(load_model, dtype=dtype, on_progress=console.print),
        stages=stages,
        budget_minutes=budget_minutes,
        keep=keep,
        progress=GridProgress(console),
        command=options.command_line("python -m lab"),
    )
    Console().print(grid_table(content))
    console.print(f"report in {folder}", markup=False, soft_wrap=True)


def grid_table(content: dict[str, Any]) -> Table:
    """Tokens per step and wall-clock ratio of every head, as far as they are known."""
    table = Table(title=f"{content['model']}, {content['dtype']}", box=box.SIMPLE, padding=(0, 1, 0, 0))
    table.add_column("cell", overflow="fold")
    for heading in ("greedy\ntokens/step", "T = 1\ntokens/step", "greedy\nwall clock", "T = 1\nwall clock"):
        table.add_column(heading, justify="right")
    for cell in content["cells"]:
        lengths = [cell["acceptance"].get(mode) for mode in ("greedy", "sampled")]
        speeds = [cell["speed"].get(mode) for mode in ("greedy", "sampled")]
        table.add_row(
            cell["name"],
            *["-" if found is None else f"{found['all']['length']:.3f}" for found in lengths],
            *["-" if found is None else f"{found['median_ratio']:.2f}" for found in speeds],
        )
    return table

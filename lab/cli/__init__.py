"""The laboratory's command line, `python -m lab`: one file per command."""

from __future__ import annotations

import os

import typer

from lab.cli import grid, overhead, page, peers, project
from polydraft.cli import OneLineErrors

app = typer.Typer(cls=OneLineErrors, name="lab", no_args_is_help=True, pretty_exceptions_enable=False)


@app.callback()
def root() -> None:
    """Compare heads, measure what they cost, predict what they bring elsewhere, and write it all down.

    Run it from the root of the repository.
    """
    os.environ.setdefault("TQDM_DISABLE", "1")


for command in (grid.grid, overhead.overhead, peers.peers, project.project, page.page):
    app.command()(command)


def main() -> None:
    """Run the command line."""
    app(prog_name="python -m lab")

"""The command line: one file per command; what can go wrong for a user becomes one line and an exit code.

Commands import torch and transformers when they run, so that `--help` answers at once.
"""

from __future__ import annotations

import errno
import os
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from polydraft.cli import (
    bench,
    card,
    collect,
    components,
    demo,
    doctor,
    generate,
    inspect,
    prune,
    push,
    serve,
    train,
)
from polydraft.errors import PolydraftError
from polydraft.ranks import rank

COMMANDS = (
    generate.generate,
    bench.bench,
    doctor.doctor,
    collect.collect,
    inspect.inspect,
    demo.demo,
    card.card,
    push.push,
    serve.serve,
)
INTERRUPTED = 130


class OneLineErrors(TyperGroup):
    """Runs a command; errors that a user can mend are printed as `error: ...`, without a traceback."""

    def invoke(self, ctx: Any) -> Any:
        """Exit codes: 2 bad input, 1 what else failed, 130 interrupted."""
        try:
            return super().invoke(ctx)
        except PolydraftError as error:
            fail(str(error), error.exit_code)
        except KeyboardInterrupt:
            fail("interrupted", INTERRUPTED)
        except OSError as error:
            if error.errno == errno.EPIPE:
                raise
            where = f"{error.filename}: " if error.filename else ""
            fail(f"{where}{error.strerror or error}", 1)


def fail(message: str, code: int) -> None:
    """Print `message` as one line on stderr and leave with `code`; of many processes the first one speaks."""
    if rank() == 0:
        print(f"error: {' '.join(message.split())}", file=sys.stderr)
    raise typer.Exit(code)


app = typer.Typer(
    cls=OneLineErrors,
    name="polydraft",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def show_version(asked: bool) -> None:
    """Print the version and leave."""
    if asked:
        import polydraft

        print(f"polydraft {polydraft.__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[  # noqa: ARG001 (its callback does the work)
        bool,
        typer.Option("--version", callback=show_version, is_eager=True, help="Print the version and leave."),
    ] = False,
) -> None:
    """Language models generate faster, by draft heads with an exact joint distribution.

    Names: `smollm2-135m-instruct` is the embedded model, and its head, which need no hub.
    """
    os.environ.setdefault("TQDM_DISABLE", "1")


for command in COMMANDS:
    app.command()(command)
app.command(cls=train.ManyPaths)(train.train)
app.command(cls=train.ManyPaths)(components.components)
app.command(cls=train.ManyPaths)(prune.prune)


def main() -> None:
    """Entry point of `polydraft`."""
    app(prog_name="polydraft")

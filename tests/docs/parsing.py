"""Commands as the real command line reads them, without running any."""

from __future__ import annotations

from typing import Any

import typer

import lab.cli
import polydraft.cli

COMMANDS: Any = typer.main.get_command(polydraft.cli.app)
LAB: Any = typer.main.get_command(lab.cli.app)
ELLIPSIS = "..."
"""Stands in a command for what the reader fills in."""


def parse(words: list[str]) -> Any:
    """The context in which the words after `polydraft` would run: command, options and values are real.

    Raises:
        Exception: the command line's own, of class `UsageError`: an unknown command or option, a value of
            another type, words left over; something that is needed is not there, unless an ellipsis is.
    """
    rest, context = [word for word in words if word != ELLIPSIS], None
    command, name = COMMANDS, "polydraft"
    if rest[0] == "lab":
        command, name, rest = LAB, "lab", rest[1:]
    while hasattr(command, "commands") and rest:
        context = typer.Context(command, info_name=name, parent=context)
        name, command, rest = command.resolve_command(context, rest)
    try:
        return command.make_context(name, rest, parent=context)
    except Exception as error:
        if type(error).__name__ == "MissingParameter" and ELLIPSIS in words:
            return None
        raise


def option_names() -> set[str]:
    """Every `--option` of every command."""
    found, commands = {"--help"}, [COMMANDS, LAB]
    while commands:
        command = commands.pop()
        commands += getattr(command, "commands", {}).values()
        found |= {name for p in command.params for name in (*p.opts, *p.secondary_opts)}
    return {name for name in found if name.startswith("--")}

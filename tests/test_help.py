"""Every word of a help text is shown: none is taken for markup, and none is cut at 80 columns."""

from __future__ import annotations

import io
import re
from typing import Any

import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

import lab.cli
import polydraft.cli
from polydraft.cli.bench_tables import figures_table

COMMANDS = [
    (app, name)
    for app in (polydraft.cli.app, lab.cli.app)
    for name in typer.main.get_command(app).commands  # type: ignore[attr-defined]
]


def plain(text: str) -> str:
    """Without frames, line breaks and the ticks of code."""
    return " ".join(re.sub(r"[│╭╮╰╯─`]", " ", text).split())


@pytest.mark.parametrize(("app", "name"), COMMANDS, ids=[name for _, name in COMMANDS])
def test_help_is_shown_whole(app: Any, name: str) -> None:
    command = typer.main.get_command(app).commands[name]  # type: ignore[attr-defined]
    result = CliRunner(env={"COLUMNS": "80", "TERMINAL_WIDTH": "80"}).invoke(app, [name, "--help"])
    assert result.exit_code == 0, result.output
    shown = plain(result.output)
    for parameter in command.params:
        for word in plain(parameter.help or "").split():
            assert word in shown, f"{parameter.name}: {word!r}"


def test_names_of_kinds_are_shown_whole_at_80_columns() -> None:
    group = {
        "prompts": 12,
        "plain_tokens_per_second": 123.4,
        "drafted_tokens_per_second": 234.5,
        "ratio": 1.9,
        "ratio_per_prompt": {"min": 1.0, "q1": 1.5, "median": 1.9, "q3": 2.0, "max": 2.5},
        "cpu": None,
        "cpu_ratio": None,
        "cpu_ratio_per_prompt": None,
        "mean_acceptance_length": 2.1,
        "drafting_share": 0.2,
        "identical": True,
        "identical_count": 12,
    }
    kind = "[translation]from-english-to-french-and-back"
    content = {"model": "m", "dtype": "float32", "temperature": 0, "drafting": "auto", "max_new_tokens": 8}
    content |= {
        "seed": None,
        "verification": "token",
        "compiled": False,
        "kinds": {kind: group},
        "all": group,
    }
    file = io.StringIO()
    Console(file=file, width=80).print(figures_table(content))
    column = [line[1:].split("  ")[0].strip() for line in file.getvalue().splitlines()]
    assert kind in "".join(column)
    assert "…" not in file.getvalue()

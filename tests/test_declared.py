"""Commands made from a dataclass take each of its fields, and hand its values on."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Annotated, Any

import pytest
import typer
from typer.testing import CliRunner

from polydraft.cli.declared import with_options
from polydraft.options import option, option_of
from polydraft.training.options import TrainOptions


@dataclass(frozen=True, kw_only=True)
class Choices:
    """Every form of a field."""

    name: str = option("a", "Its name.")
    size_of_it: int = option(3, "How large.", otherwise=lambda given: len(given["name"]))
    rate: float = option(0.5, "How fast.")
    weight: float | None = option(None, "How heavy.", shown="of the name")
    loud: bool = option(False, "Whether to shout.")
    layers: tuple[int, ...] = option((), "Which; several.", flag="--layer", metavar="K")


def run(*words: str) -> tuple[int, str, list[Any]]:
    """Exit code, output, and what the function was called with."""
    called: list[Any] = []
    app = typer.Typer()

    @app.command()
    @with_options(Choices, parameter="chosen")
    def play(
        *,
        first: Annotated[str, typer.Option(help="Before.")] = "x",
        chosen: Choices,
        last: Annotated[bool, typer.Option("--last", help="After.")] = False,
    ) -> None:
        """Play."""
        called.append((first, chosen, last))

    result = CliRunner(env={"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"}).invoke(app, list(words))
    return result.exit_code, result.output, called


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], ("x", Choices(size_of_it=1), False)),
        (["--name", "abc"], ("x", Choices(name="abc", size_of_it=3), False)),
        (["--size-of-it", "7", "--last"], ("x", Choices(size_of_it=7), True)),
        (["--layer", "2", "--layer", "1"], ("x", Choices(size_of_it=1, layers=(2, 1)), False)),
        (["--loud"], ("x", Choices(size_of_it=1, loud=True), False)),
        (["--rate", "2", "--weight", ".1"], ("x", Choices(size_of_it=1, rate=2.0, weight=0.1), False)),
    ],
)
def test_values_arrive(words: list[str], expected: tuple[str, Choices, bool]) -> None:
    assert run(*words) == (0, "", [expected])


def test_help_says_what_the_fields_say() -> None:
    code, shown, called = run("--help")
    assert code == 0 and not called
    flat = " ".join(shown.split())
    for part in (
        "--first",
        "--name",
        "Its name. [default: a]",
        "--layer K",
        "[default: (of the name)]",
        "After.",
    ):
        assert part in flat
    assert "--no-loud" not in flat
    places = [flat.index(flag) for flag in ("--first", "--name", "--size-of-it", "--layer", "--last")]
    assert places == sorted(places)


@pytest.mark.parametrize(
    "words", [["--size-of-it", "x"], ["--loud", "1"], ["--layers", "1"], ["--chosen", "1"]]
)
def test_what_is_no_value_is_refused(words: list[str]) -> None:
    code, _, called = run(*words)
    assert code == 2 and not called


def test_every_option_of_training_says_what_it_is() -> None:
    assert all(option_of(one).help.endswith(".") for one in fields(TrainOptions))

"""`polydraft card`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from polydraft.cli.completion import complete_name


def card(
    head: Annotated[
        Path, typer.Argument(metavar="DIR", help="Folder of the head.", autocompletion=complete_name)
    ],
    *,
    bench: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE", help="Figures of `polydraft bench --json`; may be repeated.", show_default=False
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(help="What users will give as --head, such as its hub id.", show_default=False),
    ] = None,
    base_model: Annotated[
        str | None,
        typer.Option(
            metavar="OWNER/NAME",
            help="Hub id of the base model; by default as recorded, where it came from a hub.",
            show_default=False,
        ),
    ] = None,
    license_id: Annotated[
        str | None,
        typer.Option("--license", metavar="ID", help="Licence, such as apache-2.0.", show_default=False),
    ] = None,
) -> None:
    """Write the card of a head, README.md in its folder, from its training record and benchmarks."""
    from polydraft.hub.card import write_card

    print(write_card(head, name=name, base_model=base_model, license_id=license_id, bench=bench or ()))

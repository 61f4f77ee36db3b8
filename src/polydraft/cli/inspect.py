"""`polydraft inspect`."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from polydraft.cli.completion import complete_name

WEIGHTS = ("config.json", "model.safetensors")


def inspect(
    head: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            autocompletion=complete_name,
            help="Head: folder, hub id (owner/name, owner/name@revision), or smollm2-135m-instruct.",
        ),
    ],
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show what a head is: shape, size, the base model it belongs to, how it was trained."""
    from polydraft.bench.describe import describe_head
    from polydraft.sources import head_folder

    found = describe_head(str(head_folder(head, only=WEIGHTS)))
    if as_json:
        print(json.dumps(found, indent=1, ensure_ascii=False))
        return
    table = Table(title=f"head {head}", show_header=False)
    table.add_column("field", style="bold", no_wrap=True)
    table.add_column("value", overflow="fold")
    for name, value in flatten(found):
        table.add_row(name, value)
    Console().print(table)


def flatten(value: Any, prefix: str = "") -> list[tuple[str, str]]:
    """Nested objects as rows of dotted names and texts."""
    if isinstance(value, dict) and value:
        return [
            row
            for key, part in value.items()
            for row in flatten(part, f"{prefix}.{key}" if prefix else str(key))
        ]
    if isinstance(value, int) and not isinstance(value, bool):
        return [(prefix, f"{value:,}")]
    return [(prefix, "-" if value is None else value if isinstance(value, str) else json.dumps(value))]

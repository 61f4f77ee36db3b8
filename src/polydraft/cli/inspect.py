"""`polydraft inspect`."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table


def inspect(
    head: Annotated[str, typer.Argument(metavar="DIR", help="Folder of a head, or smollm2-135m-instruct.")],
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show what a head is: shape, size, the base model it belongs to, how it was trained."""
    from polydraft.evaluation.describe import describe_head

    found = describe_head(head)
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

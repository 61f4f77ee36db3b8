"""Options that are declared once, as fields of a dataclass; commands are made from them (`cli.declared`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, field
from typing import Any

DECLARED = "polydraft.option"
"""Key of an `Option` in a field's metadata."""


@dataclass(frozen=True, kw_only=True)
class Option:
    """How a command takes a field.

    Attributes:
        help: one line. flag: its name where that is not the field's. metavar: what its value is called.
        shown: the default in words, where that says more than the value.
        otherwise: the value where none is given, from the values of the fields before; the field's own
            default if None.
    """

    help: str
    flag: str | None = None
    metavar: str | None = None
    shown: str | None = None
    otherwise: Callable[[Mapping[str, Any]], Any] | None = None


def option(default: Any, help: str, **more: Any) -> Any:  # noqa: A002
    """A dataclass field with that default, and an `Option` with `more`."""
    return field(default=default, metadata={DECLARED: Option(help=help, **more)})


def option_of(declared: Field[Any]) -> Option:
    """What a field made by `option` says."""
    found = declared.metadata[DECLARED]
    assert isinstance(found, Option)
    return found

"""`python -m lab page`: a document brought up to date with its results, or checked."""

from __future__ import annotations

from pathlib import Path

from lab.page.update import check, update


def write_page(document: Path) -> list[str]:
    """Bring `document` up to date; returns a line that says what was done.

    Raises:
        InputError: a marker, source or picture is wrong.
    """
    found = update(document)
    return [f"{document}: {found.parts} parts from results, {len(found.stale)} of them rewritten"]


def check_page(document: Path) -> list[str]:
    """Make sure that `write_page` would change nothing.

    Raises:
        InputError: as `write_page`. PolydraftError: a part is not up to date.
    """
    check(document)
    return [f"{document}: up to date"]

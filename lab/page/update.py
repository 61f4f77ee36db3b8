"""A markdown document brought up to date with its results, or told that it is not."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lab.page.markers import Marker, find_markers, replace_parts
from lab.page.sources import Sources
from polydraft.errors import InputError, PolydraftError
from polydraft.files import write_atomic


@dataclass(frozen=True)
class Update:
    """What a document's parts should be.

    Attributes:
        text: the document, up to date. parts: how many are written from results. stale: those that differed.
    """

    text: str
    parts: int
    stale: list[Marker]


def updated(document: Path) -> Update:
    """`document` with every part as its results have it; nothing is written.

    Raises:
        InputError: the document cannot be read, or a marker or its source is wrong; names the line.
    """
    text = read_markdown(document)
    sources = Sources(document)
    parts = [(marker, sources.part(marker)) for marker in find_markers(text, where=str(document))]
    stale = [marker for marker, part in parts if replace_parts(text, [(marker, part)]) != text]
    return Update(text=replace_parts(text, parts) if stale else text, parts=len(parts), stale=stale)


def update(document: Path) -> Update:
    """Rewrite `document` where its results say otherwise; hand-written words stay as they are.

    Raises:
        InputError: as `updated`.
    """
    found = updated(document)
    if found.stale:
        write_atomic(document, found.text)
    return found


def check(document: Path) -> Update:
    """Make sure that `document` is what `update` would make it.

    Raises:
        InputError: as `updated`. PolydraftError: it is not up to date; names the first part that is not.
    """
    found = updated(document)
    if found.stale:
        first = found.stale[0]
        raise PolydraftError(
            f"{document}:{first.line}: {first.kind} {first.name!r} is not what {first.source} says: run "
            f"`python -m lab page {document}`"
        )
    return found


def read_markdown(path: Path) -> str:
    """The text of a document.

    Raises:
        InputError: it is missing, or no UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (FileNotFoundError, IsADirectoryError) as error:
        raise InputError(f"{path}: no such file") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not a text in UTF-8") from error

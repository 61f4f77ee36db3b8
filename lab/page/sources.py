"""Parts of a document as their JSON file has them.

    {"tables": {NAME: {"title": str, "headings": [str], "rows": [[str]], "note": str, "command": str}},
     "pictures": {NAME: {"file": "x.png", "alt": str}}}

`note` and `command` may be left out; other keys are not read. Cells, titles and notes are markdown.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any
from urllib.parse import quote

from lab.grid.tables import table
from lab.page.markers import Marker
from polydraft.errors import InputError

KINDS: dict[type, str] = {dict: "an object", list: "a list", str: "a text"}
BARE_PIPE = re.compile(r"(?<!\\)\|")


class Sources:
    """The JSON files that one document is written from, each read once."""

    def __init__(self, document: Path) -> None:
        self.document = document
        self.files: dict[str, dict[str, Any]] = {}

    def part(self, marker: Marker) -> str:
        """What has to stand at `marker`, as markdown.

        Raises:
            InputError: the file, or the part in it, is missing or malformed; names document and line.
        """
        what = marker.source
        try:
            group = require(self.content(marker.source).get(f"{marker.kind}s", {}), dict, f"`{marker.kind}s`")
            if marker.name not in group:
                names = ", ".join(group) or "none"
                raise InputError(f"no {marker.kind} {marker.name!r}; there is {names}")
            what += f": {marker.kind} {marker.name!r}"
            fields = require(group[marker.name], dict, "it")
            return self.picture(marker, fields) if marker.kind == "picture" else table_markdown(fields)
        except InputError as error:
            raise InputError(f"{self.document}:{marker.line}: {what}: {error}") from error

    def content(self, source: str) -> dict[str, Any]:
        """The object in a JSON file beside the document."""
        if source not in self.files:
            try:
                found = json.loads((self.document.parent / source).read_text(encoding="utf-8"))
            except (FileNotFoundError, IsADirectoryError) as error:
                raise InputError("no such file") from error
            except ValueError as error:
                raise InputError(f"no JSON: {error}") from error
            self.files[source] = require(found, dict, "the file")
        return self.files[source]

    def picture(self, marker: Marker, found: dict[str, Any]) -> str:
        """A markdown image, its path relative to the document."""
        alt = line_of(found.get("alt"), "`alt`").replace("\\", "\\\\").replace("[", "\\[").replace("]", "\\]")
        path = (self.document.parent / marker.source).parent / line_of(found.get("file"), "`file`")
        if not path.is_file():
            raise InputError(f"no such file: {path}")
        return f"![{alt}]({quote(Path(os.path.relpath(path, self.document.parent)).as_posix())})"


def table_markdown(found: dict[str, Any]) -> str:
    """Command, title, table and note, as far as they are there.

    Raises:
        InputError: a field is missing or of another form; names it.
    """
    title = line_of(found.get("title"), "`title`")
    headings = cells(found.get("headings"), "`headings`")
    if not headings:
        raise InputError("`headings` is empty")
    rows = []
    for number, row in enumerate(require(found.get("rows"), list, "`rows`"), start=1):
        rows.append(cells(row, f"row {number}"))
        if len(rows[-1]) != len(headings):
            raise InputError(f"row {number} has {len(rows[-1])} cells under {len(headings)} headings")
    parts = [f"**{title}**", table(headings, rows).rstrip("\n")]
    if "note" in found:
        parts.append(text_of(found["note"], "`note`").strip())
    if "command" in found:
        parts.insert(0, f"```\n{text_of(found['command'], '`command`').strip()}\n```")
    return "\n\n".join(parts)


def cells(found: object, what: str) -> list[str]:
    """A list of texts of one line each, fit for a markdown table."""
    row = require(found, list, what)
    words = [text_of(cell, f"{what}: cell {number}") for number, cell in enumerate(row, start=1)]
    if any("\n" in word for word in words):
        raise InputError(f"{what}: a cell has a line break")
    return [BARE_PIPE.sub(r"\\|", word) for word in words]


def line_of(found: object, what: str) -> str:
    """A text of one line that is not empty."""
    text = text_of(found, what).strip()
    if not text or "\n" in text:
        raise InputError(f"{what} must be one line of text")
    return text


def text_of(found: object, what: str) -> str:
    """A text without comments, so that no part can end or begin another."""
    text: str = require(found, str, what)
    if "<!--" in text:
        raise InputError(f"{what} holds a comment")
    return text


def require(found: object, kind: type, what: str) -> Any:
    """`found`, known to be of `kind`."""
    if found is None:
        raise InputError(f"{what} is missing")
    if not isinstance(found, kind):
        raise InputError(f"{what} must be {KINDS[kind]}")
    return found

"""Markers: the parts of a markdown document that are written from results.

    <!-- from: results/scratch/results.json table: prose-rank -->
    ...
    <!-- end -->

What stands between the two lines belongs to the results, all else to the writer. A marker begins its line;
inside a code fence it is text like any other.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from polydraft.errors import InputError

START = re.compile(r"<!--\s*from:\s*(\S+)\s+(table|picture):\s*(\S+)\s*-->")
END = re.compile(r"<!--\s*end\s*-->")
MEANT = re.compile(r"\s*<!--\s*(from\b|end\s*-->)")
FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")
UNCLOSED = "this marker has no end: write `<!-- end -->` on a line below its part"
UNREADABLE = (
    "cannot read this marker: write `<!-- from: FILE.json table: NAME -->` (or picture: NAME) at the start "
    "of a line, and `<!-- end -->` on a line below its part"
)


@dataclass(frozen=True)
class Marker:
    """One part that is written from results.

    Attributes:
        line: of the opening comment, from 1. end: line of the closing one.
        source: JSON file, relative to the document. kind: "table" or "picture". name: of the part in it.
    """

    line: int
    end: int
    source: str
    kind: str
    name: str


def find_markers(text: str, *, where: str) -> list[Marker]:
    """All of them, in order; `where` names the document in errors.

    Raises:
        InputError: a marker that cannot be read, has no end, or an end without a marker; names the line.
    """
    found: list[Marker] = []
    opened: tuple[int, re.Match[str]] | None = None
    fence = ""
    for number, line in enumerate(text.split("\n"), start=1):
        fence, outside = next_fence(fence, line)
        if not outside or not MEANT.match(line):
            continue
        start, end = START.fullmatch(line.rstrip()), END.fullmatch(line.rstrip())
        if opened is None and end:
            raise InputError(f"{where}:{number}: this end belongs to no marker: remove it")
        if opened is None and start:
            opened = number, start
        elif opened is not None and end:
            source, kind, name = opened[1].groups()
            found.append(Marker(line=opened[0], end=number, source=source, kind=kind, name=name))
            opened = None
        elif opened is not None and start:
            raise InputError(f"{where}:{opened[0]}: {UNCLOSED} (before line {number})")
        else:
            raise InputError(f"{where}:{number}: {UNREADABLE}")
    if opened is not None:
        raise InputError(f"{where}:{opened[0]}: {UNCLOSED}")
    return found


def next_fence(fence: str, line: str) -> tuple[str, bool]:
    """The code fence that is open after `line` ("": none), and whether the line lies outside of any."""
    match = FENCE.match(line)
    if not fence:
        return (match[1], False) if match else ("", True)
    closes = match is not None and match[1].startswith(fence) and not line.strip().strip(fence[0])
    return ("" if closes else fence), False


def replace_parts(text: str, parts: list[tuple[Marker, str]]) -> str:
    """`text` with every marker's part replaced; blank lines set it off from its comments."""
    lines = text.split("\n")
    for marker, part in reversed(parts):
        lines[marker.line : marker.end - 1] = ["", *part.split("\n"), ""]
    return "\n".join(lines)

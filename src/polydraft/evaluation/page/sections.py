"""A page's documents as one tree of sections, with an id for every heading."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from markdown_it.token import Token

from polydraft.evaluation.page.documents import Document

DEEPEST = 6


@dataclass
class Section:
    """A heading and what stands below it.

    Attributes:
        document: where it comes from. level: of the heading, 1 to 6, never more than one below its parent's.
        anchor: its id on the page. heading: its text; `whole`, whether it is its document's title.
        tokens: its own blocks. parts: sections in it.
    """

    document: Document
    level: int
    anchor: str
    heading: Token
    whole: bool
    tokens: list[Token] = field(default_factory=list)
    parts: list[Section] = field(default_factory=list)


Anchors = dict[tuple[Path, str], str]
"""The id of (document, fragment of a link to it); the empty fragment is the document itself."""


def outline(documents: list[Document], *, taken: frozenset[str]) -> tuple[list[Section], Anchors]:
    """The root section of every document, and where links to their headings lead.

    The first document's title is the page's, the others' are one level below it. `taken`: the template's ids.
    """
    anchors: Anchors = {}
    used = set(taken)
    roots: list[Section] = []
    for number, document in enumerate(documents):
        stack: list[Section] = []
        seen: dict[str, int] = {}
        tokens = iter(document.tokens)
        for token in tokens:
            if token.type != "heading_open" or token.level:
                stack[-1].tokens.append(token)
                continue
            heading = next(tokens)
            next(tokens)
            slug = numbered(slug_of(heading), seen)
            wanted = f"{slug_of_path(document.name)}--{slug}" if number else slug
            anchor = anchors[document.path, slug] = unused(wanted, used)
            anchors.setdefault((document.path, ""), anchor)
            level = level_of(token, stack, linked=number > 0)
            section = Section(document, level, anchor, heading, whole=not stack)
            while stack and stack[-1].level >= section.level:
                stack.pop()
            (stack[-1].parts if stack else roots).append(section)
            stack.append(section)
    return roots, anchors


def level_of(token: Token, stack: list[Section], *, linked: bool) -> int:
    """The level of a heading on the page: a document has one title, and no level is left out."""
    wanted = int(token.tag[1]) + linked
    if not stack:
        return wanted
    return min(max(wanted, 2 + linked), stack[-1].level + 1, DEEPEST)


def slug_of(heading: Token) -> str:
    """The fragment by which markdown links to a heading."""
    words = "".join(t.content for t in heading.children or [] if t.type in ("text", "code_inline"))
    return re.sub(r"[^\w\- ]", "", words.lower()).replace(" ", "-") or "section"


def slug_of_path(name: str) -> str:
    """An id for a document."""
    return re.sub(r"\W+", "-", name.removesuffix(".md").lower()).strip("-")


def numbered(slug: str, seen: dict[str, int]) -> str:
    """`slug`, `slug-1`, `slug-2`, ...: the fragments of headings of equal names."""
    count = seen.get(slug, 0)
    seen[slug] = count + 1
    return f"{slug}-{count}" if count else slug


def unused(wanted: str, used: set[str]) -> str:
    """`wanted`, with a number where another heading has that id; noted as used."""
    found, count = wanted, 1
    while found in used:
        count += 1
        found = f"{wanted}-{count}"
    used.add(found)
    return found

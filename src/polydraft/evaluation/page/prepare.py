"""Blocks of markdown made ready for the page: links, pictures, tables and code as its style wants them."""

from __future__ import annotations

import re
from collections.abc import Sequence

from markdown_it.token import Token

from polydraft.errors import InputError
from polydraft.evaluation.page.documents import Document
from polydraft.evaluation.page.links import Places, read_picture
from polydraft.evaluation.page.sections import Section

NUMBER = re.compile(r"[-+~<>\u2212\u2264\u2265]? ?\d")
NUMERIC_SHARE = 2 / 3
LONGEST_NUMBER = 40
"""Characters of a cell that still reads as a number with its interval."""


def prepare(section: Section, places: Places) -> list[Token]:
    """The section's own blocks. Tokens of the document are changed in place: call it once.

    Raises:
        InputError: HTML, a picture without description, or what `Places` and `read_picture` refuse.
    """
    line = 1
    for token in (section.heading, *section.tokens):
        line = token.map[0] + 1 if token.map else line
        refuse_html(token, section.document, line)
        for child in token.children or []:
            prepare_inline(child, section.document, places, line)
    return with_tables(with_figures(section.tokens), label=section.anchor)


def refuse_html(token: Token, document: Document, line: int) -> None:
    """A page is as valid as what it holds, so markdown alone."""
    if token.type in ("html_block", "html_inline"):
        words = token.content.strip().splitlines()[0]
        raise InputError(f"{document.path}:{line}: a page takes markdown, no HTML: {words}")


def prepare_inline(token: Token, document: Document, places: Places, line: int) -> None:
    """Links lead from the page; pictures lie in it."""
    refuse_html(token, document, line)
    if token.type == "link_open":
        token.attrSet("href", places.href(document, str(token.attrs["href"]), line))
    elif token.type == "image":
        source = str(token.attrs["src"])
        if not token.content.strip():
            raise InputError(f"{document.path}:{line}: the picture {source} has no description: ![...]")
        found = read_picture(document, source, line)
        token.attrs |= {"src": found.uri, "width": found.width, "height": found.height}


def with_figures(tokens: Sequence[Token]) -> list[Token]:
    """Paragraphs that hold pictures alone become figures, a picture's title its caption."""
    out: list[Token] = []
    rest = iter(tokens)
    for token in rest:
        if token.type != "paragraph_open":
            out.append(token)
            continue
        inline, close = next(rest), next(rest)
        children = inline.children or []
        images = [child for child in children if child.type == "image"]
        if images and all(child.type in ("image", "softbreak") for child in children):
            out += [part for image in images for part in figure(image)]
        else:
            out += [token, inline, close]
    return out


def figure(image: Token) -> list[Token]:
    """One picture with its caption."""
    title = str(image.attrs.pop("title", ""))
    caption = element("figcaption", [inline([Token("text", "", 0, content=title)])]) if title else []
    return element("figure", [inline([image]), *caption])


def with_tables(tokens: Sequence[Token], *, label: str) -> list[Token]:
    """Tables in boxes that scroll, named after the heading `label`; columns of numbers marked `number`."""
    out: list[Token] = []
    start = 0
    for place, token in enumerate(tokens):
        if token.type == "fence" or token.type == "code_block":
            token.info = token.info if token.type == "fence" else "text"
            token.type = "fence"
        if token.type == "table_open":
            start = place
        elif token.type == "table_close":
            whole = list(tokens[start : place + 1])
            mark_numbers(whole)
            attrs: dict[str, str | int | float] = {
                "class": "scroll",
                "role": "region",
                "tabindex": "0",
                "aria-labelledby": label,
            }
            out[len(out) - (place - start) :] = element("div", whole, attrs)
            continue
        out.append(token)
    return out


def mark_numbers(tokens: Sequence[Token]) -> None:
    """Give the cells of a column the class `number` where most of what it holds reads as one."""
    columns: dict[int, list[tuple[Token, str]]] = {}
    column = 0
    for token, text in zip(tokens, [*tokens[1:], tokens[-1]], strict=True):
        if token.type == "tr_open":
            column = 0
        elif token.type in ("th_open", "td_open"):
            token.attrs.pop("style", None)
            if token.tag == "th":
                token.attrSet("scope", "col")
            words = "".join(part.content for part in text.children or [])
            columns.setdefault(column, []).append((token, words))
            column += 1
    for cells in columns.values():
        told = [word for token, word in cells if token.tag == "td" and word not in ("", "-")]
        numbers = [word for word in told if NUMBER.match(word) and len(word) <= LONGEST_NUMBER]
        if told and len(numbers) >= NUMERIC_SHARE * len(told):
            for token, _ in cells:
                token.attrSet("class", "number")


def element(tag: str, tokens: list[Token], attrs: dict[str, str | int | float] | None = None) -> list[Token]:
    """`tokens` inside an element."""
    opened = Token(f"{tag}_open", tag, 1, attrs=attrs or {}, block=True)
    return [opened, *tokens, Token(f"{tag}_close", tag, -1, block=True)]


def inline(children: list[Token]) -> Token:
    """A line of text and pictures."""
    return Token("inline", "", 0, children=children, content="")

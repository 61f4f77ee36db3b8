"""The page: sections, table of contents, and the style and script that come with the package, in one file."""

from __future__ import annotations

import re
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template

from polydraft.evaluation.page.documents import parser, read_documents
from polydraft.evaluation.page.links import Places
from polydraft.evaluation.page.render import PageRenderer, contents, plain, render
from polydraft.evaluation.page.sections import outline

IDS = re.compile(r'\bid="([^"$]+)"')


def build(document: Path, *, text: str, out: Path) -> str:
    """`text`, the markdown at `document`, and the files it links to, as one HTML file to lie at `out`.

    Raises:
        InputError: a document, link or picture is wrong; names file and line.
    """
    template = data("page.html")
    roots, anchors = outline(read_documents(document, text=text), taken=frozenset(IDS.findall(template)))
    places = Places(anchors, out.parent)
    renderer = PageRenderer(parser().options)
    body = "".join(render(section, places, renderer) for section in roots)
    return Template(template).substitute(
        title=escape(plain(roots[0].heading)),
        source=escape(document.name),
        style=data("page.css"),
        script=data("page.js"),
        contents=contents(roots, renderer),
        body=body,
    )


def data(name: str) -> str:
    """A file that comes with this package."""
    return files(__package__).joinpath(name).read_text(encoding="utf-8")

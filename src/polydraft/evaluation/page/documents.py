"""The documents of a page: one markdown file, and those it links to in its folder or below."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from markdown_it import MarkdownIt
from markdown_it.token import Token

from polydraft.errors import InputError
from polydraft.evaluation.page.update import read_markdown


@dataclass(frozen=True)
class Document:
    """A parsed markdown file.

    Attributes:
        path: normalised. name: relative to the folder of the page's first document. tokens: its blocks.
    """

    path: Path
    name: str
    tokens: list[Token]


def parser() -> MarkdownIt:
    """CommonMark and tables; HTML, not XHTML."""
    return MarkdownIt("commonmark", {"xhtmlOut": False}).enable("table")


def read_documents(path: Path, *, text: str) -> list[Document]:
    """The document at `path`, whose text is `text`, then the markdown it links to in or below its folder.

    Links of those files lead to no further ones, so a page holds what its first document names.

    Raises:
        InputError: a document cannot be read, or has no title.
    """
    path = Path(os.path.normpath(path))
    first = document(path, path.name, text)
    found = {path: first}
    for target in (local_path(first, href) for href in links(first)):
        if target is None or target in found or target.suffix != ".md" or not target.is_file():
            continue
        name = Path(os.path.relpath(target, path.parent)).as_posix()
        if not name.startswith("../"):
            found[target] = document(target, name, read_markdown(target))
    return list(found.values())


def document(path: Path, name: str, text: str) -> Document:
    """`text` parsed; it begins with a title, or is refused."""
    tokens = [token for token in parser().parse(text) if not is_comment(token)]
    if not tokens or tokens[0].tag != "h1":
        raise InputError(f"{path}: a document of a page begins with its title: `# ...`")
    return Document(path=path, name=name, tokens=tokens)


def is_comment(token: Token) -> bool:
    """Whether a block is an HTML comment and nothing else."""
    text = token.content.strip()
    return token.type == "html_block" and text.startswith("<!--") and text.endswith("-->")


def links(document: Document) -> list[str]:
    """Where its links lead, in order."""
    inline = [
        child for token in document.tokens for child in token.children or [] if child.type == "link_open"
    ]
    return [str(token.attrs["href"]) for token in inline]


def local_path(document: Document, href: str) -> Path | None:
    """The file that a link of `document` names; None for an address, or a heading of the same document."""
    parts = urlsplit(href)
    if parts.scheme or parts.netloc or not parts.path:
        return None
    return Path(os.path.normpath(document.path.parent / unquote(parts.path)))

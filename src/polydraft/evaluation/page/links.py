"""Where links lead from a page, and pictures inside it."""

from __future__ import annotations

import base64
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from polydraft.errors import InputError
from polydraft.evaluation.page.documents import Document, local_path
from polydraft.evaluation.page.sections import Anchors

SIGNATURE = b"\x89PNG\r\n\x1a\n"
SCHEMES = ("http", "https", "mailto")


@dataclass(frozen=True)
class Places:
    """What links need: ids of headings, and the folder of the page."""

    anchors: Anchors
    folder: Path

    def href(self, document: Document, href: str, line: int) -> str:
        """A link of `document` as the page has it.

        A heading on the page becomes its id, an address stays, another file becomes its path from the page.

        Raises:
            InputError: it leads nowhere; names document and line.
        """
        parts = urlsplit(href)
        if parts.scheme in SCHEMES:
            return href
        target = document.path if not parts.path else local_path(document, href)
        if target is None:
            raise InputError(
                f"{document.path}:{line}: cannot keep the link {href}: neither a file nor a web page"
            )
        if (target, "") in self.anchors:
            anchor = self.anchors.get((target, unquote(parts.fragment).lower()))
            if anchor is None:
                raise InputError(f"{document.path}:{line}: no heading #{parts.fragment} in {target}")
            return f"#{anchor}"
        if not target.exists():
            raise InputError(f"{document.path}:{line}: the link {href} leads to no file")
        fragment = f"#{parts.fragment}" if parts.fragment else ""
        return quote(Path(os.path.relpath(target, self.folder)).as_posix()) + fragment


@dataclass(frozen=True)
class Picture:
    """A PNG as a data URI, with its size in pixels."""

    uri: str
    width: int
    height: int


def read_picture(document: Document, source: str, line: int) -> Picture:
    """The picture that `document` shows.

    Raises:
        InputError: it is no PNG file beside the document; names document and line.
    """
    path = local_path(document, source)
    where = f"{document.path}:{line}"
    if path is None:
        raise InputError(f"{where}: a page holds its pictures itself: keep {source} as a file")
    try:
        data = path.read_bytes()
    except (FileNotFoundError, IsADirectoryError) as error:
        raise InputError(f"{where}: no picture {source}") from error
    if not data.startswith(SIGNATURE) or data[12:16] != b"IHDR" or len(data) < 24:
        raise InputError(f"{where}: {source} is no PNG")
    width, height = struct.unpack(">II", data[16:24])
    return Picture(f"data:image/png;base64,{base64.b64encode(data).decode()}", width, height)

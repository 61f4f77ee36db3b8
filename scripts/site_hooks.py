"""Hooks of mkdocs (`make docs`): links out of docs/ become plain text, since the site holds docs/ alone.

`tests/docs/test_links.py` checks that what they point at exists in the repository.
"""

from __future__ import annotations

import posixpath
import re
from typing import Any

LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)#\s]+)(#[^)\s]*)?\)")


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Keep the words of such links alone."""
    folder = posixpath.dirname(page.file.src_uri)

    def kept(link: re.Match[str]) -> str:
        target = link[2]
        outside = posixpath.normpath(posixpath.join(folder, target)).startswith("..")
        return link[1] if "://" not in target and outside else link[0]

    return LINK.sub(kept, markdown)

"""Links and pictures of the pages lead to files of the repository, and to headings in them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.docs.pages import FENCE, ROOT

LINK = re.compile(r"\]\(([^)\s]+)\)")
PAGES = sorted(
    p.relative_to(ROOT).as_posix()
    for p in [
        ROOT / "README.md",
        *(p for d in ("docs", "examples", "heads", "prompts", "lab") for p in (ROOT / d).rglob("*.md")),
    ]
)


def prose(path: Path) -> str:
    """Its text without code."""
    return re.sub(r"`[^`\n]*`", "", FENCE.sub("", path.read_text()))


def anchors(path: Path) -> set[str]:
    """Of its headings, as GitHub makes them: lower case, spaces to hyphens, letters and digits only."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", path.read_text()), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_links_resolve(page: str) -> None:
    path = ROOT / page
    wrong = []
    for link in LINK.findall(prose(path)):
        if "://" in link:
            continue
        target, _, anchor = link.partition("#")
        file = (path.parent / target).resolve() if target else path
        there = file.exists() and file.is_relative_to(ROOT)
        if not there or (anchor and file.suffix == ".md" and anchor not in anchors(file)):
            wrong.append(link)
    assert wrong == []


def test_anchors_are_githubs(tmp_path: Path) -> None:
    page = tmp_path / "a.md"
    page.write_text("# A: `b` and C\n```\n# not one\n```\n## 2026-11-23: do trees pay?\n")
    assert anchors(page) == {"a-b-and-c", "2026-11-23-do-trees-pay"}


def test_every_page_is_in_the_index() -> None:
    linked = {
        (ROOT / "docs" / link.partition("#")[0]).resolve()
        for link in LINK.findall((ROOT / "docs/README.md").read_text())
    }
    pages = {
        ROOT / page for page in PAGES if page.startswith("docs/") and not page.startswith("docs/results/")
    }
    assert pages - linked == {ROOT / "docs/README.md"}

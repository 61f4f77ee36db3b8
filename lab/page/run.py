"""`python -m lab page`: the document first, then the page made of it."""

from __future__ import annotations

from pathlib import Path

from lab.page.build import build

from lab.page.update import check, update
from polydraft.bench.report import check_writable
from polydraft.errors import PolydraftError
from polydraft.files import write_atomic


def write_page(document: Path, html: Path | None) -> list[str]:
    """Bring `document` up to date, then write the page at `html`; says what was done.

    Raises:
        InputError: a marker, source, link or picture is wrong, or `html` cannot be written.
    """
    if html is not None:
        check_writable(html)
    found = update(document)
    lines = [f"{document}: parts from results: {found.parts}, written anew: {len(found.stale)}"]
    if html is not None:
        content = build(document, text=found.text, out=html)
        write_atomic(html, content)
        lines.append(f"{html}: {len(content.encode()) / 1e6:.1f} MB")
    return lines


def check_page(document: Path, html: Path | None) -> list[str]:
    """Make sure that `write_page` would change nothing.

    Raises:
        InputError: as `write_page`. PolydraftError: something is not up to date.
    """
    found = check(document)
    if html is not None and (
        not html.is_file() or html.read_text(encoding="utf-8") != build(document, text=found.text, out=html)
    ):
        raise PolydraftError(
            f"{html} is not what {document} makes: run `python -m lab page {document} --html {html}`"
        )
    return [f"{document}: up to date"]

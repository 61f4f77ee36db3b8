"""`python -m lab page`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def page(
    document: Annotated[Path, typer.Argument(help="Markdown file with markers.", metavar="FILE.md")],
    *,
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing; fail where something is not up to date.")
    ] = False,
) -> None:
    """Write tables and pictures of results into a document.

    In the document, `<!-- from: FILE.json table: NAME -->` (or `picture: NAME`) and `<!-- end -->`, each on a
    line of its own, enclose what is written from the file beside it. All other words stay as they are.
    """
    from lab.page.run import check_page, write_page

    for line in (check_page if check else write_page)(document):
        print(line)

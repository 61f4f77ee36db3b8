"""`polydraft push`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from polydraft.cli.completion import complete_name
from polydraft.sources import MAIN


def push(
    head: Annotated[
        Path, typer.Argument(metavar="DIR", help="Folder of the head.", autocompletion=complete_name)
    ],
    repo: Annotated[
        str, typer.Argument(metavar="OWNER/NAME", help="Repository on the hub; made if missing.")
    ],
    *,
    private: Annotated[
        bool, typer.Option("--private", help="Make it private; one that exists stays as it is.")
    ] = False,
    revision: Annotated[
        str, typer.Option(metavar="BRANCH", help="Branch to push to; made if missing.")
    ] = MAIN,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be pushed, and leave.")] = False,
) -> None:
    """Put a head's folder on the hub: weights, configuration, card, training record, adapter.

    Where the folder has no card, one is written first (`polydraft card`). It then loads as --head OWNER/NAME.
    The token is that of `hf auth login`, or HF_TOKEN.
    """
    from polydraft.hub import CARD, push_head
    from polydraft.hub.push import check_repo, pushed_files

    check_repo(repo)
    if not dry_run:
        print(push_head(head, repo, private=private, revision=revision))
        return
    files = {
        path.relative_to(head).as_posix(): f"{path.stat().st_size:,} bytes" for path in pushed_files(head)
    }
    print(f"to {repo}, {revision}{', private if new' * private}:")
    for name, size in ({CARD: "to be written"} | files).items():
        print(f"  {name}  {size}")

"""`polydraft prune`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from polydraft.cli import options
from polydraft.cli.components import AnchorsPerWindow, Windows


def prune(
    *,
    head: options.HeadName,
    keep: Annotated[int, typer.Option(help="Components to keep, those of largest load.")],
    out: Annotated[Path, typer.Option(help="Folder to write the smaller head to.")],
    model: options.ModelName,
    data: Annotated[list[Path], typer.Option(help="Text to measure the load on, as in train; several.")],
    windows: Windows = 64,
    anchors_per_window: AnchorsPerWindow = 64,
    dtype: options.DtypeName = "auto",
    threads: options.Threads = None,
) -> None:
    """Write a smaller head: the components that carry the most weight on a text, not trained again.

    `polydraft components` shows what each carries. The new head is stored in --dtype.
    """
    from polydraft.loading import find_head
    from polydraft.training import prune as room
    from polydraft.training.data import check_paths
    from polydraft.training.gating import TextSample

    console = options.error_console()
    sample = TextSample(windows=windows, anchors_per_window=anchors_per_window)
    check_paths(data)
    room.check_out(out)
    room.check_keep(find_head(head)[2], keep)
    session = options.open_session(model=model, head=head, dtype=dtype, threads=threads, console=console)
    with console.status("measuring the load"):
        record = room.prune(
            session.head,
            session.model,
            session.tokenizer,
            data,
            out,
            keep=keep,
            sample=sample,
            command=options.command_line(),
        )
    names = ", ".join(map(str, record["kept"]))
    weight = sum(record["load"][component - 1] for component in record["kept"])
    console.print(f"kept {names} of {record['rank']} components, {weight:.1%} of the weight", markup=False)
    console.print(f"head in {out}", markup=False, soft_wrap=True)

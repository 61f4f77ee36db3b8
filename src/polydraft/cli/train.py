"""`polydraft train`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from polydraft import ranks
from polydraft.cli import options
from polydraft.cli.declared import with_options
from polydraft.training.options import TrainOptions


class ManyPaths(TyperCommand):
    """Lets `--data` take several paths, up to the next option: `--data a b` is `--data a --data b`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Repeat `--data` before each of its paths."""
        spread: list[str] = []
        inside = False
        for word in args:
            if word.startswith("-"):
                inside = False
            elif inside and spread[-1] != "--data":
                spread.append("--data")
            spread.append(word)
            inside = inside or word == "--data"
        return super().parse_args(ctx, spread)


@with_options(TrainOptions, parameter="chosen")
def train(
    *,
    model: options.ModelName,
    data: Annotated[
        list[Path] | None,
        typer.Option(
            help=".txt, .jsonl, folders of them or of source code, saved datasets; several.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder to write the head to.")],
    online: Annotated[
        bool, typer.Option("--online", help="No --data: the model writes text in turn with the training.")
    ] = False,
    prompts: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="With --online: JSON lines, as for collect.", show_default=False),
    ] = None,
    online_epochs: Annotated[
        int | None,
        typer.Option(help="With --online: how often a text is learnt from; 1.", show_default=False),
    ] = None,
    online_batch: Annotated[
        int | None, typer.Option(help="With --online: prompts continued at once; 96.", show_default=False)
    ] = None,
    temperature: Annotated[
        list[float] | None,
        typer.Option(help="With --online: one per prompt, in turn; repeatable. 0 and 1.", show_default=False),
    ] = None,
    max_new_tokens: Annotated[
        int | None,
        typer.Option(help="With --online: tokens written after each prompt; 144.", show_default=False),
    ] = None,
    chosen: TrainOptions,
    init_from: Annotated[
        str | None,
        typer.Option(metavar="HEAD", help="Start from a trained head of lower rank.", show_default=False),
    ] = None,
    cache_hidden: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Keep hidden states there: later epochs and runs cost no forward.",
            show_default=False,
        ),
    ] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="With --trunk scratch, where --model is a JSON configuration: folder, hub id, or bytes, "
            "which is the default.",
            show_default=False,
        ),
    ] = None,
    peer_timeout: Annotated[
        int, typer.Option(help="Seconds that one of several processes waits for another.")
    ] = 1800,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --out.")] = False,
    dtype: options.DtypeName = "auto",
    threads: options.Threads = None,
) -> None:
    """Train a draft head on a model, from text; the model stays as it is unless --trunk says otherwise.

    The best text is the model's own: see `polydraft collect`. A killed run continues with --resume and
    ends in the same weights. On many GPUs: `torchrun --nproc-per-node N -m polydraft train ...`, or
    `accelerate launch -m polydraft train ...`; --batch-size is then that of one of them.
    """
    from polydraft.bench.prompts import read_rows
    from polydraft.cli.progress import TrainingProgress
    from polydraft.errors import InputError
    from polydraft.extras import install
    from polydraft.hub import write_card
    from polydraft.loading import find_head, load_head
    from polydraft.training import distributed
    from polydraft.training.curves import can_plot, plot_curves
    from polydraft.training.data import check_paths
    from polydraft.training.folder import check_free
    from polydraft.training.online import check_texts, parse_online
    from polydraft.training.run import train as run

    console = options.error_console()
    text = parse_online(
        online=online,
        data=data or [],
        prompts=partial(read_rows, prompts) if prompts is not None else None,
        options={
            "epochs": online_epochs,
            "round_size": online_batch,
            "temperatures": tuple(temperature) if temperature else None,
            "max_new_tokens": max_new_tokens,
        },
    )
    check_paths(data or [])
    check_free(out, resume=resume)
    if init_from is not None:
        find_head(init_from)
    distributed.start(timeout=peer_timeout)
    if chosen.trunk == "scratch":
        base, vocabulary, note = options.open_scratch(
            config=model, tokenizer=tokenizer, seed=chosen.seed, dtype=dtype, threads=threads, console=console
        )
    elif tokenizer is not None:
        raise InputError("--tokenizer belongs to --trunk scratch: any other model has its own")
    else:
        base, vocabulary, note = options.open_model(
            model=model,
            dtype=dtype,
            threads=threads,
            console=console,
            check=lambda found: check_texts(text or data or [], found),
        )
    console.print(note)
    with TrainingProgress(console, steps=chosen.steps) as progress:
        run(
            base,
            vocabulary,
            text or data or [],
            out,
            options=chosen,
            init_from=load_head(init_from, model=base, tokenizer=vocabulary) if init_from else None,
            resume=resume,
            cache=cache_hidden,
            command=options.command_line(),
            callbacks=[progress],
            on_note=partial(console.print, markup=False),
            peer_timeout=peer_timeout,
        )
    if ranks.rank() > 0:
        return
    console.print(f"head in {out}", markup=False, soft_wrap=True)
    write_card(out)
    if can_plot():
        plot_curves(out / "training.json", out / "training.png")
    else:
        console.print(f"no picture without matplotlib: {install('plots')}", markup=False)

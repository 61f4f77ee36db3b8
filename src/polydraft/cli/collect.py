"""`polydraft collect`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from polydraft.cli import options


def collect(
    *,
    model: options.ModelName,
    prompts: Annotated[
        str,
        typer.Option(
            metavar="FILE", help="JSON lines with `prompt`, or chat `messages` and perhaps `tools`."
        ),
    ],
    out: Annotated[
        Path, typer.Option(help="Folder for the shards; what it already holds is not made again.")
    ],
    temperature: Annotated[
        list[float] | None,
        typer.Option(
            help="One per prompt, in turn; repeatable. 0 is greedy. By default 0 and 1.", show_default=False
        ),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Tokens written after each prompt, at most.")] = 144,
    max_prompt_tokens: Annotated[int, typer.Option(help="Longer prompts keep their last tokens.")] = 256,
    batch_size: Annotated[int, typer.Option(help="Prompts per batch, and rows per shard.")] = 96,
    engine: Annotated[
        str,
        typer.Option(
            help="What writes: transformers, or vllm where it is installed, some 2.5 times as fast on CPUs."
        ),
    ] = "transformers",
    loop_passages: Annotated[
        int,
        typer.Option(help="How often the passage of a loop that ends a text is kept; 0 keeps all."),
    ] = 3,
    worker: Annotated[
        str, typer.Option(metavar="I/M", help="This process takes every M-th batch from the I-th on.")
    ] = "0/1",
    seed: Annotated[int, typer.Option(help="Fixes the batches and what is sampled.")] = 0,
    dtype: options.DtypeName = "auto",
    threads: options.Threads = None,
) -> None:
    """Let a model write the text that a head for it is trained on.

    Resumable: run the same command again. `polydraft train --data OUT` reads it. The folder's recipe.json
    says how the text was made, its summary.json how much there is and how much of it ends in a loop.
    """
    from rich.progress import MofNCompleteColumn, TextColumn, TimeRemainingColumn

    from polydraft.bench.prompts import as_rows, prompts_path, read_prompts
    from polydraft.cli.progress import Bar
    from polydraft.loading import source_of
    from polydraft.training import collect as room

    console = options.error_console()
    found = read_prompts(prompts_path(prompts))
    rows = as_rows(found)
    chosen = room.CollectOptions(
        temperatures=tuple(temperature or (0.0, 1.0)),
        max_new_tokens=max_new_tokens,
        max_prompt_tokens=max_prompt_tokens,
        batch_size=batch_size,
        engine=engine,
        loop_passages=loop_passages,
        seed=seed,
    )
    turn = room.parse_worker(worker)
    base, tokenizer, note = options.open_model(
        model=model,
        dtype=dtype,
        threads=threads,
        console=console,
        check=lambda tokenizer: [prompt.encode(tokenizer) for prompt in found],
    )
    console.print(note)
    columns = (TextColumn("{task.description}"), MofNCompleteColumn(), TimeRemainingColumn())
    with Bar(*columns, console=console) as progress:
        task = progress.add_task("shards", total=None)

        def advance(done: int, total: int, tokens: int) -> None:
            progress.update(task, completed=done, total=total, description=f"{tokens:,} tokens, shards")

        room.collect(
            base,
            tokenizer,
            rows,
            out,
            options=chosen,
            source=source_of(model),
            worker=turn,
            run={"prompts": prompts, "command": options.command_line()},
            on_progress=advance,
            on_note=partial(console.print, markup=False),
        )

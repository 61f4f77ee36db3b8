"""`polydraft train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from polydraft.cli import options


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


def train(
    *,
    model: options.ModelName,
    data: Annotated[
        list[Path],
        typer.Option(help=".txt, .jsonl, folders of them or of source code, saved datasets; several."),
    ],
    out: Annotated[Path, typer.Option(help="Folder to write the head to.")],
    joint: Annotated[
        str, typer.Option(help="Model of the joint: independent, cp, hmm, tree, markov, cp-markov.")
    ] = "markov",
    rank: Annotated[
        int | None,
        typer.Option(help="Components of the joint; 4, or 1 where there is but one.", show_default=False),
    ] = None,
    horizon: Annotated[int, typer.Option(help="Tokens drafted per step.")] = 4,
    features: Annotated[str, typer.Option(help="fused, or hidden (the paper's form).")] = "fused",
    feature_size: Annotated[int, typer.Option(help="Width of the layer that fuses the features.")] = 2304,
    map_rank: Annotated[int, typer.Option(help="Rank of the maps; 0 for full ones.")] = 128,
    markov_rank: Annotated[
        int, typer.Option(help="Rank of the bias from the token before (markov, cp-markov).")
    ] = 128,
    components: Annotated[
        int, typer.Option(help="Likeliest components evaluated when drafting; 0 for all.")
    ] = 0,
    own_unembedding: Annotated[
        bool, typer.Option("--own-unembedding", help="An unembedding per position and component.")
    ] = False,
    draft_vocab_size: Annotated[int, typer.Option(help="Tokens that can be drafted.")] = 8192,
    loss: Annotated[
        str, typer.Option(help="distill: the base model's rows; joint: likelihood of the text (the paper's).")
    ] = "distill",
    balance: Annotated[float, typer.Option(help="Coefficient of the load-balancing term.")] = 0.01,
    z_loss: Annotated[float, typer.Option(help="Coefficient of the router z-loss.")] = 0.0,
    gate_noise: Annotated[
        float, typer.Option(help="Deviation of noise on the gate's scores while training.")
    ] = 0.0,
    discount: Annotated[
        float, typer.Option(help="Weight of each position relative to the one before.")
    ] = 1.0,
    anchors_per_window: Annotated[
        int, typer.Option(help="Positions learnt from per window on average, drawn at random; 0 for all.")
    ] = 0,
    steps: Annotated[int, typer.Option(help="Optimiser steps.")] = 1000,
    batch_size: Annotated[int, typer.Option(help="Windows of text per micro-batch.")] = 8,
    accumulate: Annotated[int, typer.Option(help="Micro-batches per step.")] = 1,
    learning_rate: Annotated[float, typer.Option(help="Peak; warm-up, then cosine to 0.")] = 1e-3,
    max_length: Annotated[int, typer.Option(help="Tokens of a window of text.")] = 512,
    held_out: Annotated[float, typer.Option(help="Share of the documents held out.")] = 0.02,
    every: Annotated[int, typer.Option(help="Steps between held-out figures and checkpoints.")] = 200,
    seed: Annotated[int, typer.Option(help="Fixes the split, the start and the order.")] = 0,
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
    report_to: Annotated[
        list[str] | None,
        typer.Option(help="tensorboard, trackio, ...; as in transformers.", show_default=False),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --out.")] = False,
    dtype: options.DtypeName = "auto",
    threads: options.Threads = None,
) -> None:
    """Train a draft head on a frozen model, from text.

    The best text is the model's own: see `polydraft collect`. A killed run continues with --resume and
    ends in the same weights.
    """
    from polydraft.cli.progress import TrainingProgress
    from polydraft.loading import head_source, load_head
    from polydraft.training.curves import can_plot, plot_curves
    from polydraft.training.options import TrainOptions, default_rank
    from polydraft.training.run import train as run

    console = options.error_console()
    chosen = TrainOptions(
        joint=joint,
        rank=default_rank(joint) if rank is None else rank,
        horizon=horizon,
        features=features,
        feature_size=feature_size,
        map_rank=map_rank,
        markov_rank=markov_rank,
        components=components,
        own_unembedding=own_unembedding,
        draft_vocab_size=draft_vocab_size,
        loss=loss,
        balance=balance,
        z_loss=z_loss,
        gate_noise=gate_noise,
        discount=discount,
        anchors_per_window=anchors_per_window,
        steps=steps,
        batch_size=batch_size,
        accumulate=accumulate,
        learning_rate=learning_rate,
        max_length=max_length,
        held_out=held_out,
        every=every,
        seed=seed,
        report_to=tuple(report_to or ()),
    )
    if init_from is not None:
        head_source(init_from)
    base, tokenizer, note = options.open_model(model=model, dtype=dtype, threads=threads, console=console)
    console.print(note)
    with TrainingProgress(console, steps=steps) as progress:
        run(
            base,
            tokenizer,
            data,
            out,
            options=chosen,
            init_from=load_head(init_from, model=base, tokenizer=tokenizer) if init_from else None,
            resume=resume,
            cache=cache_hidden,
            command=options.command_line(),
            callbacks=[progress],
            on_note=console.print,
        )
    console.print(f"head in {out}", markup=False, soft_wrap=True)
    if can_plot():
        plot_curves(out / "training.json", out / "training.png")
    else:
        console.print("no picture without matplotlib: pip install 'polydraft[plots]'", markup=False)

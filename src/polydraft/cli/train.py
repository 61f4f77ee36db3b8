"""`polydraft train`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from polydraft import ranks
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
    joint: Annotated[
        str,
        typer.Option(
            help="Model of the joint: independent, cp, hmm, tree, markov, cp-markov, sequential, recurrent."
        ),
    ] = "markov",
    rank: Annotated[
        int | None,
        typer.Option(help="Components of the joint; 4, or 1 where there is but one.", show_default=False),
    ] = None,
    horizon: Annotated[int, typer.Option(help="Tokens drafted per step.")] = 4,
    features: Annotated[
        str,
        typer.Option(
            help="fused; block, a transformer layer over all fused ones before; hidden (the paper's form)."
        ),
    ] = "fused",
    layer: Annotated[
        list[int] | None,
        typer.Option(
            metavar="K",
            help="Also read the K-th hidden layer of the base model; repeatable.",
            show_default=False,
        ),
    ] = None,
    block_start: Annotated[
        str, typer.Option(help="Of the block: random, or base, the base model's last layer.")
    ] = "random",
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
    draft_vocab: Annotated[
        str,
        typer.Option(
            help="With --init-from, of a head with as many: kept, its own, or data, those frequent now."
        ),
    ] = "kept",
    loss: Annotated[
        str,
        typer.Option(
            help="Weights of --nll, --kl, --tv: distill .1, .9, 0; joint 1, 0, 0 (the paper's); tv .1, 0, .9."
        ),
    ] = "distill",
    nll: Annotated[
        float | None,
        typer.Option(help="Weight of the joint likelihood of the text.", show_default="of --loss"),
    ] = None,
    kl: Annotated[
        float | None,
        typer.Option(help="Weight of the divergence from the base model's rows.", show_default="of --loss"),
    ] = None,
    tv: Annotated[
        float | None,
        typer.Option(help="Weight of the total variation, the rate of rejection.", show_default="of --loss"),
    ] = None,
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
    learning_rate: Annotated[float, typer.Option(help="Peak, after the warm-up.")] = 1e-3,
    scheduler: Annotated[
        str,
        typer.Option(
            help="Of the learning rate: cosine, linear, constant, constant_with_warmup, inverse_sqrt, "
            "polynomial, cosine_with_restarts."
        ),
    ] = "cosine",
    warmup: Annotated[int, typer.Option(help="Steps of growing rate; at most half of all.")] = 50,
    weight_decay: Annotated[float, typer.Option(help="Of AdamW.")] = 0.0,
    mixed_precision: Annotated[
        str,
        typer.Option(help="Autocast over the head, a frozen base keeps its --dtype: no, bf16, fp16."),
    ] = "no",
    fsdp: Annotated[
        bool, typer.Option("--fsdp", help="Shard what is trained over the processes of torchrun.")
    ] = False,
    peer_timeout: Annotated[
        int, typer.Option(help="Seconds that one of several processes waits for another.")
    ] = 1800,
    max_length: Annotated[int, typer.Option(help="Tokens of a window of text.")] = 512,
    packing: Annotated[
        bool, typer.Option("--packing", help="Several windows in a row of --max-length; none sees another.")
    ] = False,
    held_out: Annotated[float, typer.Option(help="Share of the documents held out.")] = 0.02,
    validation_windows: Annotated[
        int,
        typer.Option(help="Held-out windows looked at, of each temperature; fewer are faster, less precise."),
    ] = 64,
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
    trunk: Annotated[
        str, typer.Option(help="What of the model is trained too: frozen (nothing), lora, full, scratch.")
    ] = "frozen",
    tokenizer: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="With --trunk scratch, where --model is a JSON configuration: folder, hub id, or bytes, "
            "which is the default.",
            show_default=False,
        ),
    ] = None,
    lm_weight: Annotated[float, typer.Option(help="Of a trained model's own next-token loss.")] = 1.0,
    trunk_learning_rate: Annotated[
        float, typer.Option(help="Peak, of a trained model; 0: lora 2e-4, full 2e-5, scratch 1e-3.")
    ] = 0.0,
    lora_rank: Annotated[int, typer.Option(help="Rank of the adapter.")] = 16,
    lora_alpha: Annotated[float, typer.Option(help="Scale of the adapter; 0 for twice its rank.")] = 0.0,
    lora_target: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Layers to adapt, such as q_proj; several. All linear ones.",
            show_default=False,
        ),
    ] = None,
    verifier: Annotated[
        str, typer.Option(help="With --trunk lora, what will verify: trained (the adapted model), or base.")
    ] = "trained",
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
    from polydraft.training.options import TrainOptions, default_rank
    from polydraft.training.run import train as run

    console = options.error_console()
    chosen = TrainOptions(
        joint=joint,
        rank=default_rank(joint) if rank is None else rank,
        horizon=horizon,
        features=features,
        feature_size=feature_size,
        layers=tuple(layer or ()),
        block_start=block_start,
        map_rank=map_rank,
        markov_rank=markov_rank,
        components=components,
        own_unembedding=own_unembedding,
        draft_vocab_size=draft_vocab_size,
        draft_vocab=draft_vocab,
        loss=loss,
        nll=nll,
        kl=kl,
        tv=tv,
        balance=balance,
        z_loss=z_loss,
        gate_noise=gate_noise,
        discount=discount,
        anchors_per_window=anchors_per_window,
        steps=steps,
        batch_size=batch_size,
        accumulate=accumulate,
        learning_rate=learning_rate,
        scheduler=scheduler,
        warmup=warmup,
        weight_decay=weight_decay,
        mixed_precision=mixed_precision,
        fsdp=fsdp,
        max_length=max_length,
        packing=packing,
        held_out=held_out,
        validation_windows=validation_windows,
        every=every,
        seed=seed,
        report_to=tuple(report_to or ()),
        trunk=trunk,
        lm_weight=lm_weight,
        trunk_learning_rate=trunk_learning_rate,
        lora_rank=lora_rank,
        lora_alpha=lora_alpha,
        lora_targets=tuple(lora_target or ()),
        verifier=verifier,
    )
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
    if trunk == "scratch":
        base, vocabulary, note = options.open_scratch(
            config=model, tokenizer=tokenizer, seed=seed, dtype=dtype, threads=threads, console=console
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
    with TrainingProgress(console, steps=steps) as progress:
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

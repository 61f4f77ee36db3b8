"""`polydraft generate`."""

from __future__ import annotations

import json
import secrets
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from polydraft.cli import options
from polydraft.errors import InputError
from polydraft.modes import DRAFTING, VERIFICATION, VERIFIER
from polydraft.textfiles import read_text


def generate(
    prompt: Annotated[
        str | None, typer.Argument(help="The text to continue; - reads it from stdin.", show_default=False)
    ] = None,
    *,
    model: options.ModelName,
    head: options.HeadName,
    prompt_file: Annotated[
        Path | None, typer.Option(help="Read the prompt from this file, as it is.", show_default=False)
    ] = None,
    chat: Annotated[
        bool, typer.Option("--chat/--raw", help="Put the prompt through the model's chat template, or not.")
    ] = False,
    max_new_tokens: options.MaxNewTokens = 128,
    temperature: options.Temperature = 0.0,
    top_k: options.TopK = 0,
    top_p: options.TopP = 1.0,
    min_p: Annotated[
        float | None,
        typer.Option(
            help="Drop tokens below this share of the likeliest one's probability.", show_default=False
        ),
    ] = None,
    repetition_penalty: Annotated[
        float, typer.Option(help="Above 1 makes repeated tokens less likely.")
    ] = 1.0,
    stop: Annotated[
        list[str] | None, typer.Option(help="Stop after this text; may be repeated.", show_default=False)
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            help="Of a sampled text, which follows from prompt, options and seed alone, the same here, in "
            "Python and over HTTP. Drawn, and reported, if not given.",
            show_default=False,
        ),
    ] = None,
    verification: options.Verification = VERIFICATION,
    drafting: options.Drafting = DRAFTING,
    draft_length: options.DraftLength = None,
    prompt_lookup_num_tokens: options.LookupTokens = None,
    compiled: options.Compiled = False,
    components: options.Components = None,
    adapter: options.Adapter = None,
    verifier: options.Verifier = VERIFIER,
    dtype: options.DtypeName = "auto",
    threads: options.Threads = None,
    stats: Annotated[
        bool, typer.Option("--stats", help="Print the figures after the text, on stderr.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object with text and figures instead of streaming.")
    ] = False,
    compare: Annotated[
        bool,
        typer.Option(
            "--compare",
            help="Run plain decoding too, compiled where drafting is; say how fast each was and whether the "
            "texts are equal. Greedy float32 texts are equal; sampling draws another text of the same "
            "distribution.",
        ),
    ] = False,
) -> None:
    """Continue a prompt, and stream the text as it comes.

    Example: polydraft generate --model smollm2-135m-instruct --head smollm2-135m-instruct --chat "Hello!"
    """
    text = read_prompt(prompt, prompt_file)
    from transformers import TextStreamer

    from polydraft.bench import benchmark
    from polydraft.bench.prompts import Prompt
    from polydraft.bench.report import answer
    from polydraft.bench.runs import Sampling, run_drafted

    sampling = Sampling(
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        stop=tuple(stop or ()),
        seed=seed_of(seed, verification=verification),
        torch_seed=secrets.randbits(62),
        verification=verification,
        drafting=drafting,
        draft_length=draft_length,
        prompt_lookup_num_tokens=prompt_lookup_num_tokens,
        compiled=compiled,
    )
    request = Prompt(content={"messages": [{"role": "user", "content": text}]} if chat else {"prompt": text})
    console = options.error_console()
    session = options.open_session(
        model=model,
        head=head,
        dtype=dtype,
        threads=threads,
        console=console,
        components=components,
        adapter=adapter,
        verifier=verifier,
        check=request.encode,
    )
    base, tokenizer = session.model, session.tokenizer
    ids = request.encode(tokenizer, model=base)
    options.prepare(session, sampling, console=console)
    streamer = None if as_json else TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    compared = None
    if compare:
        asked = (base, session.head, tokenizer, request, sampling)
        benchmark.warm_up(*asked)
        compared = benchmark.compare(*asked, turn=1, streamer=streamer)
        drafted = compared.drafted
    else:
        drafted = run_drafted(base, session.head, tokenizer, ids, sampling, streamer=streamer)
    found = answer(
        drafted,
        compared,
        tokenizer=tokenizer,
        prompt=text,
        prompt_tokens=len(ids),
        sampling=sampling,
        model=model,
        head=head,
        dtype=session.dtype,
    )
    if as_json:
        print(json.dumps(found, indent=1, ensure_ascii=False))
    elif stats or compare:
        console.print("\n".join([*summary(found), session.threads]), markup=False, soft_wrap=True)


def seed_of(asked: int | None, *, verification: str) -> int | None:
    """The seed asked for, or one that is drawn; none for drafts verified in a way that no seed couples."""
    if asked is None and verification == VERIFICATION:
        return secrets.randbits(32)
    return asked


def read_prompt(prompt: str | None, file: Path | None) -> str:
    """The prompt, from the one place where the user put it.

    Raises:
        InputError: from none or both, or unreadable.
    """
    if (prompt is None) == (file is None):
        raise InputError("give the prompt either as an argument (- reads stdin) or by --prompt-file")
    if file is None:
        return sys.stdin.read() if prompt == "-" else str(prompt)
    return read_text(file)


def summary(found: dict[str, Any]) -> list[str]:
    """The figures of `bench.report.answer`, as lines to read."""
    sampled = found["temperature"] > 0 and found["seed"] is not None
    seed = f"seed {found['seed']}, " if sampled else ""
    lines = [
        f"{found['new_tokens']} tokens, {found['tokens_per_second']:.1f} tokens/s, {found['steps']} steps, "
        f"{seed}{found['dtype']}",
        f"{found['mean_acceptance_length']:.2f} tokens per step, {found['draft_acceptance_rate']:.0%} of the "
        f"drafts accepted, histogram {found['acceptance_histogram']}, "
        f"drafting {found['drafting_share']:.0%} of the time",
    ]
    if "ratio" in found:
        same = "yes" if found["identical"] else "no"
        if not found["identical"] and found["temperature"] > 0:
            same += " (sampled texts need not be)"
        eager = found["eager_tokens_per_second"]
        plain = "plain" if eager is None else "plain, compiled too,"
        speed = f"{plain} {found['plain_tokens_per_second']:.1f} tokens/s"
        lines.append(f"{speed}, ratio {found['ratio']:.2f}, identical: {same}")
        if eager is not None:
            lines.append(f"plain, not compiled, {eager:.1f} tokens/s, ratio {found['ratio_to_eager']:.2f}")
    return lines

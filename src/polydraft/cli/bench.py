"""`polydraft bench`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from polydraft.cli import options
from polydraft.cli.bench_tables import eager_table, figures_table
from polydraft.modes import DRAFTING, VERIFICATION, VERIFIER


def bench(
    *,
    model: options.ModelName,
    head: options.HeadName,
    prompts: Annotated[
        list[str],
        typer.Option(
            metavar="FILE",
            help="JSON lines with `prompt` or chat `messages`, perhaps `kind`; or heldout, the prompts that "
            "the published figures use, breadth-heldout, those of 14 kinds, edit, validation, or "
            "breadth-validation. May be given several times.",
        ),
    ],
    max_new_tokens: options.MaxNewTokens = 128,
    temperature: options.Temperature = 0.0,
    top_k: options.TopK = 0,
    top_p: options.TopP = 1.0,
    seed: Annotated[
        int | None,
        typer.Option(
            help="Time the sampled texts that `generate --seed` writes, whose draws are coupled; without it "
            "drafts are verified by rejection.",
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
    json_path: Annotated[
        Path | None,
        typer.Option(
            "--json",
            metavar="OUT",
            help="Keep the figures here; a picture goes beside it.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Compare plain `model.generate` with drafted decoding: speed, acceptance, equality.

    Both run on each prompt, in alternating order, after a warm-up. The ratio of a prompt is drafted over
    plain tokens per second, the prompt's own forward included; that of several is the median of theirs.
    With --compile plain decoding is compiled too, and both are also compared with plain decoding that is not.
    """
    from rich.progress import MofNCompleteColumn, TextColumn, TimeElapsedColumn

    from polydraft.bench.benchmark import Comparison, benchmark, check_prompts
    from polydraft.bench.plots import plot_report
    from polydraft.bench.prompts import prompts_path, read_prompts
    from polydraft.bench.report import check_writable, report, write_report
    from polydraft.bench.runs import Sampling
    from polydraft.cli.progress import Bar
    from polydraft.extras import install
    from polydraft.training.curves import can_plot

    console = options.error_console()
    if json_path is not None:
        check_writable(json_path)
    questions = [prompt for name in prompts for prompt in read_prompts(prompts_path(name))]
    sampling = Sampling(
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        verification=verification,
        drafting=drafting,
        draft_length=draft_length,
        prompt_lookup_num_tokens=prompt_lookup_num_tokens,
        compiled=compiled,
    )
    session = options.open_session(
        model=model,
        head=head,
        dtype=dtype,
        threads=threads,
        console=console,
        components=components,
        adapter=adapter,
        verifier=verifier,
        check=lambda tokenizer: [prompt.encode(tokenizer) for prompt in questions],
    )
    check_prompts(session.model, session.tokenizer, questions, sampling)
    console.print(session.threads)
    options.prepare(session, sampling, console=console)
    columns = (TextColumn("{task.description}"), MofNCompleteColumn(), TimeElapsedColumn())
    with Bar(*columns, console=console) as progress:
        task = progress.add_task("prompts", total=len(questions))

        def advance(result: Comparison) -> None:
            progress.update(task, advance=1, description=f"last ratio {result.ratio:.2f}, prompts")

        results = benchmark(
            session.model, session.head, session.tokenizer, questions, sampling, on_result=advance
        )
    content = report(
        results,
        sampling=sampling,
        model=model,
        head=head,
        dtype=session.dtype,
        command=options.command_line(),
    )
    Console().print(figures_table(content))
    if content["all"]["eager"] is not None:
        Console().print(eager_table(content))
    if json_path is None:
        return
    write_report(content, json_path)
    console.print(f"figures in {json_path}", markup=False, soft_wrap=True)
    if can_plot():
        plot_report(content, json_path.with_suffix(".png"))
    else:
        console.print(f"no picture without matplotlib: {install('plots')}", markup=False)

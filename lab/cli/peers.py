"""`python -m lab peers`: other ways to decode the same prompts, beside polydraft."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from polydraft.cli import options
from polydraft.cli.options import Session
from polydraft.embedded import EMBEDDED

if TYPE_CHECKING:
    from lab.peers.contestants import Contestant
    from lab.peers.rounds import Round
    from polydraft.bench.prompts import Prompt
    from polydraft.bench.runs import Sampling

TEMPERATURES = (0.0, 1.0)
BATCHES = (1, 8)


def peers(
    *,
    model: options.ModelName = EMBEDDED,
    head: options.HeadName = EMBEDDED,
    prompts: Annotated[
        list[str],
        typer.Option(metavar="FILE", help="As of `polydraft bench`; may be given several times."),
    ],
    out: Annotated[
        Path,
        typer.Option(
            metavar="DIR", help="Folder for figures, picture, and every round done, which is not done again."
        ),
    ],
    max_new_tokens: options.MaxNewTokens = 128,
    temperature: Annotated[
        list[float] | None,
        typer.Option(help="0 is greedy; several. By default 0 and 1.", show_default=False),
    ] = None,
    top_k: options.TopK = 0,
    top_p: options.TopP = 1.0,
    seed: Annotated[int, typer.Option(help="Torch's seed is this plus i for prompt i, in every way.")] = 0,
    batch: Annotated[
        list[int] | None,
        typer.Option(help="Prompts decoded together; several. By default 1 and 8.", show_default=False),
    ] = None,
    repeats: Annotated[
        int, typer.Option(help="Times that a batch of several prompts is decoded; single prompts are once.")
    ] = 3,
    peer_head: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=HEAD[,OPTION=VALUE...]",
            help="A further head, and options of polydraft.generate that it drafts with; several.",
            show_default=False,
        ),
    ] = None,
    draft_model: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="A small model for assisted generation.", show_default=False),
    ] = None,
    lookup_tokens: Annotated[
        int, typer.Option(min=1, help="Drafts of prompt lookup, by itself and beside the head.")
    ] = 10,
    budget_minutes: Annotated[
        float | None,
        typer.Option(
            help="Begin no round later than this; the same command goes on with the rest.", show_default=False
        ),
    ] = None,
    compiled: Annotated[
        bool,
        typer.Option(
            "--compile", help="Add polydraft compiled: without drafts, with drafts, and with copied ones too."
        ),
    ] = False,
    dtype: options.DtypeName = "auto",
    threads: options.Threads = None,
) -> None:
    """Compare ways to decode the same prompts: plain, static cache and compile, prompt lookup, heads.

    They run in turn on each prompt, greedily and sampled, alone and in batches; each is compared with plain
    decoding of the same round.
    """
    from rich.progress import MofNCompleteColumn, TextColumn, TimeElapsedColumn

    from lab.peers.contestants import parse_peer_head
    from lab.peers.plots import plot_peers
    from lab.peers.report import peer_report, write_peer_report
    from lab.peers.rounds import plan
    from lab.peers.run import Peers
    from polydraft.bench.prompts import prompts_path, read_prompts
    from polydraft.bench.runs import Sampling
    from polydraft.cli.progress import Bar
    from polydraft.extras import install
    from polydraft.sources import head_source
    from polydraft.training.curves import can_plot

    console = options.error_console()
    questions = [prompt for name in prompts for prompt in read_prompts(prompts_path(name))]
    heads = [parse_peer_head(text) for text in peer_head or ()]
    for _, source, _ in heads:
        head_source(source)
    rounds = plan(
        questions, temperatures=temperature or TEMPERATURES, batches=batch or BATCHES, repeats=repeats
    )
    sampling = Sampling(max_new_tokens=max_new_tokens, top_k=top_k, top_p=top_p, torch_seed=seed)
    session = options.open_session(model=model, head=head, dtype=dtype, threads=threads, console=console)
    console.print(session.threads)
    contestants = _contestants(
        session,
        questions,
        sampling,
        head=head,
        heads=heads,
        draft_model=draft_model,
        lookup_tokens=lookup_tokens,
        compiled=compiled,
        console=console,
    )
    settings = {"model": model, "head": head, "dtype": str(session.dtype).removeprefix("torch.")}
    compared = Peers(
        session.model, session.tokenizer, contestants, questions, sampling, out=out, settings=settings
    )
    columns = (TextColumn("{task.description}"), MofNCompleteColumn(), TimeElapsedColumn())
    with Bar(*columns, console=console) as progress:
        task = progress.add_task("rounds", total=len(rounds))

        def advance(one: Round) -> None:
            progress.update(task, advance=1, description=f"last {one.setting}, {one.kind}; rounds")

        def note(line: str) -> None:
            progress.console.print(line, markup=False, soft_wrap=True)

        budget = None if budget_minutes is None else 60 * budget_minutes
        found = compared.run(rounds, budget_seconds=budget, on_round=advance, on_note=note)
    if not found:
        console.print("no round fitted into the budget: give more minutes", markup=False)
        return
    content = peer_report(found, settings=compared.settings, command=options.command_line("python -m lab"))
    for table in peers_tables(content):
        Console().print(table)
    write_peer_report(content, out)
    if can_plot():
        plot_peers(content, out / "peers.png")
    else:
        console.print(f"no picture without matplotlib: {install('plots')}", markup=False)
    console.print(f"figures in {out}", markup=False, soft_wrap=True)


def _contestants(
    session: Session,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    *,
    head: str,
    heads: Sequence[tuple[str, str, dict[str, Any]]],
    draft_model: str | None,
    lookup_tokens: int,
    compiled: bool,
    console: Console,
) -> list[Contestant]:
    from lab.peers import contestants as peers
    from polydraft.loading import load_head, load_model

    model, tokenizer = session.model, session.tokenizer
    longest = max(len(prompt.encode(tokenizer)) for prompt in prompts)
    found = [
        peers.plain(model),
        peers.static(model, length=longest + sampling.max_new_tokens),
        peers.lookup(model, tokens=lookup_tokens),
    ]
    if draft_model is None:
        console.print("without assisted generation: name a small model with --draft-model", markup=False)
    else:
        found.append(peers.assisted(model, load_model(draft_model, dtype=session.dtype)[0]))
    for name, source, given in heads:
        peer = load_head(source, model=model, tokenizer=tokenizer)
        about = ", ".join([f"head {source}", *(f"{key} {value}" for key, value in given.items())])
        like = peers.COMPILED_PLAIN if given.get("compiled") else peers.PLAIN
        found.append(peers.drafted(model, peer, name=name, about=about, options=given, like=like))
    compiled = compiled or any(given.get("compiled") for *_, given in heads)
    return found + peers.polydraft_ways(
        model, session.head, source=head, lookup_tokens=lookup_tokens, compiled=compiled
    )


def peers_tables(content: dict[str, Any]) -> list[Table]:
    """The cells of `lab.peers.report.peer_report`, a row each; then what drafting brings, compiled."""
    from lab.peers.report import like_table, peer_notes, peer_table

    title = f"{content['model']}, {content['dtype']}, {content['sampling']['max_new_tokens']} new tokens"
    caption = "times as fast as plain, median over rounds (tokens per step)\n" + "\n".join(
        peer_notes(content)
    )
    tables = [rich_table(peer_table(content), title=title, caption=caption)]
    if like := like_table(content):
        tables.append(
            rich_table(like, title="compiled drafting over the same compiled layers without drafts")
        )
    return tables


def rich_table(rows: list[list[str]], *, title: str, caption: str | None = None) -> Table:
    """Rows of Markdown cells, the first of them the heading, for the terminal."""
    table = Table(title=title, caption=caption, box=box.SIMPLE, padding=(0, 1, 0, 0))
    for place, name in enumerate(rows[0]):
        table.add_column(name, justify="right" if place > 1 else "left")
    for row in rows[1:]:
        table.add_row(*(f"[bold]{cell.replace('**', '')}[/]" if "**" in cell else cell for cell in row))
    return table

"""`polydraft bench --peers`: what it puts together, and its table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from polydraft.cli import options
from polydraft.cli.options import Session
from polydraft.errors import InputError

if TYPE_CHECKING:
    from lab.peers.contestants import Contestant
    from lab.peers.rounds import Round
    from polydraft.bench.prompts import Prompt
    from polydraft.bench.runs import Sampling

PANEL = "Side by side with others (--peers)"
WithPeers = Annotated[
    bool,
    typer.Option(
        "--peers",
        help="Compare with other ways to decode too: static cache and compile, prompt lookup, assisted "
        "generation, further heads.",
        rich_help_panel=PANEL,
    ),
]
Out = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="Folder for figures, picture, and every round done, which is not done again.",
        show_default=False,
        rich_help_panel=PANEL,
    ),
]
PeerHeads = Annotated[
    list[str] | None,
    typer.Option(
        "--peer-head",
        metavar="NAME=HEAD[,OPTION=VALUE...]",
        help="A further head, and options of polydraft.generate that it drafts with. Any number of them.",
        show_default=False,
        rich_help_panel=PANEL,
    ),
]
DraftModel = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="A small model for assisted generation.",
        show_default=False,
        rich_help_panel=PANEL,
    ),
]
LookupTokens = Annotated[
    int | None,
    typer.Option(
        help="Drafts of prompt lookup, by itself and beside the head; else 10.",
        show_default=False,
        rich_help_panel=PANEL,
    ),
]
Batches = Annotated[
    list[int] | None,
    typer.Option(
        "--batch",
        help="Prompts decoded together; several sizes may be given, else 1 and 8.",
        show_default=False,
        rich_help_panel=PANEL,
    ),
]
Repeats = Annotated[
    int | None,
    typer.Option(
        help="Times that a batch of several prompts is decoded, else 3; single prompts are once.",
        show_default=False,
        rich_help_panel=PANEL,
    ),
]
BudgetMinutes = Annotated[
    float | None,
    typer.Option(
        help="Begin no round later than this; the same command goes on with the rest.",
        show_default=False,
        rich_help_panel=PANEL,
    ),
]

TEMPERATURES = (0.0, 1.0)
BATCHES = (1, 8)
REPEATS = 3
LOOKUP_TOKENS = 10


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a comparison is asked for. `heads`: (name, head, options) of the further ones."""

    out: Path
    rounds: Sequence[Round]
    heads: Sequence[tuple[str, str, dict[str, Any]]]
    draft_model: str | None
    lookup_tokens: int
    budget_seconds: float | None


def ask(
    prompts: Sequence[Prompt],
    *,
    with_peers: bool,
    temperatures: list[float] | None,
    json_path: Path | None,
    out: Path | None,
    peer_heads: list[str] | None,
    draft_model: str | None,
    lookup_tokens: int | None,
    batches: list[int] | None,
    repeats: int | None,
    budget_minutes: float | None,
) -> Request | None:
    """The options of the command, checked before anything is loaded; None without `--peers`.

    Raises:
        InputError: an option that belongs to the other comparison, or one that cannot be; named.
    """
    from lab.peers.contestants import parse_peer_head
    from lab.peers.rounds import plan
    from polydraft.sources import head_source

    if not with_peers:
        given = {
            "--out": out,
            "--peer-head": peer_heads,
            "--draft-model": draft_model,
            "--lookup-tokens": lookup_tokens,
            "--batch": batches,
            "--repeats": repeats,
            "--budget-minutes": budget_minutes,
            "a second --temperature": (temperatures or [])[1:],
        }
        for name, value in given.items():
            if value not in (None, []):
                raise InputError(f"{name} is for the comparison with others: add --peers, or leave it out")
        return None
    if out is None or json_path is not None:
        raise InputError("--peers keeps its figures in a folder: name it with --out, and leave --json out")
    heads = [parse_peer_head(text) for text in peer_heads or ()]
    for _, source, _ in heads:
        head_source(source)
    rounds = plan(
        prompts,
        temperatures=temperatures or TEMPERATURES,
        batches=batches or BATCHES,
        repeats=REPEATS if repeats is None else repeats,
    )
    if lookup_tokens is not None and lookup_tokens < 1:
        raise InputError(f"--lookup-tokens must be at least 1, got {lookup_tokens}")
    return Request(
        out=out,
        rounds=rounds,
        heads=heads,
        draft_model=draft_model,
        lookup_tokens=lookup_tokens or LOOKUP_TOKENS,
        budget_seconds=None if budget_minutes is None else 60 * budget_minutes,
    )


def compare(
    session: Session,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    request: Request,
    *,
    model: str,
    head: str,
    console: Console,
) -> None:
    """Run all rounds that are lacking; print the table, keep figures and picture."""
    from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from lab.peers.plots import plot_peers
    from lab.peers.report import peer_report, write_peer_report
    from lab.peers.run import Peers
    from polydraft.extras import install
    from polydraft.training.curves import can_plot

    out, rounds = request.out, request.rounds
    contestants = _contestants(session, prompts, sampling, request, head=head, console=console)
    settings = {"model": model, "head": head, "dtype": str(session.dtype).removeprefix("torch.")}
    peers = Peers(
        session.model, session.tokenizer, contestants, prompts, sampling, out=out, settings=settings
    )
    columns = (TextColumn("{task.description}"), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("rounds", total=len(rounds))

        def advance(one: Round) -> None:
            progress.update(task, advance=1, description=f"last {one.setting}, {one.kind}; rounds")

        def note(line: str) -> None:
            progress.console.print(line, markup=False, soft_wrap=True)

        found = peers.run(rounds, budget_seconds=request.budget_seconds, on_round=advance, on_note=note)
    if not found:
        console.print("no round fitted into the budget: give more minutes", markup=False)
        return
    content = peer_report(found, settings=peers.settings, command=options.command_line())
    Console().print(peers_table(content))
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
    request: Request,
    *,
    head: str,
    console: Console,
) -> list[Contestant]:
    from polydraft.bench import peers_contestants as peers
    from polydraft.loading import load_head, load_model

    model, tokenizer = session.model, session.tokenizer
    longest = max(len(prompt.encode(tokenizer)) for prompt in prompts)
    found = [
        peers.plain(model),
        peers.static(model, length=longest + sampling.max_new_tokens),
        peers.lookup(model, tokens=request.lookup_tokens),
    ]
    if request.draft_model is None:
        console.print("without assisted generation: name a small model with --draft-model", markup=False)
    else:
        found.append(peers.assisted(model, load_model(request.draft_model, dtype=session.dtype)[0]))
    for name, source, given in request.heads:
        peer = load_head(source, model=model, tokenizer=tokenizer)
        about = ", ".join([f"head {source}", *(f"{key} {value}" for key, value in given.items())])
        found.append(peers.drafted(model, peer, name=name, about=about, options=given))
    lookup = {"prompt_lookup_num_tokens": request.lookup_tokens}
    for name, about, given in (
        (peers.OURS, f"head {head}", {}),
        (peers.COMBINED, f"head {head} where lookup finds nothing", lookup),
    ):
        found.append(peers.drafted(model, session.head, name=name, about=about, options=given))
    return found


def peers_table(content: dict[str, Any]) -> Table:
    """The cells of `evaluation.peer_report.peer_report`, a row each."""
    from lab.peers.report import peer_notes, peer_table

    heading, *rows = peer_table(content)
    title = f"{content['model']}, {content['dtype']}, {content['sampling']['max_new_tokens']} new tokens"
    caption = "ratio to plain of median tokens/s (tokens per step)\n" + "\n".join(peer_notes(content))
    table = Table(title=title, caption=caption, box=box.SIMPLE, padding=(0, 1, 0, 0))
    for place, name in enumerate(heading):
        table.add_column(name, justify="right" if place > 1 else "left")
    for row in rows:
        table.add_row(*(f"[bold]{cell.replace('**', '')}[/]" if "**" in cell else cell for cell in row))
    return table

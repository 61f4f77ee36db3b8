"""`polydraft doctor`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from polydraft.cli import options
from polydraft.modes import DRAFTING, VERIFICATION, VERIFIER

if TYPE_CHECKING:
    from polydraft.bench.diagnosis import Diagnosis


def doctor(
    *,
    model: options.ModelName,
    head: options.HeadName,
    batch: Annotated[int, typer.Option(help="Texts decoded at once.")] = 1,
    prompts: Annotated[
        str,
        typer.Option(
            metavar="FILE", help="To see how many drafts are kept: as for bench; or heldout, or validation."
        ),
    ] = "validation",
    count: Annotated[int, typer.Option(help="Of these, one of each kind in turn.")] = 6,
    max_new_tokens: options.MaxNewTokens = 48,
    temperature: options.Temperature = 0.0,
    verification: options.Verification = VERIFICATION,
    drafting: options.Drafting = DRAFTING,
    compiled: options.Compiled = False,
    components: options.Components = None,
    adapter: options.Adapter = None,
    verifier: options.Verifier = VERIFIER,
    dtype: options.DtypeName = "auto",
    threads: options.Threads = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Say what speed-up to expect on this machine, and why.

    Times forwards and drafts, and decodes a few prompts to see how many drafts are kept, drafting as
    generation does with the same options. What it knows of this machine, to decide how much to draft, is
    renewed.
    """
    from rich.progress import MofNCompleteColumn, TextColumn, TimeElapsedColumn

    from polydraft.bench.advice import advice
    from polydraft.bench.doctor import examine, some_of_each_kind, stages
    from polydraft.bench.prompts import prompts_path, read_prompts
    from polydraft.bench.runs import Sampling
    from polydraft.cli.progress import Bar
    from polydraft.errors import InputError

    console = options.error_console()
    for name, value in (("batch", batch), ("count", count)):
        if value < 1:
            raise InputError(f"{name} must be at least 1, got {value}")
    chosen = some_of_each_kind(read_prompts(prompts_path(prompts)), count)
    sampling = Sampling(
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        verification=verification,
        drafting=drafting,
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
        check=lambda tokenizer: [prompt.encode(tokenizer) for prompt in chosen],
    )
    console.print(session.threads)
    columns = (TextColumn("{task.description}"), MofNCompleteColumn(), TimeElapsedColumn())
    with Bar(*columns, console=console, transient=True) as progress:
        total = stages(rows=batch, prompts=len(chosen), compiled=compiled)
        task = progress.add_task("", total=total, completed=-1)
        found = examine(
            session.model,
            session.head,
            session.tokenizer,
            chosen,
            sampling,
            rows=batch,
            on_stage=lambda line: progress.update(task, advance=1, description=line),
        )
    if as_json:
        content = found.to_dict(model=model, head=head, on=session.model) | {"advice": advice(found)}
        print(json.dumps(content, indent=1, ensure_ascii=False))
        return
    out = Console(highlight=False)
    out.print(cost_table(found))
    for line in advice(found):
        out.print(line)


def cost_table(found: Diagnosis) -> Table:
    """A row for each number of drafts a step, up to the widest forward timed."""
    from polydraft.bench.advice import milliseconds

    compiled = found.compiling is not None
    caption = "x plain: against a plain forward; expected: speed against plain decoding"
    if compiled:
        caption += ", compiled too; over eager: against plain decoding that is not compiled"
    what = f"{'trees' if found.trees else 'chains'}{', compiled' * compiled}"
    title = f"{what}, batch {found.rows}, times in ms"
    table = Table(title=title, caption=caption, box=box.SIMPLE)
    size = "nodes\na tree" if found.trees else "drafts\na step"
    names = (
        size,
        "forward",
        "x plain",
        "drafting",
        "tokens\n/ step",
        "expected",
        *["over\neager"] * compiled,
    )
    for name in names:
        table.add_column(name, justify="right")
    tokens, ratios = found.tokens, found.ratios
    for width in sorted({width for _, width in found.costs.forward}):
        drafts = width - 1
        seconds = found.costs.forward_seconds(found.rows, width)
        cells = [str(drafts), milliseconds(seconds), f"{seconds / found.plain_seconds:.2f}"]
        if drafts in tokens:
            making = found.costs.drafting_seconds(found.rows, drafts)
            cells += [milliseconds(making), f"{tokens[drafts]:.2f}", f"{ratios[drafts]:.2f}x"]
            if compiled:
                cells.append(f"{found.eager_ratios[drafts]:.2f}x")
        table.add_row(*cells, style="bold" if found.best == drafts else None)
    return table

"""`polydraft demo`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from polydraft.cli import options
from polydraft.cli.bench_tables import figures_table
from polydraft.embedded import EMBEDDED

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from polydraft.bench.benchmark import Comparison
    from polydraft.bench.runs import Run

KINDS = ("chat", "code", "prose")
STYLES = ("", "green", "cyan", "magenta", "yellow")
"""The style of a token by the draft position it was accepted at; 0 is the base model's own."""


def demo(
    *,
    max_new_tokens: options.MaxNewTokens = 96,
    threads: options.Threads = None,
) -> None:
    """Plain and drafted decoding side by side on the embedded model: a chat, a program and a story.

    Greedy, in bfloat16, on the first held-out prompt of each kind. The first run converts the model
    (about half a minute); no hub is needed.
    """
    began = time.perf_counter()
    from polydraft.bench.benchmark import benchmark
    from polydraft.bench.prompts import prompts_path, read_prompts
    from polydraft.bench.report import report
    from polydraft.bench.runs import Sampling

    out, console = Console(highlight=False), options.error_console()
    held_out = read_prompts(prompts_path("heldout"))
    prompts = [next(prompt for prompt in held_out if prompt.kind == kind) for kind in KINDS]
    sampling = Sampling(max_new_tokens=max_new_tokens)
    session = options.open_session(
        model=EMBEDDED, head=EMBEDDED, dtype="bfloat16", threads=threads, console=console
    )
    out.print(f"{EMBEDDED}, bfloat16, greedy; {session.threads}")
    out.print(legend(session.head.config.horizon))
    options.prepare(session, sampling, console=console)
    with console.status("generating, plain and drafted"):
        results = benchmark(
            session.model,
            session.head,
            session.tokenizer,
            prompts,
            sampling,
            on_result=lambda result: show(result, session.tokenizer, out),
        )
    content = report(
        results,
        sampling=sampling,
        model=EMBEDDED,
        head=EMBEDDED,
        dtype=session.dtype,
        command=options.command_line(),
    )
    out.print(figures_table(content))
    out.print(f"all in {time.perf_counter() - began:.0f} s")


def legend(horizon: int) -> Text:
    """What the colours mean."""
    text = Text("the base model's own tokens are plain; drafts that it accepted are coloured by position:")
    for position in range(1, horizon + 1):
        text.append(f" {position}", style(position))
    return text


def style(position: int) -> str:
    """Style of a token by its origin."""
    return STYLES[min(position, len(STYLES) - 1)]


def coloured(run: Run, tokenizer: PreTrainedTokenizerBase) -> Text:
    """The text of a run, accepted drafts in colour."""
    from polydraft.bench.runs import pieces

    origins = run.origins if run.origins is not None else [0] * len(run.tokens)
    text = Text()
    for piece, origin in zip(pieces(tokenizer, run.tokens), origins, strict=True):
        text.append(piece, style(origin))
    return text


def show(result: Comparison, tokenizer: PreTrainedTokenizerBase, out: Console) -> None:
    """Print one prompt, both texts and the figures."""
    content = result.prompt.content
    asked = content["prompt"] if "prompt" in content else content["messages"][-1]["content"]
    out.print(
        Panel(Text(asked.strip()), title=f"{result.prompt.kind} ({result.prompt.where})", title_align="left")
    )
    table = Table(expand=True, show_lines=True)
    table.add_column(f"plain: {result.plain.tokens_per_second:.1f} tokens/s", ratio=1)
    table.add_column(f"drafted: {result.drafted.tokens_per_second:.1f} tokens/s", ratio=1)
    table.add_row(coloured(result.plain, tokenizer), coloured(result.drafted, tokenizer))
    out.print(table)
    same = "the same text"
    if result.first_difference is not None:
        same = f"equal up to token {result.first_difference}, where bfloat16 rounding parts them"
    out.print(
        f"{result.ratio:.2f} times as fast, {result.statistics.mean_acceptance_length:.2f} tokens per step, "
        f"{result.statistics.draft_acceptance_rate:.0%} of the drafts accepted; {same}\n"
    )

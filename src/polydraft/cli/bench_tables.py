"""The tables that `polydraft bench` prints."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Table

from polydraft.bench.words import cpu_words, ratio_words

HEADINGS = (
    "plain\ntok/s",
    "drafted\ntok/s",
    "ratio\n(quartiles)",
    "CPU\ntime",
    "tokens\n/ step",
    "draft\ntime",
    "same\ntext",
)
EAGER_HEADINGS = (
    "plain\ntok/s",
    "compiled\n(quartiles)",
    "CPU\ntime",
    "and drafted\n(quartiles)",
    "CPU\ntime",
    "same\ntext",
)


def figures_table(content: dict[str, Any]) -> Table:
    """The groups of `bench.report.report`, a row each."""
    greedy = content["temperature"] == 0
    sampling = (
        f"greedy, {content['drafting']}"
        if greedy
        else f"T = {content['temperature']:g}, {content['verification']} verification"
        if content["seed"] is None
        else f"T = {content['temperature']:g}, seed {content['seed']}"
    )
    title = f"{content['model']}, {content['dtype']}, {sampling}, {content['max_new_tokens']} new tokens"
    caption = "medians over prompts: of tokens/s, and of each prompt's own ratio"
    caption += "\nplain and drafted decoding are both compiled" * content["compiled"]
    table = Table(title=title, caption=caption, box=box.SIMPLE, padding=(0, 1, 0, 0))
    table.add_column("kind\n(prompts)", overflow="fold")
    for name in HEADINGS:
        table.add_column(name, justify="right", no_wrap=True)
    for kind, group in (content["kinds"] | {"all": content["all"]}).items():
        same = "-" if group["identical"] is None else f"{group['identical_count']} of {group['prompts']}"
        table.add_row(
            escape(f"{kind} ({group['prompts']})"),
            f"{group['plain_tokens_per_second']:.1f}",
            f"{group['drafted_tokens_per_second']:.1f}",
            ratio_words(group),
            cpu_words(group),
            f"{group['mean_acceptance_length']:.2f}",
            f"{group['drafting_share']:.0%}",
            same,
        )
    return table


def eager_table(content: dict[str, Any]) -> Table:
    """What compiling brings alone and with drafts, against plain decoding not compiled; a row per group."""
    greedy = content["temperature"] == 0
    title = "times as fast as plain decoding that is not compiled"
    table = Table(title=title, box=box.SIMPLE, padding=(0, 1, 0, 0))
    table.add_column("kind", overflow="fold")
    for name in EAGER_HEADINGS:
        table.add_column(name, justify="right", no_wrap=True)
    for kind, group in (content["kinds"] | {"all": content["all"]}).items():
        eager = group["eager"]
        plain, drafted = eager["plain"], eager["drafted"]
        cells = [ratio_words(plain), cpu_words(plain), ratio_words(drafted), cpu_words(drafted)]
        same = f"{eager['identical_count']} of {group['prompts']}" if greedy else "-"
        table.add_row(escape(kind), f"{eager['tokens_per_second']:.1f}", *cells, same)
    return table

"""Figures of `polydraft bench --json`, as tables of a card, each below the command that made it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from polydraft.bench.words import ratio_words
from polydraft.errors import InputError

NEEDED = ("all", "kinds", "command", "dtype", "threads", "max_new_tokens", "temperature", "versions")
TOP = ["prompts", "number", "tokens a step", "times as fast, median (quartiles)", "same text"]
COMPILED = ["compiled over not", "compiled and drafted over not"]
NOTE = """\
Drafted against plain decoding, prompt by prompt in turn on one machine. Tokens a step are over all steps,
times as fast over single prompts. They hold for these prompts and that machine."""
BOTH = """\
Both are compiled; the last two columns compare plain and drafted decoding with plain decoding that is not."""


def read_bench(path: Path) -> dict[str, Any]:
    """The content of a benchmark's file.

    Raises:
        InputError: it is none, or an earlier version made it that compared compiled with eager decoding.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, IsADirectoryError) as error:
        raise InputError(f"{path}: no such file") from error
    except ValueError as error:
        raise InputError(f"{path}: not JSON") from error
    if not isinstance(found, dict) or any(name not in found for name in NEEDED):
        raise InputError(f"{path}: not a file of `polydraft bench --json`")
    if found.get("compiled") and not found["all"].get("eager"):
        raise InputError(
            f"{path}: made by an earlier version, which compared compiled drafting with plain decoding that "
            "is not compiled: run its command again"
        )
    return found


def figures(reports: Sequence[dict[str, Any]]) -> str:
    """The section on figures; empty without reports."""
    if not reports:
        return ""
    return "\n\n".join(["## Figures", NOTE, *(one(report) for report in reports)])


def one(report: dict[str, Any]) -> str:
    """The table of one benchmark."""
    greedy = report["temperature"] == 0
    how = "greedy" if greedy else f"sampled at T = {report['temperature']:g}"
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    threads = f"{report['threads']} thread{'s' * (report['threads'] > 1)}"
    compiled = report.get("compiled", False)
    heading = [*TOP, *COMPILED * compiled]
    rows = [row(name, group) for name, group in {**report["kinds"], "all": report["all"]}.items()]
    return "\n".join(
        [
            f"### {how[0].upper()}{how[1:]}{', compiled' * compiled}",
            "",
            f"```\n{report['command']}\n```",
            "",
            f"Up to {report['max_new_tokens']} tokens a prompt, {report['dtype']}, {threads}; {versions}.",
            *[BOTH] * compiled,
            "",
            *(f"| {' | '.join(line)} |" for line in (heading, ["---"] * len(heading), *rows)),
        ]
    )


def row(name: str, group: dict[str, Any]) -> list[str]:
    """The cells of a line of the table."""
    same = "-" if group["identical_count"] is None else f"{group['identical_count']} of {group['prompts']}"
    eager = group.get("eager") or {}
    return [
        name,
        str(group["prompts"]),
        f"{group['mean_acceptance_length']:.2f}",
        ratio_words(group),
        same,
        *(ratio_words(eager[way]) for way in ("plain", "drafted") if eager),
    ]

"""Figures of a comparison of peers, as JSON and as Markdown tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, median
from typing import Any

from lab.peers.contestants import PLAIN
from lab.peers.rounds import Setting
from polydraft.bench.report import spread_of, write_report
from polydraft.bench.words import ratio_words
from polydraft.files import write_atomic
from polydraft.versions import versions


def peer_report(
    rounds: Sequence[dict[str, Any]], *, settings: dict[str, Any], command: str
) -> dict[str, Any]:
    """Everything a comparison has to say, ready for JSON: a cell for every setting and kind of prompts.

    Args:
        rounds: of `Peers.run`. settings: of `Peers`.
    """
    keys = dict.fromkeys((r["setting"]["temperature"], r["setting"]["batch"], r["kind"]) for r in rounds)
    cells = []
    for temperature, batch, kind in sorted(keys, key=lambda key: key[:2]):
        setting = {"temperature": temperature, "batch": batch}
        chosen = [r for r in rounds if r["setting"] == setting and r["kind"] == kind]
        cells.append(setting | {"kind": kind} | peer_figures(chosen, like=settings["like"]))
    return {"cells": cells, "command": command, **settings, "versions": versions()}


def peer_figures(rounds: Sequence[dict[str, Any]], *, like: Mapping[str, str]) -> dict[str, Any]:
    """Figures over the rounds of one cell.

    tokens/s are the new tokens of all rows over the wall clock of the round, prompts included. `ratio` is the
    median over rounds of a contestant's tokens/s over those of plain decoding in the same round, and
    `ratio_per_round` has the quartiles; `cpu_ratio` is the same by CPU time, None where that is not known.
    `like` compares, in the same way, with the contestant that decodes alike but for the drafts.
    `tokens_per_step` is the mean over rounds. `same` counts the rows whose tokens are those of plain
    decoding, None when sampling, where none need be. Who missed a round that others ran stands in `left_out`,
    with the reason.

    Args:
        rounds: of one setting and kind.
        like: names of contestants that are compared with another than plain decoding, and which that is.
    """
    left_out = {name: why for one in rounds for name, why in one["left_out"].items()}
    names = [name for name in sorted_names(rounds) if name not in left_out]
    greedy = rounds[0]["setting"]["temperature"] == 0
    figures = {}
    for name in names:
        runs = [one["runs"][name] for one in rounds]
        figures[name] = {
            "tokens_per_second": median(_speed(run) for run in runs),
            **_ratios(rounds, name, PLAIN),
            "like": _ratios(rounds, name, like[name]) if like.get(name) in names else None,
            "tokens_per_step": mean(run["tokens_per_step"] for run in runs),
            "tokens": sum(map(_count, runs)),
            "same": sum(_same(one, name) for one in rounds) if greedy else None,
        }
    rows = sum(len(one["prompts"]) for one in rounds)
    return {"rounds": len(rounds), "rows": rows, "contestants": figures, "left_out": left_out}


def sorted_names(rounds: Sequence[dict[str, Any]]) -> list[str]:
    """Plain decoding, then the others by name: who began differs from round to round."""
    names = {name for one in rounds for name in one["runs"]}
    return [PLAIN, *sorted(names - {PLAIN})]


def peer_table(content: dict[str, Any]) -> list[list[str]]:
    """A heading and a row per cell: plain tokens/s, then the ratio of each and, in brackets, tokens per step.

    The largest ratio of a row is in bold; "-" stands where a contestant was left out.
    """
    names = [name for name, _ in content["contestants"] if name != PLAIN]
    rows = [["setting", "kind", "plain tokens/s", *names]]
    for cell in content["cells"]:
        figures = cell["contestants"]
        best = max(figures, key=lambda name: figures[name]["ratio"])
        row = [
            str(Setting(temperature=cell["temperature"], batch=cell["batch"])),
            cell["kind"],
            f"{figures[PLAIN]['tokens_per_second']:.1f}",
        ]
        for name in names:
            if name not in figures:
                row.append("-")
                continue
            ratio = f"{figures[name]['ratio']:.2f}"
            ratio = f"**{ratio}**" if name == best else ratio
            row.append(f"{ratio} ({figures[name]['tokens_per_step']:.2f})")
        rows.append(row)
    return rows


def like_table(content: dict[str, Any]) -> list[list[str]]:
    """A heading and a row per cell: contestants over the one that decodes alike but for the drafts.

    Medians and quartiles over rounds; empty where all are compared with plain decoding.
    """
    names = [name for name, _ in content["contestants"] if name in content["like"]]
    if not names:
        return []
    rows = [["setting", "kind", *names]]
    for cell in content["cells"]:
        setting = str(Setting(temperature=cell["temperature"], batch=cell["batch"]))
        found = [cell["contestants"].get(name, {}).get("like") for name in names]
        words = [
            "-" if one is None else ratio_words({"ratio_per_prompt": one["ratio_per_round"]}) for one in found
        ]
        rows.append([setting, cell["kind"], *words])
    return rows


def peer_notes(content: dict[str, Any]) -> list[str]:
    """Lines below the table: what the contestants are, and who was left out, where and why."""
    notes = [f"{name}: {about}" for name, about in content["contestants"]]
    missing: dict[tuple[str, str], None] = {}
    for cell in content["cells"]:
        setting = Setting(temperature=cell["temperature"], batch=cell["batch"])
        missing |= {(f"without {name} at {setting}", why): None for name, why in cell["left_out"].items()}
    return notes + [f"{what}: {why}" for what, why in missing]


def write_peer_report(content: dict[str, Any], out: Path) -> None:
    """Write `peers.json` and `peers.md` into the folder `out`."""
    write_report(content, out / "peers.json")
    parts = [_markdown(peer_table(content)), "\n".join(f"- {note}" for note in peer_notes(content))]
    if like := like_table(content):
        parts.append(f"Compiled drafting over the same compiled layers without drafts:\n\n{_markdown(like)}")
    write_atomic(out / "peers.md", "\n\n".join(parts) + "\n")


def _markdown(table: Sequence[Sequence[str]]) -> str:
    heading, *rows = table
    return "\n".join(f"| {' | '.join(line)} |" for line in (heading, ["---"] * len(heading), *rows))


def _ratios(rounds: Sequence[dict[str, Any]], name: str, other: str) -> dict[str, Any]:
    """Median and quartiles over rounds of the speed of `name` over that of `other`, in the same round."""
    pairs = [(one["runs"][name], one["runs"][other]) for one in rounds]
    wall = spread_of([_speed(run) / _speed(base) for run, base in pairs])
    known = all(run.get("cpu_seconds") is not None for pair in pairs for run in pair)
    cpu = [_speed(run, "cpu_seconds") / _speed(base, "cpu_seconds") for run, base in pairs] if known else None
    return {
        "ratio": wall["median"],
        "ratio_per_round": wall,
        "cpu_ratio": None if cpu is None else median(cpu),
    }


def _count(run: dict[str, Any]) -> int:
    return sum(map(len, run["tokens"]))


def _speed(run: dict[str, Any], clock: str = "seconds") -> float:
    return _count(run) / float(run[clock])


def _same(one: dict[str, Any], name: str) -> int:
    pairs = zip(one["runs"][name]["tokens"], one["runs"][PLAIN]["tokens"], strict=True)
    return sum(mine == plain for mine, plain in pairs)

"""A folder of shards that the base model wrote: its recipe, identical documents once, and what is in it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from polydraft.errors import InputError
from polydraft.files import write_atomic
from polydraft.heads.fingerprint import describe_base
from polydraft.textfiles import parse_json
from polydraft.versions import versions

OTHERS = {"base_model": "by another model", "prompts_hash": "of other prompts", "dtype": "in another dtype"}
"""How a difference is put into words; the rest are options, put as "with NAME OLD, not NEW"."""
LONGEST_PERIOD = 64
"""Tokens of the longest passage that `loop_length` looks for."""
SHORTEST_LOOP = 16
"""Tokens; what is shorter is no loop."""


def shard_path(folder: Path, index: int) -> Path:
    """The file of batch `index`."""
    return folder / f"shard-{index:05d}.jsonl"


def make_recipe(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[dict[str, Any]],
    options: dict[str, Any],
) -> dict[str, Any]:
    """What decides the text: the model and its generation config, dtype, prompts, options."""
    rows = hashlib.sha256(json.dumps(prompts, sort_keys=True).encode())
    settings: dict[str, Any] = {}
    if model.generation_config is not None:
        found = model.generation_config.to_diff_dict()
        settings = {k: v for k, v in found.items() if k[0] != "_" and k != "transformers_version"}
    return {
        "base_model": describe_base(model, tokenizer),
        "generation_config": settings,
        "dtype": str(model.dtype).removeprefix("torch."),
        "prompts_hash": rows.hexdigest()[:32],
    } | options


def record_recipe(folder: Path, recipe: dict[str, Any], run: dict[str, Any]) -> None:
    """Write `recipe.json`, unless the shards in `folder` were made by another one.

    Args:
        run: what may differ between runs and workers (command, ...); each that is new is added under
            `runs`, with the versions of what it ran on.

    Raises:
        InputError: another recipe, or shards without any; names what differs.
    """
    path = folder / "recipe.json"
    with FileLock(folder / ".lock"):
        runs: list[dict[str, Any]] = []
        if path.exists():
            old, new = parse_json(path.read_text(), where=str(path)), json.loads(json.dumps(recipe))
            for name in old.keys() & new.keys():
                if old[name] != new[name]:
                    words = OTHERS.get(name, f"with {name} {old[name]}, not {new[name]}")
                    raise InputError(f"{folder} holds shards {words}: choose another folder")
            runs = old.get("runs", [])
        elif any(folder.glob("shard-*.jsonl")):
            raise InputError(f"{folder} holds shards but no recipe.json: choose another folder")
        entry = json.loads(json.dumps(run | {"versions": versions()}))
        runs += [entry] * (entry not in runs)
        write_atomic(path, json.dumps(recipe | {"runs": runs}, indent=1) + "\n")


def read_shard(path: Path) -> list[dict[str, Any]]:
    """Rows of a shard.

    Raises:
        InputError: a line is damaged; names it.
    """
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except json.JSONDecodeError as error:
        raise InputError(f"{path} is damaged: remove it and run again, and it is made again") from error


def conclude(folder: Path, *, shards: int, documents: int) -> dict[str, Any] | None:
    """Once all shards are there: keep identical documents once, the first of all, and count.

    The outcome does not depend on the order in which shards were made, nor on which worker comes last.

    Args:
        shards: how many there are in the end. documents: written, identical ones included.

    Returns:
        What is also written to `summary.json`: documents kept, tokens written in them, identical documents
        dropped, and for each temperature the share of documents that were written to end in a loop
        (`is_loop`); these are kept, as far as `without_loop` left them. None while shards are missing.

    Raises:
        InputError: a shard is damaged.
    """
    paths = [shard_path(folder, index) for index in range(shards)]
    if not all(path.exists() for path in paths):
        return None
    with FileLock(folder / ".lock"):
        for stale in folder.glob(".shard-*"):  # of runs that were killed
            stale.unlink(missing_ok=True)
        seen: set[bytes] = set()
        tokens = 0
        loops: dict[float, list[bool]] = {}
        for path in paths:
            rows = read_shard(path)
            kept = [row for row in rows if _is_new(row["input_ids"], seen)]
            if len(kept) < len(rows):
                write_atomic(path, "".join(json.dumps(row) + "\n" for row in kept))
            for row in kept:
                written = row["input_ids"][row["prompt_length"] :]
                tokens += len(written)
                loops.setdefault(row["temperature"], []).append(row.get("looped", False) or is_loop(written))
        shares = {str(t): round(sum(found) / len(found), 4) for t, found in sorted(loops.items())}
        summary = {
            "documents": len(seen),
            "tokens": tokens,
            "identical": documents - len(seen),
            "looping": shares,
        }
        write_atomic(folder / "summary.json", json.dumps(summary, indent=1) + "\n")
        return summary


def describe_summary(summary: dict[str, Any]) -> str:
    """One line about what `conclude` found."""
    loops = ", ".join(f"{share:.1%} at temperature {t}" for t, share in summary["looping"].items())
    return (
        f"{summary['documents']:,} documents, {summary['tokens']:,} tokens written; "
        f"{summary['identical']:,} identical documents dropped; ending in a loop: {loops}"
    )


def _is_new(input_ids: Iterable[int], seen: set[bytes]) -> bool:
    digest = hashlib.sha256(json.dumps(input_ids).encode()).digest()[:16]
    if digest in seen:
        return False
    seen.add(digest)
    return True


def find_loop(tokens: Sequence[int]) -> tuple[int, int]:
    """(L, p): the last L tokens of a text are one passage of p tokens, three times or more; (0, 0) if none.

    The passage has p <= `LONGEST_PERIOD` tokens where the last m >= 2 p tokens equal those p before them;
    L is the largest m + p, and p the smallest that gives it.
    """
    found = (0, 0)
    for period in range(1, min(len(tokens) // 3, LONGEST_PERIOD) + 1):
        first = len(tokens)
        while first > period and tokens[first - 1] == tokens[first - 1 - period]:
            first -= 1
        length = len(tokens) - first + period
        if length >= 3 * period and length > found[0]:
            found = length, period
    return found


def loop_length(tokens: Sequence[int]) -> int:
    """L of `find_loop`."""
    return find_loop(tokens)[0]


def without_loop(row: dict[str, Any], *, passages: int) -> dict[str, Any]:
    """A row of a shard whose text ends with at most `passages` times the passage that it repeats to its end.

    A loop teaches a head nothing after that, and greedy text of small models has many. Those shorter than
    `SHORTEST_LOOP` tokens stay. A row whose text `is_loop` says so after the cut: `looped` is true.

    Args:
        passages: 0 leaves all rows as they are.
    """
    written = row["input_ids"][row["prompt_length"] :]
    length, period = find_loop(written)
    too_many = length - passages * period
    if not passages or length < SHORTEST_LOOP or too_many <= 0:
        return row
    cut = row | {"input_ids": row["input_ids"][:-too_many]}
    return cut | ({"looped": True} if is_loop(written) else {})


def is_loop(tokens: Sequence[int]) -> bool:
    """Whether a loop of `SHORTEST_LOOP` tokens or more makes up at least half of a text."""
    length = loop_length(tokens)
    return length >= SHORTEST_LOOP and 2 * length >= len(tokens)

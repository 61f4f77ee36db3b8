"""Figures of a benchmark, and the JSON file that keeps them."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from polydraft.bench.benchmark import Comparison
from polydraft.bench.runs import Run, Sampling
from polydraft.decoding.statistics import DecodingStatistics
from polydraft.errors import InputError
from polydraft.files import check_file, write_atomic
from polydraft.versions import versions

QUARTILES = {"min": 0.0, "q1": 0.25, "median": 0.5, "q3": 0.75, "max": 1.0}


def figures(results: Sequence[Comparison], *, greedy: bool) -> dict[str, Any]:
    """Figures over a group of prompts.

    `ratio` is what drafting brings, like for like: the median over prompts of drafted tokens/s over plain
    tokens/s of the same prompt; see `ratios`. `eager` compares both with plain decoding that is not compiled,
    see `against_eager`. Acceptance and `drafting_share` come from the steps of all prompts together.
    `identical` says whether every drafted run gave exactly the tokens of its plain run, `identical_count` for
    how many it did; both are None when sampling, where equal tokens are not to be expected.
    """
    same = sum(result.identical for result in results)
    return {
        "prompts": len(results),
        **ratios([(result.drafted, result.plain) for result in results]),
        "plain_tokens_per_second": median(result.plain.tokens_per_second for result in results),
        "drafted_tokens_per_second": median(result.drafted.tokens_per_second for result in results),
        "plain_tokens": sum(len(result.plain.tokens) for result in results),
        "drafted_run_tokens": sum(len(result.drafted.tokens) for result in results),
        "identical": same == len(results) if greedy else None,
        "identical_count": same if greedy else None,
        "eager": against_eager(results, greedy=greedy),
    } | DecodingStatistics.merged(result.statistics for result in results).to_dict()


def ratios(pairs: Sequence[tuple[Run, Run]]) -> dict[str, Any]:
    """How many times as fast the first of each pair is as the second: median and quartiles over pairs.

    `ratio` and `ratio_per_prompt` are by wall clock; `cpu_ratio` and `cpu_ratio_per_prompt` by CPU time, None
    where that is not known of all.
    """
    wall = spread_of([run.over(other) for run, other in pairs])
    known = [ratio for run, other in pairs if (ratio := run.cpu_over(other)) is not None]
    cpu = spread_of(known) if len(known) == len(pairs) else None
    return {
        "ratio": wall["median"],
        "ratio_per_prompt": wall,
        "cpu_ratio": None if cpu is None else cpu["median"],
        "cpu_ratio_per_prompt": cpu,
    }


def spread_of(values: Sequence[float]) -> dict[str, float]:
    """Least, quartiles and largest."""
    found = torch.tensor(values, dtype=torch.float64)
    return {name: float(found.quantile(share)) for name, share in QUARTILES.items()}


def against_eager(results: Sequence[Comparison], *, greedy: bool) -> dict[str, Any] | None:
    """Compiled decoding without drafts (`plain`) and with them (`drafted`), over plain decoding not compiled.

    None where nothing was compiled. `identical_count`: drafted texts that are those of eager decoding.
    """
    threes = [(result.plain, result.drafted, result.eager) for result in results if result.eager is not None]
    if not threes:
        return None
    return {
        "tokens_per_second": median(eager.tokens_per_second for *_, eager in threes),
        "tokens": sum(len(eager.tokens) for *_, eager in threes),
        "plain": ratios([(plain, eager) for plain, _, eager in threes]),
        "drafted": ratios([(drafted, eager) for _, drafted, eager in threes]),
        "identical_count": sum(drafted.tokens == eager.tokens for _, drafted, eager in threes)
        if greedy
        else None,
    }


def report(
    results: Sequence[Comparison],
    *,
    sampling: Sampling,
    model: str,
    head: str,
    dtype: torch.dtype,
    command: str,
) -> dict[str, Any]:
    """Everything a benchmark has to say, ready for JSON.

    `all` and `kinds` hold `figures`; prompts without a kind count in `all` only.
    """
    kinds = dict.fromkeys(result.prompt.kind for result in results if result.prompt.kind is not None)
    by_kind = {kind: [result for result in results if result.prompt.kind == kind] for kind in kinds}
    return {
        "all": figures(results, greedy=sampling.greedy),
        "kinds": {kind: figures(group, greedy=sampling.greedy) for kind, group in by_kind.items()},
        "command": command,
        **_settings(sampling, model=model, head=head, dtype=dtype),
        "per_prompt": [_row(result, greedy=sampling.greedy) for result in results],
    }


def _settings(sampling: Sampling, *, model: str, head: str, dtype: torch.dtype) -> dict[str, Any]:
    return {
        "model": model,
        "head": head,
        "dtype": str(dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        **asdict(sampling),
        "stop": list(sampling.stop),
        "versions": versions(),
    }


def _row(result: Comparison, *, greedy: bool) -> dict[str, Any]:
    row: dict[str, Any] = {"id": result.prompt.where, "kind": result.prompt.kind}
    for name, run in (("plain", result.plain), ("drafted", result.drafted), ("eager", result.eager)):
        if run is not None:
            tokens = "drafted_run_tokens" if name == "drafted" else f"{name}_tokens"
            row |= {
                tokens: len(run.tokens),
                f"{name}_tokens_per_second": run.tokens_per_second,
                f"{name}_cpu_seconds": run.cpu_seconds,
            }
    return row | {
        "ratio": result.ratio,
        "mean_acceptance_length": result.statistics.mean_acceptance_length,
        "identical": result.identical if greedy else None,
        "first_difference": result.first_difference if greedy else None,
    }


def check_writable(path: Path) -> None:
    """Make sure that a result can be kept at `path`, before the work that makes it.

    Raises:
        InputError: its folder is missing or not writable, or `path` is a folder or a device.
    """
    check_file(path)
    if not path.parent.is_dir():
        raise InputError(f"cannot write {path}: the folder {path.parent} does not exist")
    if not os.access(path.parent, os.W_OK):
        raise InputError(f"cannot write {path}: the folder {path.parent} is not writable")


def write_report(content: dict[str, Any], path: Path) -> None:
    """Write `content` as JSON, whole or not at all."""
    write_atomic(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def answer(
    drafted: Run,
    compared: Comparison | None,
    *,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    prompt_tokens: int,
    sampling: Sampling,
    model: str,
    head: str,
    dtype: torch.dtype,
) -> dict[str, Any]:
    """One drafted generation, ready for JSON; with what plain decoding gave, if it ran too.

    `ratio` is like for like, `ratio_to_eager` to plain decoding that is not compiled, where this one is.
    `identical` says whether both gave the same tokens. When sampling they need not: both draw from the
    same distribution, not the same text.
    """
    assert drafted.statistics is not None
    out: dict[str, Any] = {
        "prompt": prompt,
        "text": tokenizer.decode(drafted.tokens, skip_special_tokens=True),
        "prompt_tokens": prompt_tokens,
        "new_tokens": len(drafted.tokens),
        "seconds": drafted.seconds,
        "tokens_per_second": drafted.tokens_per_second,
    }
    out |= drafted.statistics.to_dict()
    if compared is not None:
        plain, eager = compared.plain, compared.eager
        out |= {
            "plain_text": tokenizer.decode(plain.tokens, skip_special_tokens=True),
            "plain_new_tokens": len(plain.tokens),
            "plain_tokens_per_second": plain.tokens_per_second,
            "ratio": compared.ratio,
            "identical": compared.identical,
            "eager_tokens_per_second": None if eager is None else eager.tokens_per_second,
            "ratio_to_eager": None if eager is None else drafted.over(eager),
        }
    return out | _settings(sampling, model=model, head=head, dtype=dtype)

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
from polydraft.files import write_atomic
from polydraft.versions import versions

QUARTILES = {"min": 0.0, "q1": 0.25, "median": 0.5, "q3": 0.75, "max": 1.0}


def figures(results: Sequence[Comparison], *, greedy: bool) -> dict[str, Any]:
    """Figures over a group of prompts.

    `ratio` is the median over prompts of drafted tokens/s, divided by the median over prompts of plain
    tokens/s; `ratio_per_prompt` gives the quartiles of the ratios of single prompts. Acceptance and
    `drafting_share` come from the steps of all prompts together. `identical` says whether every
    drafted run gave exactly the tokens of its plain run, `identical_count` for how many it did; both
    are None when sampling, where equal tokens are not to be expected.
    """
    plain = median(result.plain.tokens_per_second for result in results)
    drafted = median(result.drafted.tokens_per_second for result in results)
    ratios = torch.tensor([result.ratio for result in results], dtype=torch.float64)
    same = sum(result.identical for result in results)
    return {
        "prompts": len(results),
        "ratio": drafted / plain,
        "ratio_per_prompt": {name: float(ratios.quantile(share)) for name, share in QUARTILES.items()},
        "plain_tokens_per_second": plain,
        "drafted_tokens_per_second": drafted,
        "plain_tokens": sum(len(result.plain.tokens) for result in results),
        "drafted_run_tokens": sum(len(result.drafted.tokens) for result in results),
        "identical": same == len(results) if greedy else None,
        "identical_count": same if greedy else None,
    } | DecodingStatistics.merged(result.statistics for result in results).to_dict()


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
    return {
        "id": result.prompt.where,
        "kind": result.prompt.kind,
        "plain_tokens": len(result.plain.tokens),
        "drafted_run_tokens": len(result.drafted.tokens),
        "plain_tokens_per_second": result.plain.tokens_per_second,
        "drafted_tokens_per_second": result.drafted.tokens_per_second,
        "ratio": result.ratio,
        "mean_acceptance_length": result.statistics.mean_acceptance_length,
        "identical": result.identical if greedy else None,
        "first_difference": result.first_difference if greedy else None,
    }


def check_writable(path: Path) -> None:
    """Make sure that a result can be kept at `path`, before the work that makes it.

    Raises:
        InputError: its folder is missing or not writable, or `path` is a folder.
    """
    if path.is_dir():
        raise InputError(f"{path} is a folder: give a file name")
    if not path.parent.is_dir():
        raise InputError(f"cannot write {path}: the folder {path.parent} does not exist")
    if not os.access(path.parent, os.W_OK):
        raise InputError(f"cannot write {path}: the folder {path.parent} is not writable")


def write_report(content: dict[str, Any], path: Path) -> None:
    """Write `content` as JSON, whole or not at all."""
    write_atomic(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def answer(
    drafted: Run,
    plain: Run | None,
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
    if plain is not None:
        out |= {
            "plain_text": tokenizer.decode(plain.tokens, skip_special_tokens=True),
            "plain_new_tokens": len(plain.tokens),
            "plain_tokens_per_second": plain.tokens_per_second,
            "ratio": drafted.tokens_per_second / plain.tokens_per_second,
            "identical": plain.tokens == drafted.tokens,
        }
    return out | _settings(sampling, model=model, head=head, dtype=dtype)

"""Trained heads, each drafting chains of its horizon, and plain decoding on the wall clock, in turn.

    python -m lab.benchmarks.time_heads --tokens 64 --out docs/results/time-heads.json \
        runs/release/fused-markov runs/release/block-markov

Ratios are medians over prompts of tokens per second against the plain run, and against the first head, of the
same round.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import median
from typing import Any

import torch

from lab.benchmarks.common import save, table
from polydraft.bench.prompts import prompts_path, read_prompts
from polydraft.bench.runs import Run, Sampling, run_drafted, run_plain
from polydraft.loading import load_head, load_model, set_threads


def figures(name: str, runs: list[Run], plain: list[Run], first: list[Run]) -> dict[str, Any]:
    """The row of one head."""
    speeds, base, other = ([run.tokens_per_second for run in rows] for rows in (runs, plain, first))
    steps = sum(run.statistics.steps for run in runs if run.statistics is not None)
    return {
        "head": Path(name).name,
        "tokens_per_second": round(median(speeds), 2),
        "against_plain": round(median(a / b for a, b in zip(speeds, base, strict=True)), 3),
        "against_first": round(median(a / b for a, b in zip(speeds, other, strict=True)), 3),
        "tokens_per_step": round(sum(len(run.tokens) - 1 for run in runs) / steps, 3),
    }


def main() -> None:
    """Time all, print and save the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("heads", nargs="+", help="folders or names")
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--prompts", default="heldout")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    set_threads(given.threads)
    model, tokenizer = load_model(given.model, dtype=torch.bfloat16)
    heads = {name: load_head(name, model=model, tokenizer=tokenizer) for name in given.heads}
    longest = max(head.config.horizon for head in heads.values())
    sampling = Sampling(
        max_new_tokens=given.tokens,
        temperature=given.temperature,
        drafting="chain",
        draft_length=longest,
    )
    prompts = [prompt.encode(tokenizer) for prompt in read_prompts(prompts_path(given.prompts))]
    run_plain(model, tokenizer, prompts[0], sampling)  # warms up
    plain: list[Run] = []
    drafted: dict[str, list[Run]] = {name: [] for name in heads}
    for ids in prompts:
        plain.append(run_plain(model, tokenizer, ids, sampling))
        for name, head in heads.items():
            drafted[name].append(run_drafted(model, head, tokenizer, ids, sampling))
    first = drafted[given.heads[0]]
    rows = [figures(name, runs, plain, first) for name, runs in drafted.items()]
    save(given.out, settings=vars(given), rows=rows)
    print(table(rows))


if __name__ == "__main__":
    main()

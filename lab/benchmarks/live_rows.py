"""What drafting is worth in a live batch, by the number of texts decoded together.

    python -m lab.benchmarks.live_rows --model smollm2-135m-instruct --head smollm2-135m-instruct \
        --rows 1 4 8 16 32 --temperatures 0 0.8 --rounds 6 --json out.json

Two batches of the same size take turns, one that drafts as a server does and one that never drafts. In a
round each holds R texts, every one that ends replaced by the next, until R times `--tokens` tokens are
written; both write the same texts, in an order of prompts that moves on from round to round. The figure of a
round is tokens per CPU second of this thread, so that other work on the machine disturbs little; prompts are
part of it. A line has the medians, and the median of the ratios of rounds with their quartiles.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import torch

from lab.benchmarks.common import quartiles, save, table
from polydraft.bench.prompts import prompts_path, read_prompts
from polydraft.decoding import DecodingStatistics, LiveBatch, LiveRow, new_row
from polydraft.decoding.plan import Plan
from polydraft.loading import load_head, load_model, parse_dtype

LENGTHS = {"drafted": None, "plain": 0}
"""Draft lengths of the two batches; None picks the fastest number."""


class Side:
    """A batch, and the texts that are waiting for it.

    Args:
        rows: texts at once. prompts: token ids, taken in turn without end. options: of `new_row`.
    """

    def __init__(
        self, batch: LiveBatch, prompts: Sequence[Sequence[int]], *, rows: int, **options: Any
    ) -> None:
        self._batch = batch
        self._rows = rows
        self._options = options
        self._prompts = prompts
        self._number: Iterator[int] = count()
        self.statistics = DecodingStatistics()

    def _next(self) -> LiveRow:
        number = next(self._number)
        return new_row(self._prompts[number % len(self._prompts)], seed=number, **self._options)

    def round(self, tokens: int) -> float:
        """Write that many tokens or a few more, all rows at work; tokens per CPU second."""
        rows: list[LiveRow] = []
        began = time.thread_time()
        while sum(len(row.origins) for row in rows) < tokens:
            new = [self._next() for _ in range(self._rows - len(self._batch.active))]
            rows += new
            self._batch.admit(new)
            self._batch.step()
        seconds = time.thread_time() - began
        for row in rows:
            self._batch.drop(row)
        self.statistics = DecodingStatistics.merged([self.statistics, *(row.statistics for row in rows)])
        return sum(len(row.origins) for row in rows) / seconds


def main() -> None:
    """Run and write the figures."""
    parser = argparse.ArgumentParser(description="Drafting in a live batch, by its number of texts.")
    parser.add_argument("--model", required=True)
    parser.add_argument("--head", required=True)
    parser.add_argument("--prompts", default="validation")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 4, 8, 16, 32])
    parser.add_argument("--capacity", type=int, help="of the batches; as many texts as they hold if None")
    parser.add_argument("--temperatures", type=float, nargs="+", default=[0.0, 0.8])
    parser.add_argument("--tokens", type=int, default=64, help="of a text")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--compile", action="store_true", dest="compiled")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    model, tokenizer = load_model(given.model, dtype=parse_dtype(given.dtype))
    head = load_head(given.head, model=model, tokenizer=tokenizer)
    prompts = [prompt.encode(tokenizer) for prompt in read_prompts(prompts_path(given.prompts))]
    lines = []
    for size in given.rows:
        plans = {name: Plan(compiled=given.compiled, draft_length=length) for name, length in LENGTHS.items()}
        batches = {
            name: LiveBatch(model, head, rows=given.capacity or size, plan=plan)
            for name, plan in plans.items()
        }
        for temperature in given.temperatures:
            sides = {
                name: Side(
                    batch,
                    prompts,
                    rows=size,
                    device=model.device,
                    max_new_tokens=given.tokens,
                    temperature=temperature,
                )
                for name, batch in batches.items()
            }
            found: dict[str, list[float]] = {name: [] for name in sides}
            for number in range(given.rounds + 1):
                order = list(sides) if number % 2 else list(sides)[::-1]
                for name in order:
                    speed = sides[name].round(size * (given.tokens if number else 8))
                    if number:  # the first one warms up
                        found[name].append(speed)
            ratios = quartiles([d / p for d, p in zip(found["drafted"], found["plain"], strict=True)])
            statistics = sides["drafted"].statistics
            lines.append(
                {
                    "rows": size,
                    "T": temperature,
                    "drafted": round(quartiles(found["drafted"])["median"], 1),
                    "plain": round(quartiles(found["plain"])["median"], 1),
                    **{name: round(value, 3) for name, value in ratios.items()},
                    "tokens_a_step": round(statistics.mean_acceptance_length, 3),
                    "drafts_a_step": round(statistics.drafted_tokens / max(statistics.steps, 1), 2),
                }
            )
            print(lines[-1], flush=True)
    print(table(lines))
    if given.json is not None:
        save(given.json, settings={k: v for k, v in vars(given).items() if k != "json"}, rows=lines)


if __name__ == "__main__":
    main()

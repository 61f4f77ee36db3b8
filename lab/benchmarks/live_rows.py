"""What drafting is worth in a live batch, by the number of texts decoded together.

    python -m lab.benchmarks.live_rows --model smollm2-135m-instruct --head smollm2-135m-instruct \
        --rows 1 4 8 16 32 --temperatures 0 0.8 --rounds 6 --json out.json

Two batches of the same size, one that drafts as a server does and one that never drafts, take turns step by
step: the next step is that of the batch that has written less. So whatever else the machine does disturbs
both alike. Each holds R texts, every one that ends replaced by the next; both write the same texts, of
`--tokens` tokens on average, from half of it to one and a half. A round is R times `--tokens` tokens of each
batch, its figure tokens per CPU second of this thread; prompts are part of it. A line has the medians over
rounds, and the median of their ratios with quartiles.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
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
        rows: texts at once. prompts: token ids, taken in turn without end. tokens: of a text, on average.
        options: of `new_row`.
    """

    def __init__(
        self,
        batch: LiveBatch,
        prompts: Sequence[Sequence[int]],
        *,
        rows: int,
        tokens: int,
        **options: Any,
    ) -> None:
        self._batch = batch
        self._rows = rows
        self._tokens = tokens
        self._options = options
        self._prompts = prompts
        self._number = count()
        self._texts: list[LiveRow] = []
        self.seconds = 0.0

    def _next(self) -> LiveRow:
        number = next(self._number)
        length = self._tokens // 2 + number * 29 % (self._tokens + 1)
        prompt = self._prompts[number % len(self._prompts)]
        return new_row(prompt, seed=number, max_new_tokens=length, **self._options)

    def step(self) -> None:
        """Fill the batch and take a step, on the clock."""
        began = time.thread_time()
        new = [self._next() for _ in range(self._rows - len(self._batch.active))]
        self._texts += new
        self._batch.admit(new)
        self._batch.step()
        self.seconds += time.thread_time() - began

    @property
    def written(self) -> int:
        """Tokens so far."""
        return sum(len(row.origins) for row in self._texts)

    @property
    def statistics(self) -> DecodingStatistics:
        """Counts of all texts so far."""
        return DecodingStatistics.merged([row.statistics for row in self._texts])

    def end(self) -> None:
        """Drop what is at work."""
        for row in self._texts:
            self._batch.drop(row)


def round_of(sides: Sequence[Side], tokens: int) -> list[float]:
    """Let each side write `tokens` tokens or a few more, in turn; tokens per CPU second of each."""
    before = [(side.written, side.seconds) for side in sides]
    written = [0] * len(sides)
    while min(written) < tokens:
        least = min(range(len(sides)), key=written.__getitem__)
        sides[least].step()
        written[least] = sides[least].written - before[least][0]
    return [
        done / (side.seconds - seconds)
        for done, side, (_, seconds) in zip(written, sides, before, strict=True)
    ]


def main() -> None:
    """Run and write the figures."""
    parser = argparse.ArgumentParser(description="Drafting in a live batch, by its number of texts.")
    parser.add_argument("--model", required=True)
    parser.add_argument("--head", required=True)
    parser.add_argument("--prompts", default="validation")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 4, 8, 16, 32])
    parser.add_argument("--capacity", type=int, help="of the batches; the number of texts if None")
    parser.add_argument("--temperatures", type=float, nargs="+", default=[0.0, 0.8])
    parser.add_argument("--tokens", type=int, default=64, help="of a text, on average")
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
                    tokens=given.tokens,
                    device=model.device,
                    temperature=temperature,
                )
                for name, batch in batches.items()
            }
            found: dict[str, list[float]] = {name: [] for name in sides}
            for number in range(given.rounds + 1):
                speeds = round_of(list(sides.values()), size * given.tokens)
                for name, speed in zip(sides, speeds, strict=True):
                    if number:  # the first round fills the batches and warms up
                        found[name].append(speed)
            ratios = quartiles([d / p for d, p in zip(found["drafted"], found["plain"], strict=True)])
            statistics = sides["drafted"].statistics
            for side in sides.values():
                side.end()
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

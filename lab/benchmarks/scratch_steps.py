"""What one training step of the from-scratch study takes, model and head together, by size, rank and horizon.

    python scripts/make_corpora.py --prose DIR
    OMP_WAIT_POLICY=PASSIVE python -m lab.benchmarks.scratch_steps --threads 1 --out scratch_steps.json

A step is that of lab/configs/scratch-prose.toml: 8 windows of 128 tokens, 16 positions of each for the head;
forward, backward and optimiser, in float32 or under bfloat16 autocast. A round is one step of every
setting, in an order that rotates; figures are medians over rounds, in ms and as ratios to the same model's
step at rank 1 and horizon 4 of the same round. `bare` is the model without a head: its own next-token loss
alone.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from rich.progress import track
from torch import Tensor

from lab.benchmarks.common import quartiles, save, table
from polydraft.training.data import collate, read_documents, windows
from polydraft.training.objective import Objective
from polydraft.training.options import TrainOptions
from polydraft.training.run import head_config
from polydraft.training.scratch import own_tokenizer, scratch_model
from polydraft.training.start import new_head
from polydraft.training.trunk import Trunk

REFERENCE = (1, 4)
"""Rank and horizon that ratios are to."""


class Step:
    """A training step of one setting; `rank` 0 trains the model alone."""

    def __init__(
        self, size: str, rank: int, horizon: int, *, precision: str, given: argparse.Namespace
    ) -> None:
        self.size, self.rank, self.horizon, self.precision = size, rank, horizon, precision
        source = given.corpus / size
        tokenizer = own_tokenizer(source)
        model = scratch_model(source, tokenizer, seed=0, dtype=torch.float32)
        options = TrainOptions(
            trunk="scratch",
            joint="cp",
            rank=max(rank, 1),
            horizon=horizon,
            features="hidden",
            map_rank=0,
            loss="joint",
            balance=0.01,
        )
        text = windows(read_documents([given.corpus / "test.jsonl"], tokenizer), max_length=given.length)
        self.batch: dict[str, Tensor] = collate([vars(window) for window in text[: given.windows]])
        self.trunk = Trunk(model, options, held_out=text[:1])
        self.head = new_head(
            head_config(options, model), model, tokenizer, text, init_from=None, block_start="random"
        )
        self.objective = Objective(
            self.head, model, weights=options.weights, anchors_per_window=given.anchors, trunk=self.trunk
        ).train()
        learnt = self.objective if rank else self.trunk
        self.parameters = [p for p in learnt.parameters() if p.requires_grad]
        self.optimiser = torch.optim.AdamW(self.parameters, lr=1e-4, fused=True)

    def __call__(self) -> float:
        """Take one; seconds."""
        began = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=self.precision == "bf16"):
            loss = self.objective(self.batch).loss if self.rank else self._bare()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimiser.step()
        self.optimiser.zero_grad()
        return time.perf_counter() - began

    def _bare(self) -> Tensor:
        return self.trunk.loss(self.trunk(self.head, self.batch), self.batch)


def settings(given: argparse.Namespace) -> list[Step]:
    """All that are timed; larger models at the reference horizon and rank 4 alone."""
    found = [Step("1m", 0, REFERENCE[1], precision="no", given=given)]
    for horizon in given.horizons:
        found += [Step("1m", rank, horizon, precision="no", given=given) for rank in given.ranks]
    for size in given.sizes:
        found += [Step(size, rank, REFERENCE[1], precision="bf16", given=given) for rank in (0, 1, 4)]
    return found


def main() -> None:
    """Time them all, print and write the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--corpus", type=Path, default=Path("runs/corpora/prose"), help="of make_corpora.py")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--horizons", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--sizes", nargs="*", default=["4m", "16m"])
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--anchors", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    steps = settings(given)
    for step in steps:
        step()
    seconds: list[list[float]] = [[] for _ in steps]
    for number in track(range(given.rounds), description="rounds"):
        for place in range(len(steps)):
            index = (place + number) % len(steps)
            seconds[index].append(steps[index]())
    rows: list[dict[str, Any]] = []
    for step, own in zip(steps, seconds, strict=True):
        (base,) = [
            s
            for other, s in zip(steps, seconds, strict=True)
            if (other.size, other.rank, other.horizon) == (step.size, *REFERENCE)
        ]
        ratios = quartiles([a / b for a, b in zip(own, base, strict=True)])
        rows.append(
            {
                "model": step.size,
                "precision": "float32" if step.precision == "no" else "bfloat16",
                "rank": step.rank or "bare",
                "n": step.horizon if step.rank else "-",
                "ms": round(1000 * quartiles(own)["median"]),
                "ratio": round(ratios["median"], 2),
                "q1": round(ratios["q1"], 2),
                "q3": round(ratios["q3"], 2),
            }
        )
    print(table(rows))
    if given.out:
        save(given.out, settings=vars(given), rows=rows)


if __name__ == "__main__":
    main()

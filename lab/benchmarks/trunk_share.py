"""What head-only training keeps of the speed of its frozen base model's forward.

    OMP_WAIT_POLICY=PASSIVE python -m lab.benchmarks.trunk_share --threads 1 --out trunk_share.json

On the same windows of tokens, in turn: the base model's forward without a cache, to its last hidden states
and with the unembedding of all positions; and whole training steps, that is the same forward, the base
model's rows, the loss of the head with its gradients, and the optimiser. Positions per second are all
positions of the windows, for a step too; `anchors` of each window are learnt from (0: all), drawn at random
as in training. `share` is the forward's time over the step's, of the same round. All tokens can be drafted,
so every target counts. Two clocks: wall time, and the process's own CPU time, which other processes on the
machine do not stretch. The picture shows where the CPU time of a step goes.
"""

from __future__ import annotations

import argparse
import io
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor
from transformers import PreTrainedModel

from lab.benchmarks.common import quartiles, random_head, save, table
from polydraft.files import write_atomic
from polydraft.heads import DraftHead
from polydraft.loading import load_model
from polydraft.training.anchors import build_anchors
from polydraft.training.losses import head_losses
from polydraft.training.options import TrainOptions
from polydraft.training.weights import LOSSES

PARTS = ("forward", "rows", "loss", "optimiser")
"""Of a step: the base model's forward as timed alone, what more its hidden states and rows cost, ..."""


class Clock:
    """Seconds of wall and CPU time, by name."""

    def __init__(self) -> None:
        self.wall: dict[str, float] = {}
        self.cpu: dict[str, float] = {}

    @contextmanager
    def over(self, name: str) -> Iterator[None]:
        """Time what happens inside."""
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        self.wall[name] = time.perf_counter() - wall
        self.cpu[name] = time.process_time() - cpu


class Step:
    """A training step of one head, in the parts that are timed."""

    def __init__(
        self, model: PreTrainedModel, head: DraftHead, *, loss: str, anchors: int, mixed: bool
    ) -> None:
        self.model, self.head = model, head.train()
        self.weights, self.anchors, self.mixed = LOSSES[loss], anchors, mixed
        self.optimiser = torch.optim.AdamW(head.parameters(), lr=1e-4, weight_decay=0.0)

    def __call__(self, batch: dict[str, Tensor], clock: Clock) -> None:
        """Learn from the batch."""
        with clock.over("rows"):
            teacher = self.weights.needs_teacher
            anchors = build_anchors(self.head, self.model, batch, teacher=teacher, most=self.anchors)
        with clock.over("loss"):
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.mixed):
                total = head_losses(self.head, anchors, self.weights).total
            (total / (batch["labels"] != -100).sum()).backward()
        with clock.over("optimiser"):
            torch.nn.utils.clip_grad_norm_(self.head.parameters(), 1.0)
            self.optimiser.step()
            self.optimiser.zero_grad()


@torch.no_grad()
def forwards(model: PreTrainedModel, batch: dict[str, Tensor], clock: Clock) -> None:
    """The base model alone."""
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    with clock.over("forward"):
        model.get_decoder()(**inputs, use_cache=False)
    with clock.over("with unembedding"):
        model(**inputs, use_cache=False)


def windows(options: argparse.Namespace) -> dict[str, Tensor]:
    """Windows of random tokens that can be drafted."""
    ids = torch.randint(options.draft_vocab_size, (options.windows, options.length))
    return {"input_ids": ids, "labels": ids, "attention_mask": torch.ones_like(ids)}


def row(
    name: dict[str, Any], step: Sequence[Clock], alone: Sequence[Clock], positions: int
) -> dict[str, Any]:
    """The figures of one cell, from its clocks and those of the forward in the same rounds."""
    found: dict[str, Any] = dict(name)
    for clock in ("wall", "cpu"):
        spent = [getattr(c, clock) for c in step]
        totals = [sum(parts.values()) for parts in spent]
        found[f"positions_per_{clock}_second"] = round(positions / quartiles(totals)["median"])
        for what in ("forward", "with unembedding"):
            shares = quartiles([getattr(a, clock)[what] / t for a, t in zip(alone, totals, strict=True)])
            label = f"{clock}_share" + ("_of_logits" if what != "forward" else "")
            found |= {label: round(shares["median"], 3)}
            if what == "forward":
                found |= {f"{label}_{end}": round(shares[end], 3) for end in ("q1", "q3")}
    forward = quartiles([a.cpu["forward"] for a in alone])["median"]
    found |= {f"{part}_ms": quartiles([c.cpu[part] for c in step])["median"] for part in PARTS[1:]}
    found |= {"forward_ms": forward, "rows_ms": max(found["rows_ms"] - forward, 0.0)}
    return found | {f"{part}_ms": round(1e3 * found[f"{part}_ms"] / positions, 4) for part in PARTS}


def plot(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """CPU time of a position by part, a bar a cell; the line is where half of the forward's speed is left."""
    figure = Figure(figsize=(8, 0.45 * len(rows) + 1.5), layout="constrained")
    FigureCanvasAgg(figure)
    panel = figure.subplots()
    names = [
        f"{r['joint']} r={r['rank']}, {r['anchors'] or 'all'} anchors{', bf16' if r['mixed'] else ''}"
        for r in rows
    ]
    left = [0.0] * len(rows)
    for part in PARTS:
        widths = [r[f"{part}_ms"] for r in rows]
        panel.barh(names, widths, left=left, label=part)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    panel.axvline(2 * rows[0]["forward_ms"], color="grey", linestyle="--")
    panel.invert_yaxis()
    panel.set_xlabel("CPU milliseconds per position")
    panel.legend()
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=120)
    write_atomic(path, picture.getvalue())


def main() -> None:
    """Run all rounds, then print, save and plot the figures."""
    defaults = TrainOptions()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--members", nargs="+", default=["markov", "cp"])
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--horizon", type=int, default=4)
    parser.add_argument("--draft-vocab-size", type=int, default=8192)
    parser.add_argument("--loss", choices=LOSSES, default="distill")
    parser.add_argument("--windows", type=int, default=defaults.batch_size)
    parser.add_argument("--length", type=int, default=defaults.max_length)
    parser.add_argument("--anchors", type=int, nargs="+", default=[64, 128], help="of a window; 0 is all")
    parser.add_argument("--mixed-precision", nargs="+", choices=("no", "bf16"), default=["no"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("trunk_share.json"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    model = load_model(options.model, dtype=torch.bfloat16)[0].requires_grad_(False).eval()
    batch = windows(options)
    steps = {}
    for joint in options.members:
        head = random_head(
            model,
            joint=joint,
            rank=options.rank,
            horizon=options.horizon,
            draft_vocab_size=options.draft_vocab_size,
            feature_size=defaults.feature_size,
            map_rank=defaults.map_rank,
            markov_rank=defaults.markov_rank,
        )
        for anchors in options.anchors:
            for precision in options.mixed_precision:
                name = (joint, head.config.rank, anchors, precision == "bf16")
                steps[name] = Step(model, head, loss=options.loss, anchors=anchors, mixed=name[3])
    alone: list[Clock] = []
    found: dict[tuple[str, int, int, bool], list[Clock]] = {name: [] for name in steps}
    for done in range(options.rounds + 1):
        if done == 1:  # the first round is a warm-up
            alone.clear()
            for clocks in found.values():
                clocks.clear()
        alone.append(Clock())
        forwards(model, batch, alone[-1])
        for name, step in steps.items():
            found[name].append(Clock())
            step(batch, found[name][-1])
    positions = batch["input_ids"].numel()
    keys = ("joint", "rank", "anchors", "mixed")
    rows = [
        row(dict(zip(keys, name, strict=True)), clocks, alone, positions) for name, clocks in found.items()
    ]
    save(options.out, settings=vars(options), rows=rows)
    plot(rows, options.out.with_suffix(".png"))
    print(table(rows))


if __name__ == "__main__":
    main()

"""Anchors per second of a head-only training step, by member, rank and horizon.

    OMP_WAIT_POLICY=PASSIVE python -m lab.benchmarks.training_speed --threads 1 --out training_speed.json

One step is `head_losses` and its backward pass over `--anchors` positions with cached hidden states: no
forward of the base model, no optimiser. Weights, hidden states and targets are random. Two clocks: wall
time, and the process's own CPU time, which other processes on the machine do not stretch.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch

from lab.benchmarks.common import quartiles, random_anchors, random_base, random_head, save, table
from polydraft.heads import DraftHead
from polydraft.training.losses import Anchors, head_losses
from polydraft.training.weights import LOSSES

RANKS = (1, 2, 4, 8, 16, 32)
MEMBERS = ("cp", "hmm", "tree", "markov", "cp-markov")


def step(head: DraftHead, anchors: Anchors, loss: str) -> tuple[float, float]:
    """Seconds of one step: wall, CPU."""
    wall, cpu = time.perf_counter(), time.process_time()
    head.zero_grad(set_to_none=True)
    head_losses(head, anchors, LOSSES[loss]).total.backward()
    return time.perf_counter() - wall, time.process_time() - cpu


def measure(head: DraftHead, anchors: Anchors, *, loss: str, rounds: int) -> dict[str, Any]:
    """Anchors per second, medians over `rounds` steps after one to warm up."""
    step(head, anchors, loss)
    wall, cpu = zip(*(step(head, anchors, loss) for _ in range(rounds)), strict=True)
    count = len(anchors.hidden)
    return {
        "joint": head.config.joint,
        "rank": head.config.rank,
        "horizon": head.config.horizon,
        "anchors_per_second": round(count / quartiles(wall)["median"], 1),
        "anchors_per_cpu_second": round(count / quartiles(cpu)["median"], 1),
    }


def main() -> None:
    """Run every cell and print each as it is done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--anchors", type=int, default=256)
    parser.add_argument("--horizons", type=int, nargs="+", default=[4, 8])
    parser.add_argument("--ranks", type=int, nargs="+", default=RANKS, help="of the canonical member")
    parser.add_argument("--member-rank", type=int, default=8, help="rank at which members are compared")
    parser.add_argument("--draft-vocab-size", type=int, default=8192)
    parser.add_argument("--loss", choices=LOSSES, default="distill")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("training_speed.json"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    base = random_base(576, 49152)
    rows = []
    for horizon in options.horizons:
        cells = [("cp", rank) for rank in options.ranks]
        cells += [
            (joint, options.member_rank) for joint in MEMBERS if (joint, options.member_rank) not in cells
        ]
        for joint, rank in cells:
            head = random_head(
                base,
                joint=joint,
                rank=rank,
                horizon=horizon,
                draft_vocab_size=options.draft_vocab_size,
                feature_size=2304,
                map_rank=128,
            )
            anchors = random_anchors(head, options.anchors)
            rows.append(measure(head, anchors, loss=options.loss, rounds=options.rounds))
            print(rows[-1], flush=True)
    save(options.out, settings=vars(options), rows=rows)
    print(table(rows))


if __name__ == "__main__":
    main()

"""Peak memory of one training step over the weights, and what the loss costs in other forms.

    python -m lab.benchmarks.training_memory peak --hidden-size 576 --anchors 64 256 1024 --out peak.json
    python -m lab.benchmarks.training_memory forms --out forms.json

`peak`: `head_losses` and its backward pass with r = 32, n = 8 and a draft vocabulary of 131072 tokens, hidden
states and weights random. Every figure is from a process of its own: the most anonymous memory it holds in
the step, less what it holds when the weights (head, embedding = unembedding, U') and the hidden states are
there (Linux).
Gradients of the weights count as the step's. With `--full-chunks c`, all positions count in the first c
chunks, and in the later chunks those of two anchors: the later chunks then take less time and no more
memory, so that the peak of a step of many anchors can be had without its hours.

`forms`: the same loss at a size where all forms fit. naive: the logits of all anchors at once, autograd.
checkpoint: a chunk of anchors at a time under `torch.utils.checkpoint`. native: chunks of
`torch.nn.functional.linear_cross_entropy`, for the joint loss alone: it takes hard targets, so it serves
log P_a(x) of every component, and knows no mixture row, which distillation needs. fused: what training does.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from lab.benchmarks.common import random_anchors, random_base, random_head, save, table
from polydraft.heads import DraftHead
from polydraft.training.losses import MOST_ANCHORS, Anchors, chunk_losses, head_losses
from polydraft.training.options import TrainOptions
from polydraft.training.weights import LOSSES, LossWeights

FORM_CHUNK = 16
"""Anchors of a checkpointed chunk; its logits of one position are then of the size of the fused ones."""


def anonymous() -> float:
    """MiB of memory that this process holds and no file backs."""
    found = re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


class Peak:
    """The most of `anonymous` while the context is open, over what it was at the start; looks every 2 ms.

    What the allocator holds and nothing uses is handed back first.
    """

    def __enter__(self) -> Peak:
        ctypes.CDLL(None).malloc_trim(0)
        self.before = self.most = anonymous()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._done.wait(0.002):
            self.most = max(self.most, anonymous())

    def __exit__(self, *error: object) -> None:
        self._done.set()
        self._thread.join()


def naive(head: DraftHead, anchors: Anchors, weights: LossWeights) -> Tensor:
    """All logits at once."""
    features = head.features(anchors.hidden, anchors.next_tokens)
    return chunk_losses(head, features, anchors, weights, None)[0].sum()


def checkpointed(head: DraftHead, anchors: Anchors, weights: LossWeights) -> Tensor:
    """A chunk at a time, its logits made again in the backward pass."""
    features = head.features(anchors.hidden, anchors.next_tokens)

    def part_loss(own: Tensor, part: slice) -> Tensor:
        return chunk_losses(head, own, anchors.part(part), weights, None)[0].sum()

    total = features.new_zeros(())
    for i in range(0, len(features), FORM_CHUNK):
        part = slice(i, i + FORM_CHUNK)
        total = total + checkpoint(part_loss, features[part], part, use_reentrant=False)
    return total


def native(head: DraftHead, anchors: Anchors, weights: LossWeights) -> Tensor:
    """The joint loss, log P_a(x) of every position and component from chunks of linear_cross_entropy."""
    features = head.features(anchors.hidden, anchors.next_tokens)
    latent, mapped = head.gate(features), head.maps(features)
    flat = mapped.flatten(0, 2).to(head.rows.dtype)
    targets = anchors.targets[:, :, None].expand(mapped.shape[:3]).flatten()
    options = torch.nn.LinearCrossEntropyOptions()
    loss = torch.nn.functional.linear_cross_entropy(
        flat, head.rows, targets, reduction="none", options=options
    )
    token = -loss.float().view(mapped.shape[:3])
    state, total = latent.start(), features.new_zeros(())
    for s in range(token.shape[1]):
        total = total - torch.logsumexp(latent.log_weights(state, s) + token[:, s], -1).sum()
        if s + 1 < token.shape[1]:
            state = latent.advance(state, s, token[:, s])
    return weights.nll * total


def fused(head: DraftHead, anchors: Anchors, weights: LossWeights) -> Tensor:
    """What training does."""
    return head_losses(head, anchors, weights).total


Form = Callable[[DraftHead, Anchors, LossWeights], Tensor]
FORMS: dict[str, Form] = {"naive": naive, "checkpoint": checkpointed, "native": native, "fused": fused}


def thin(anchors: Anchors, full_chunks: int) -> Anchors:
    """Beyond the first chunks, let only the first two anchors of each chunk count."""
    place = torch.arange(len(anchors.valid))
    counts = (place < full_chunks * MOST_ANCHORS) | (place % MOST_ANCHORS < 2)
    return anchors._replace(valid=anchors.valid & counts[:, None])


def measure(cell: dict[str, Any]) -> dict[str, Any]:
    """One cell, in this process."""
    torch.set_num_threads(cell["threads"])
    torch.manual_seed(0)
    defaults = TrainOptions()
    base = random_base(cell["hidden_size"], cell["vocab_size"])
    head = random_head(
        base,
        joint=cell["joint"],
        rank=cell["rank"],
        horizon=cell["horizon"],
        draft_vocab_size=cell["vocab_size"],
        feature_size=defaults.feature_size,
        map_rank=defaults.map_rank,
    )
    anchors = random_anchors(head, cell["anchors"])
    if cell["full_chunks"]:
        anchors = thin(anchors, cell["full_chunks"])
    weights = LOSSES[cell["loss"]]
    with Peak() as peak:
        wall, cpu = time.perf_counter(), time.process_time()
        FORMS[cell["form"]](head, anchors, weights).backward()
        seconds = {"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}
    shape = (cell["anchors"], head.config.positions, head.config.rank, cell["vocab_size"])
    return cell | {
        "weights_mib": round(peak.before),
        "peak_over_weights_mib": round(peak.most - peak.before),
        "one_tensor_of_logits_gib": round(4 * torch.Size(shape).numel() / 2**30, 1),
        **{name: round(value, 1) for name, value in seconds.items()},
    }


def apart(cell: dict[str, Any]) -> dict[str, Any]:
    """One cell, in a process of its own."""
    command = [sys.executable, __file__, "cell", json.dumps(cell)]
    out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    found: dict[str, Any] = json.loads(out.splitlines()[-1])
    return found


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, (vocab_size, rank, horizon) in {"peak": (131072, 32, 8), "forms": (8192, 8, 4)}.items():
        command = commands.add_parser(name)
        command.add_argument("--joint", default="cp")
        command.add_argument("--rank", type=int, default=rank)
        command.add_argument("--horizon", type=int, default=horizon)
        command.add_argument("--vocab-size", type=int, default=vocab_size, help="all of it can be drafted")
        command.add_argument("--hidden-size", type=int, default=576)
        command.add_argument("--anchors", type=int, nargs="+", default=[64, 128, 256])
        command.add_argument("--losses", nargs="+", choices=LOSSES, default=list(LOSSES))
        command.add_argument("--full-chunks", type=int, default=0, help="0: all positions count")
        command.add_argument("--forms", nargs="+", default=["fused"] if name == "peak" else list(FORMS))
        command.add_argument("--threads", type=int, default=1)
        command.add_argument("--out", type=Path, default=Path(f"training_memory_{name}.json"))
    commands.add_parser("cell").add_argument("cell", type=json.loads)
    return parser.parse_args()


def main() -> None:
    """Run every cell and print the table."""
    options = arguments()
    if options.command == "cell":
        print(json.dumps(measure(options.cell)))
        return
    settings = vars(options)
    shared = ("joint", "rank", "horizon", "vocab_size", "hidden_size", "full_chunks", "threads")
    rows = []
    for loss in options.losses:
        for form in options.forms:
            if form == "native" and loss != "joint":
                continue
            for anchors in options.anchors:
                cell = {name: settings[name] for name in shared}
                rows.append(apart(cell | {"loss": loss, "form": form, "anchors": anchors}))
                print(rows[-1], flush=True)
    save(options.out, settings=settings, rows=rows)
    shown = ("loss", "form", "hidden_size", "anchors", "peak_over_weights_mib", "seconds", "cpu_seconds")
    print(table([{name: row[name] for name in shown} for row in rows]))


if __name__ == "__main__":
    main()

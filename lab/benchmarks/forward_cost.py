"""What a forward over a few new tokens costs, by the model's own forward and by the compiled path, in turn.

    OMP_WAIT_POLICY=PASSIVE python -m lab.benchmarks.forward_cost --threads 1 --out forward_cost.json

For every width, milliseconds of a verification forward after `--context` tokens (medians over rounds, both
ways in the same round), their ratio, and the share of the machine's limit: the time in which its memory
delivers the weights that a forward over one token reads, over the time it took. `--rows` texts at once.
Also the seconds that the compiled path takes to get ready, and the milliseconds of drafting with a head.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lab.benchmarks.common import quartiles, save, table
from polydraft.bench.bandwidth import forward_bytes, memory_bandwidth
from polydraft.decoding.compiled import Compiled
from polydraft.decoding.trunk import EagerTrunk
from polydraft.heads import DraftHead
from polydraft.loading import load_head, load_model

GROWN = 3
"""Positions that the head reads before it drafts."""


def seconds(action: Callable[[], object]) -> float:
    """Wall clock of one call."""
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


class Drafting:
    """Greedy drafts of a head after a text, again and again in the same place."""

    def __init__(self, head: DraftHead, *, rows: int, context: int) -> None:
        self.reader = head.reader(rows=rows)
        self.state = torch.randn(context, head.config.state_size, dtype=head.dtype)
        self.tokens = torch.randint(head.config.vocab_size, (context,))
        self.rows = rows
        self.tell(context)
        self.reader.joint()

    def tell(self, count: int) -> None:
        """Let every row grow by `GROWN` positions."""
        self.reader.tell([self.state[:count]] * self.rows, [self.tokens[:count]] * self.rows)

    def __call__(self) -> Tensor:
        """The drafts."""
        self.tell(GROWN)
        return self.reader.joint().argmax().tokens


@torch.no_grad()
def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Milliseconds of all rounds, by path and width, and of drafting."""
    model, tokenizer = load_model(options.model, dtype=getattr(torch, options.dtype))
    head = load_head(options.head, model=model, tokenizer=tokenizer)
    began = time.perf_counter()
    compiled = Compiled(model, head, rows=options.rows, on_progress=print)
    ready = time.perf_counter() - began
    prompts = [torch.randint(model.config.vocab_size, (options.context,)) for _ in range(options.rows)]
    trunks = {
        "eager": EagerTrunk(model, taps=head.config.taps, rows=options.rows),
        "compiled": compiled.trunk(taps=head.config.taps, rows=options.rows),
    }
    drafting = Drafting(head, rows=options.rows, context=options.context)
    found: dict[str, dict[int, list[float]]] = {
        name: {width: [] for width in (*options.widths, 0)} for name in trunks
    }
    for trunk in trunks.values():
        with trunk:
            trunk.prefill(prompts)
    for done in range(options.rounds + 1):
        for width in options.widths:
            tokens = torch.randint(model.config.vocab_size, (options.rows, width))
            for name, trunk in trunks.items():
                with trunk:
                    spent = seconds(partial(trunk.forward, tokens))
                if done:  # the first round is a warm-up
                    found[name][width].append(1e3 * spent)
        for name, trunk in trunks.items():
            with trunk:
                found[name][0].append(1e3 * seconds(drafting))
    limit = 1e3 * forward_bytes(model) / memory_bandwidth(model.device)
    return {"ready": ready, "limit": limit, "milliseconds": found}


def rows_of(found: dict[str, Any], options: argparse.Namespace) -> list[dict[str, Any]]:
    """A row per width, and one of drafting."""
    out = []
    spent = {
        name: {width: quartiles(values)["median"] for width, values in widths.items()}
        for name, widths in found["milliseconds"].items()
    }
    for width in (*options.widths, 0):
        row: dict[str, Any] = {"tokens": width or "drafting"}
        for name, widths in spent.items():
            row[f"{name}_ms"] = round(widths[width], 1)
            row[f"{name}_share"] = round(found["limit"] / widths[width], 2) if width else ""
            row[f"{name}_of_first"] = round(widths[width] / widths[options.widths[0]], 2) if width else ""
        row["ratio"] = round(spent["eager"][width] / spent["compiled"][width], 2)
        out.append(row)
    return out


def main() -> None:
    """Run all rounds, then print and save the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--head", default="smollm2-135m-instruct")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rows", type=int, default=1)
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--widths", type=int, nargs="+", default=[1, 2, 4, 5, 8, 12, 16])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, default=Path("forward_cost.json"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    found = measure(options)
    rows = rows_of(found, options)
    figures = {"ready_seconds": round(found["ready"], 1), "limit_ms": round(found["limit"], 1)}
    save(options.out, settings=vars(options) | figures, rows=rows)
    print(table(rows))
    print(
        f"ready after {figures['ready_seconds']} s; memory delivers the weights in {figures['limit_ms']} ms"
    )


if __name__ == "__main__":
    main()

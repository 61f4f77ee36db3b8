"""Peak memory of a head over the trunk's, each figure in a process of its own.

On a CPU: anonymous memory of the process (`RssAnon`, Linux), looked at every millisecond, after what the
allocator holds and nothing uses has been handed back. On CUDA: torch's own high-water mark.
"""

from __future__ import annotations

import ctypes
import json
import re
import subprocess
import sys
import threading
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch
from transformers import PreTrainedModel

from lab.overhead.cells import Cell, Sizes, make_head
from lab.overhead.cycle import drafted_cycle, plain_step
from lab.overhead.step import Step, training_batch, trunk_forward
from polydraft.errors import PolydraftError
from polydraft.loading import load_model, parse_dtype

CYCLES = 4
"""Drafted, and plain steps to compare with."""
EVERY = 0.001
"""Seconds between looks."""


def anonymous() -> int:
    """Bytes that this process holds and no file backs."""
    found = re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())
    if found is None:
        raise PolydraftError("this system does not tell anonymous memory: measure memory on Linux")
    return 1024 * int(found[1])


class Peak:
    """The most memory held while the context is open, in bytes (`most`), and what was held before it."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def __enter__(self) -> Peak:
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
            self.before = torch.cuda.memory_allocated(self._device)
            return self
        ctypes.CDLL(None).malloc_trim(0)
        self.before = self.most = anonymous()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._done.wait(EVERY):
            self.most = max(self.most, anonymous())

    def __exit__(self, *error: object) -> None:
        if self._device.type == "cuda":
            self.most = torch.cuda.max_memory_allocated(self._device)
            return
        self._done.set()
        self._thread.join()
        self.most = max(self.most, anonymous())


def measure_memory(
    model: PreTrainedModel, cell: Cell, sizes: Sizes, *, context: int, positions: int
) -> dict[str, int]:
    """Bytes over those of the loaded trunk, in this process, which should have done nothing else.

    Returns:
        plain: most that plain decoding takes. drafted: most that drafted decoding takes, head included.
        drafting: the difference, the price of drafting.
        training: most that the head and a training step of it take (weights, gradients, AdamW's state, what
            the loss needs). trunk_forward: most that the trunk's forward for that step takes.
    """
    device = model.device
    vocab = model.config.get_text_config().vocab_size
    prompt = torch.arange(context, device=device) * 7919 % vocab
    plain_step(model, prompt, steps=1, do_sample=False)  # what is made once, at the first use
    with Peak(device) as plain:
        plain_step(model, prompt, steps=CYCLES, do_sample=True)
    before = plain.before
    head = cast(Any, make_head(model, cell, sizes)).to(model.dtype).eval().requires_grad_(False)
    with Peak(device) as drafted:
        drafted_cycle(model, head, prompt, cycles=CYCLES, do_sample=True)
    del head
    batch = training_batch(positions=positions, tokens=min(sizes.draft_vocab_size, vocab), device=device)
    trained = make_head(model, cell, sizes)
    with Peak(device) as forward:
        _, anchors = trunk_forward(model, trained, batch)
    with Peak(device) as training:
        step = Step(trained, anchors)
        for _ in range(2):  # AdamW's state is there from the first step on
            step()
    return {
        "plain": plain.most - before,
        "drafted": drafted.most - before,
        "drafting": drafted.most - plain.most,
        "trunk_forward": forward.most - forward.before,
        "training": training.most - before,
    }


def measured_apart(
    model: str, cell: Cell, sizes: Sizes, *, dtype: str, threads: int, context: int, positions: int
) -> dict[str, int]:
    """`measure_memory` in a process of its own.

    Raises:
        PolydraftError: it failed; has the last line of what it said.
    """
    request = {
        "model": model,
        "cell": asdict(cell),
        "sizes": asdict(sizes),
        "dtype": dtype,
        "threads": threads,
        "context": context,
        "positions": positions,
    }
    command = [sys.executable, "-m", __name__, json.dumps(request)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise PolydraftError(f"measuring the memory of {cell.name} failed: {lines[-1]}")
    found: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """One request, as `measured_apart` makes it; prints one JSON object."""
    request = json.loads(sys.argv[1])
    torch.set_num_threads(request["threads"])
    model, _ = load_model(request["model"], dtype=parse_dtype(request["dtype"]))
    cell, sizes = Cell(**request["cell"]), Sizes(**request["sizes"])
    found = measure_memory(
        model.requires_grad_(False),
        cell,
        sizes,
        context=request["context"],
        positions=request["positions"],
    )
    print(json.dumps(found))


if __name__ == "__main__":
    main()

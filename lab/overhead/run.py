"""Measure rounds until there are enough, or the time is spent; whatever is complete is not done again.

OUT/settings.json         what all of it was measured with
OUT/memory/CELL.json      peak memory of a head
OUT/rounds/NUMBER.json    one complete round, a row per head
OUT/results.json, results.md, *.png
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from lab.grid.budget import Budget
from lab.grid.progress import Progress
from lab.grid.store import claim, write_json
from lab.overhead.machine import describe_machine
from lab.overhead.memory import measured_apart
from lab.overhead.results import results
from lab.overhead.rounds import Benches, Settings
from lab.overhead.store import memory_path, read_rounds, round_path
from lab.overhead.tables import markdown
from polydraft.decoding.costs import device_name
from polydraft.decoding.measuring import CONTEXT
from polydraft.errors import InputError
from polydraft.files import write_atomic
from polydraft.training.curves import can_plot


def run_overhead(
    settings: Settings,
    out: Path,
    model: PreTrainedModel,
    *,
    name: str,
    memory: bool = True,
    budget_seconds: float | None = None,
    progress: Progress,
    command: str = "",
) -> dict[str, Any]:
    """Measure what `out` lacks, then write the report there and return it.

    Args:
        name: as the model is loaded, by the processes that measure memory. memory: measure it.
        budget_seconds: no further round, and no further head's memory, is begun after these; one round is.

    Raises:
        InputError: `out` holds measurements of something else, or a setting is below 1.
        PolydraftError: as of `measured_apart`.
    """
    for what in ("cycles", "positions", "rounds"):
        if getattr(settings, what) < 1:
            raise InputError(f"{what} must be at least 1, got {getattr(settings, what)}")
    budget = Budget(None if budget_seconds is None else budget_seconds / 60)
    identity = identity_of(settings, model, name=name)
    claim(out / "settings.json", identity, what=f"{out}", remove=str(out))
    if not (out / "machine.json").exists():
        write_json(out / "machine.json", describe_machine(model))
    measure_rounds(settings, out, model, budget=budget, progress=progress)
    if memory:
        for cell in settings.cells:
            path = memory_path(out, cell.name)
            if path.exists() or budget.spent:
                continue
            progress.note(f"memory of {cell.name}")
            dtype, threads = identity["dtype"], identity["threads"]
            shapes = {"context": CONTEXT, "positions": settings.positions}
            write_json(
                path, measured_apart(name, cell, settings.sizes, dtype=dtype, threads=threads, **shapes)
            )
    content = results(settings, out, model, identity=identity, command=command)
    write_json(out / "results.json", content)
    write_atomic(out / "results.md", markdown(content))
    if can_plot():
        from lab.overhead.plots import plot_results

        plot_results(content, out)
    return content


def measure_rounds(
    settings: Settings, out: Path, model: PreTrainedModel, *, budget: Budget, progress: Progress
) -> None:
    """Write a file for each round that is lacking.

    Args:
        budget: once it is spent no further round begins; one is measured whatever it says.
    """
    lacking = [number for number in range(settings.rounds) if not round_path(out, number).exists()]
    if not lacking:
        return
    progress.note(f"{settings.rounds - len(lacking)} of {settings.rounds} rounds are there; warming up")
    benches = Benches(model.requires_grad_(False), settings)
    with progress.counting("overhead", settings.rounds) as advance:
        for number in range(settings.rounds):
            if number in lacking:
                if budget.spent and read_rounds(out):
                    progress.note("the budget is spent")
                    break
                write_json(round_path(out, number), benches.round(number))
            advance(f"round {number + 1}")


def identity_of(settings: Settings, model: PreTrainedModel, *, name: str) -> dict[str, Any]:
    """What decides the figures, but for the number of rounds."""
    chosen = asdict(settings)
    del chosen["rounds"]
    chosen["cells"] = [cell.name for cell in settings.cells]
    return {
        "model": name,
        "dtype": str(model.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "device": device_name(model.device),
        **chosen,
    }

"""The stages of a grid in their order; each does what is lacking and no more."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from polydraft.errors import InputError
from polydraft.evaluation.grid.acceptance import replay_variants
from polydraft.evaluation.grid.cells import train_cells
from polydraft.evaluation.grid.config import GridConfig
from polydraft.evaluation.grid.plots import plot_results
from polydraft.evaluation.grid.progress import Progress, Silent
from polydraft.evaluation.grid.report import results
from polydraft.evaluation.grid.speed import time_variants
from polydraft.evaluation.grid.store import Store
from polydraft.evaluation.grid.tables import markdown
from polydraft.evaluation.grid.texts import write_texts
from polydraft.files import write_atomic
from polydraft.training.curves import can_plot

STAGES = ("train", "replay", "speed", "report")


def check_stages(stages: Sequence[str]) -> None:
    """Refuse what is no stage.

    Raises:
        InputError: names it and those there are.
    """
    for stage in stages:
        if stage not in STAGES:
            raise InputError(f"unknown stage {stage!r}: choose from {', '.join(STAGES)}")


def run_grid(
    config: GridConfig,
    out: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    stages: Sequence[str] = STAGES,
    budget_seconds: float | None = None,
    progress: Progress | None = None,
    command: str = "",
) -> dict[str, Any]:
    """Do the `stages` asked for and report what is there; returns the results.

    `train` makes the heads, `replay` the texts and what each head would have accepted along them, `speed`
    the timed runs. Heads that are not trained yet are left out of the others. The report is always written:
    results.json and results.md below `out`, and the pictures where matplotlib is installed.

    Args:
        budget_seconds: after these no further prompt is timed.

    Raises:
        InputError: `out` holds things that were made with other settings; names what to remove.
    """
    check_stages(stages)
    shown = progress or Silent()
    store = Store(out)
    out.mkdir(parents=True, exist_ok=True)
    if "train" in stages:
        train_cells(config, store, model, tokenizer, progress=shown, command=command)
    if "replay" in stages:
        write_texts(config, store, model, tokenizer, progress=shown)
        replay_variants(config, store, model, tokenizer, progress=shown)
    if "speed" in stages:
        time_variants(config, store, model, tokenizer, progress=shown, budget_seconds=budget_seconds)
    content = results(config, store, command=command)
    write_atomic(out / "results.json", json.dumps(content, indent=1) + "\n")
    write_atomic(out / "results.md", markdown(content))
    if can_plot():
        plot_results(content, out)
    return content

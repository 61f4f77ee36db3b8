"""The stages of a grid in their order; each does what is lacking and no more."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lab.grid.acceptance import Replays
from lab.grid.budget import Budget
from lab.grid.cells import Training
from lab.grid.config import START, GridConfig
from lab.grid.kept import check_text, read_kept
from lab.grid.losses import measure_losses
from lab.grid.metrics import Row
from lab.grid.pictures import plot_specs
from lab.grid.plots import plot_results
from lab.grid.progress import Progress, Silent
from lab.grid.report import results
from lab.grid.speed import time_variants
from lab.grid.store import Store
from lab.grid.tables import markdown
from lab.grid.targets import OpenModel, Targets
from lab.grid.texts import write_texts
from polydraft.bench.prompts import prompts_path, read_prompts
from polydraft.embedded import EMBEDDED
from polydraft.errors import InputError
from polydraft.files import write_atomic
from polydraft.sources import head_source, resolve
from polydraft.training.curves import can_plot
from polydraft.training.data import check_paths

STAGES = ("train", "replay", "speed", "report")


def check_stages(stages: Sequence[str]) -> None:
    """Refuse what is no stage.

    Raises:
        InputError: names it and those there are.
    """
    for stage in stages:
        if stage not in STAGES:
            raise InputError(f"unknown stage {stage!r}: choose from {', '.join(STAGES)}")


def check_sources(config: GridConfig) -> None:
    """Refuse what cannot be read, before any model is loaded.

    Raises:
        InputError: a model, text or file of prompts that is missing, or of no form that is read; names it.
    """
    for base in config.bases:
        scratch = any(cell.options.trunk == "scratch" for cell in config.trained if cell.base == base)
        if not scratch and base.model != EMBEDDED:
            resolve(base.model, what="model")
        check_paths([*base.data, *base.test])
        read_prompts(prompts_path(base.prompts))
    if config.start is not None and config.start.head is not None:
        head_source(config.start.head)


def run_grid(
    config: GridConfig,
    out: Path,
    open_model: OpenModel,
    *,
    stages: Sequence[str] = STAGES,
    budget_minutes: float | None = None,
    keep: Path | None = None,
    progress: Progress | None = None,
    command: str = "",
) -> dict[str, Any]:
    """Do the `stages` asked for and report what is there; returns the results.

    Cell by cell, `train` makes the head; `replay` its losses on test text, the texts of the model that
    verifies, and what the head would have accepted along them. Then `speed` times all of a base in turn.
    Heads that are not trained yet are left out of the others. The report is always written: results.json and
    results.md below `out`, and the pictures where matplotlib is installed.

    Args:
        budget_minutes: after these nothing further is begun: no cell, no prompt.
        keep: the results.json of an earlier run; its rows stand for cells that are not trained in `out`, and
            these are not trained any more.

    Raises:
        InputError: `out` or `keep` holds things that were made with other settings; names them.
    """
    check_stages(stages)
    kept = read_kept(keep, config) if keep else {}
    shown, budget = progress or Silent(), Budget(budget_minutes)
    store = Store(out)
    store.check(config.trained)
    if {*stages} - {"report"}:
        check_sources(config)
    out.mkdir(parents=True, exist_ok=True)
    targets = Targets(store, open_model, dtype=config.dtype)
    if {"train", "replay"} & {*stages}:
        training = Training(config, store, targets, command=command) if "train" in stages else None
        replay = "replay" in stages
        judge_cells(config, store, targets, training, replay=replay, kept=kept, shown=shown, budget=budget)
    if "speed" in stages:
        for base in config.bases:
            time_variants(config, store, targets, base, progress=shown, budget=budget)
    content = results(config, store, command=command, kept=kept)
    pictures = plot_results(content, out) + plot_specs(config, content, out) if can_plot() else []
    content["pictures"] = {path.stem: {"file": path.name, "alt": alt} for path, alt in pictures}
    write_atomic(out / "results.json", json.dumps(content, indent=1) + "\n")
    write_atomic(out / "results.md", markdown(content))
    return content


def judge_cells(
    config: GridConfig,
    store: Store,
    targets: Targets,
    training: Training | None,
    *,
    replay: bool,
    kept: Mapping[str, Row],
    shown: Progress,
    budget: Budget,
) -> None:
    """Train every cell that lacks it, and judge each as soon as it is there; those `kept` are done."""
    replays = Replays(config, store)
    for number, cell in enumerate(config.trained, start=1):
        if cell.name in kept and not store.is_trained(cell.name):
            if training is not None:
                check_text(kept[cell.name], training.data_hash(cell))
            continue
        if budget.spent:
            shown.note(f"the budget is spent before cell {number} of {len(config.trained)}")
            return
        if training is not None:
            training.train(cell, progress=shown)
        if replay and cell.name != START and store.is_trained(cell.name):
            target = targets.of(cell)
            measure_losses(config.evaluation, store, cell, target)
            write_texts(config, store, cell, target, progress=shown)
            replays.replay(cell, target)

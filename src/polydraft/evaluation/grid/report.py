"""Everything a grid has found so far, ready for JSON, tables and pictures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from safetensors import safe_open

from polydraft.evaluation.grid.config import Cell, GridConfig, Variant
from polydraft.evaluation.grid.figures import ALL, Bootstrap, Counts, conditional, lengths, speeds
from polydraft.evaluation.grid.store import Store, read_json
from polydraft.evaluation.prompts import prompts_path, read_prompts
from polydraft.evaluation.replay import MODES
from polydraft.modes import VERIFICATION
from polydraft.versions import versions

DRAFT_IDS = "draft_ids"
TEMPERATURES = {"greedy": 0.0, "sampled": 1.0}


def results(config: GridConfig, store: Store, *, command: str = "") -> dict[str, Any]:
    """A row per variant of a trained cell, with what there is of it, and the settings of all."""
    evaluation = config.evaluation
    kinds = [prompt.kind for prompt in read_prompts(prompts_path(evaluation.prompts))]
    bootstrap = Bootstrap.draw(kinds, draws=evaluation.draws, seed=evaluation.seed)
    variants = [variant for variant in config.variants if store.is_trained(variant.cell)]
    settings = ("prompts", "max_new_tokens", "samples", "speed_prompts", "speed_tokens", "draws", "seed")
    return {
        "cells": [row(config, store, variant, bootstrap) for variant in variants],
        "model": config.model,
        "dtype": config.dtype,
        "data": [str(path) for path in config.data],
        "kinds": list(bootstrap.groups()),
        **{name: getattr(evaluation, name) for name in settings},
        "threads": torch.get_num_threads(),
        "versions": versions(),
        "command": command,
    }


def row(config: GridConfig, store: Store, variant: Variant, bootstrap: Bootstrap) -> dict[str, Any]:
    """What is known of one variant."""
    cell = config.cell(variant.cell)
    reference = config.reference(cell)
    accepted = acceptance(store, variant, reference, bootstrap)
    timed = speed(config, store, variant)
    return {
        "name": variant.name,
        "cell": cell.name,
        "joint": cell.options.joint,
        "rank": cell.options.rank,
        "horizon": cell.options.horizon,
        "components": variant.components,
        "verification": variant.verification,
        "reference": reference.name if reference else None,
        **training(store, cell),
        **accepted,
        "speed": timed,
        "projected": {
            mode: accepted["acceptance"][mode][ALL]["length"] / timed[mode]["cycle_cost"]
            for mode in TEMPERATURES
            if mode in timed and mode in accepted["acceptance"]
        },
    }


def training(store: Store, cell: Cell) -> dict[str, Any]:
    """What training the cell took, and how large it is."""
    history = read_json(store.head(cell.name) / "training.json")["history"]
    rates = [entry["positions_per_second"] for entry in history if "positions_per_second" in entry]
    seconds = read_json(store.folder(cell.name) / "seconds.json")
    held_out = next(entry for entry in reversed(history) if "eval_nll" in entry)
    return {
        "parameters": parameters(store.head(cell.name)),
        "training_minutes": seconds["seconds"] / 60,
        "positions_per_second": median(rates) if rates else None,
        "held_out": {k.removeprefix("eval_"): v for k, v in held_out.items() if k.startswith("eval_")},
    }


def parameters(head: Path) -> int:
    """Trained numbers of a head folder."""
    with safe_open(head / "model.safetensors", framework="pt") as weights:
        shapes = {name: weights.get_slice(name).get_shape() for name in weights.keys()}  # noqa: SIM118
    return sum(math.prod(shape) for name, shape in shapes.items() if name != DRAFT_IDS)


def acceptance(
    store: Store, variant: Variant, reference: Cell | None, bootstrap: Bootstrap
) -> dict[str, Any]:
    """Acceptance lengths by mode and group, and the conditional acceptance of each position."""
    prompts = len(bootstrap.kinds)
    found = store.replay(variant)
    base: dict[str, Any] = {}
    if reference is not None and reference.name != variant.name:
        base = store.replay(Variant(name=reference.name, cell=reference.name))
    out: dict[str, Any] = {"acceptance": {}, "conditional": {}}
    for mode in MODES:
        if mode in found:
            against = base.get("sampled" if mode == "sampled" else "greedy")
            compared = Counts.of(against, prompts) if against else None
            out["acceptance"][mode] = lengths(Counts.of(found[mode], prompts), bootstrap, compared)
            out["conditional"][mode] = conditional(found[mode])
    return out


def speed(config: GridConfig, store: Store, variant: Variant) -> dict[str, Any]:
    """Figures of the timed runs, by temperature; of block verification also against token-wise steps."""
    evaluation = config.evaluation
    rows = store.speed(variant, evaluation)
    bootstrap = {"draws": evaluation.draws, "seed": evaluation.seed}
    out: dict[str, Any] = {}
    for mode, temperature in TEMPERATURES.items():
        chosen = [entry for entry in rows if entry["temperature"] == temperature]
        if chosen:
            out[mode] = speeds(chosen, **bootstrap)
            if variant.verification != VERIFICATION:
                plain = store.speed(Variant(name=variant.cell, cell=variant.cell), evaluation)
                same = [entry for entry in plain if entry["temperature"] == temperature]
                out[mode]["against_token"] = step_ratio(chosen, same, **bootstrap)
    return out


def step_ratio(
    rows: Sequence[dict[str, Any]], others: Sequence[dict[str, Any]], *, draws: int, seed: int
) -> dict[str, Any] | None:
    """Tokens per step of `rows` over that of `others`, on the prompts both have; None without any."""
    shared = sorted({entry["prompt"] for entry in rows} & {entry["prompt"] for entry in others})
    if not shared:
        return None
    kinds = {entry["prompt"]: entry["kind"] for entry in rows}
    bootstrap = Bootstrap.draw([kinds[prompt] for prompt in shared], draws=draws, seed=seed)
    first, second = (
        Counts.of(
            [
                {"prompt": shared.index(e["prompt"]), "tokens": e["tokens"] - 1, "cycles": e["steps"]}
                for e in part
                if e["prompt"] in shared
            ],
            len(shared),
        )
        for part in (rows, others)
    )
    found: dict[str, Any] = lengths(first, bootstrap, second)["all"]
    return found

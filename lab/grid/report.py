"""Everything a grid has found so far, ready for JSON, tables and pictures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

import torch
from safetensors import safe_open

from lab.grid.config import Cell, GridConfig, Variant
from lab.grid.figures import (
    ALL,
    Bootstrap,
    Counts,
    conditional,
    lengths,
    speeds,
    window_figures,
)
from lab.grid.metrics import Row
from lab.grid.pivot import pivot
from lab.grid.store import Store, read_json
from lab.replay import MODES
from polydraft.bench.prompts import prompts_path, read_prompts
from polydraft.modes import VERIFICATION
from polydraft.training.trunk import MODEL
from polydraft.versions import versions

DRAFT_IDS = "draft_ids"
OPTIONS = (
    "joint", "rank", "horizon", "features", "map_rank", "own_unembedding", "draft_vocab_size", "balance",
    "trunk", "lm_weight", "steps", "batch_size", "seed",
)  # fmt: skip
"""Of a cell's training, fields of its row; `options` has all."""
SETTINGS = ("max_new_tokens", "samples", "speed_prompts", "speed_tokens", "draws", "seed")
"""Of the evaluation, fields of the results."""
TEMPERATURES = {"greedy": 0.0, "sampled": 1.0}


def results(
    config: GridConfig, store: Store, *, command: str = "", kept: Mapping[str, Row] | None = None
) -> dict[str, Any]:
    """A row per variant of a trained cell, the tables asked for, and the settings.

    Args:
        kept: rows of variants, for those that `store` has no trained cell of.
    """
    evaluation = config.evaluation
    kinds = {
        base.name: [prompt.kind for prompt in read_prompts(prompts_path(base.prompts))]
        for base in config.bases
    }
    bootstraps = {
        name: Bootstrap.draw(found, draws=evaluation.draws, seed=evaluation.seed)
        for name, found in kinds.items()
    }
    made: dict[str, Row] = {
        variant.name: row(config, store, variant, bootstraps[config.cell(variant.cell).base.name])
        for variant in config.variants
        if store.is_trained(variant.cell)
    }
    rows = {**(kept or {}), **made}
    content: dict[str, Any] = {
        "cells": [rows[variant.name] for variant in config.variants if variant.name in rows],
        "title": config.title or f"{config.bases[0].model}: heads compared",
        "asked": len(config.variants),
        "model": ", ".join(dict.fromkeys(base.model for base in config.bases)),
        "prompts": ", ".join(dict.fromkeys(base.prompts for base in config.bases)),
        "dtype": config.dtype,
        "data": [str(path) for base in config.bases for path in base.data],
        "kinds": list(dict.fromkeys(kind for found in bootstraps.values() for kind in found.groups())),
        **{name: getattr(evaluation, name) for name in SETTINGS},
        "threads": torch.get_num_threads(),
        "versions": versions(),
        "kept": [name for name in rows if name not in made],
        "command": command,
    }
    return content | {"tables": {spec.name: pivot(content, spec) for spec in config.tables}}


def row(config: GridConfig, store: Store, variant: Variant, bootstrap: Bootstrap) -> dict[str, Any]:
    """What is known of one variant."""
    cell = config.cell(variant.cell)
    reference = config.reference(cell)
    accepted = acceptance(config, store, variant, reference, bootstrap)
    timed = speed(config, store, variant)
    return {
        "name": variant.name,
        "cell": cell.name,
        "base": cell.base.name,
        **{name: getattr(cell.options, name) for name in OPTIONS},
        "options": asdict(cell.options),
        "components": variant.components,
        "verification": variant.verification,
        "reference": reference.name if reference else None,
        "data": read_json(store.folder(cell.name) / "cell.json")["data"],
        **training(store, cell),
        "loss": losses(config, store, cell, reference),
        **accepted,
        "speed": timed,
        "projected": {
            mode: accepted["acceptance"][mode][ALL]["length"] / timed[mode]["cycle_cost"]
            for mode in TEMPERATURES
            if mode in timed and mode in accepted["acceptance"]
        },
    }


def training(store: Store, cell: Cell) -> dict[str, Any]:
    """What training the cell took, how large it is, and how its components are used."""
    head = store.head(cell.name)
    record = read_json(head / "training.json")
    history = record["history"]
    rates = [entry["positions_per_second"] for entry in history if "positions_per_second" in entry]
    seconds = read_json(store.folder(cell.name) / "seconds.json")
    held_out = next(entry for entry in reversed(history) if "eval_nll" in entry)
    return {
        "parameters": parameters(head),
        "trunk_parameters": parameters(head / MODEL) if (head / MODEL).exists() else None,
        "training_minutes": seconds["seconds"] / 60,
        "step_seconds": seconds.get("step_seconds"),
        "epochs": round(float(history[-1].get("epoch", 0.0)), 1),
        "base_loss": record.get("base_loss"),
        "use": component_use(history),
        "positions_per_second": median(rates) if rates else None,
        "held_out": {k.removeprefix("eval_"): v for k, v in held_out.items() if k.startswith("eval_")},
    }


def component_use(history: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """How the gate spreads its weight at the end of training: the last logged mean weights w_a.

    `effective` is exp(-sum_a w_a log w_a), r where all are used alike; `largest` is max_a w_a.
    """
    last = next((entry for entry in reversed(history) if "load_1" in entry), None)
    if last is None:
        return None
    loads = [value for name, value in last.items() if name.startswith("load_")]
    entropy = -sum(w * math.log(w) for w in loads if w > 0)
    return {"effective": math.exp(entropy), "largest": max(loads)}


def losses(config: GridConfig, store: Store, cell: Cell, reference: Cell | None) -> dict[str, Any] | None:
    """Losses on the test text, and how they differ from the reference's; None where there are none."""
    evaluation = config.evaluation
    found = store.losses(cell, evaluation)
    if not found:
        return None
    same = reference is None or reference.name == cell.name
    base = [] if same or reference is None else store.losses(reference, evaluation)
    return window_figures(found, base, draws=evaluation.draws, seed=evaluation.seed)


def parameters(head: Path) -> int:
    """Trained numbers of a head folder."""
    with safe_open(head / "model.safetensors", framework="pt") as weights:
        shapes = {name: weights.get_slice(name).get_shape() for name in weights.keys()}  # noqa: SIM118
    return sum(math.prod(shape) for name, shape in shapes.items() if name != DRAFT_IDS)


def acceptance(
    config: GridConfig, store: Store, variant: Variant, reference: Cell | None, bootstrap: Bootstrap
) -> dict[str, Any]:
    """Acceptance lengths by mode and group, and the conditional acceptance of each position."""
    prompts = len(bootstrap.kinds)
    found = store.replay(variant, config.cell(variant.cell))
    base: dict[str, Any] = {}
    if reference is not None and reference.name != variant.name:
        base = store.replay(Variant(name=reference.name, cell=reference.name), reference)
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
    cell = config.cell(variant.cell)
    rows = store.speed(variant, cell, evaluation)
    bootstrap = {"draws": evaluation.draws, "seed": evaluation.seed}
    out: dict[str, Any] = {}
    for mode, temperature in TEMPERATURES.items():
        chosen = [entry for entry in rows if entry["temperature"] == temperature]
        if chosen:
            out[mode] = speeds(chosen, **bootstrap)
            if variant.verification != VERIFICATION:
                plain = store.speed(Variant(name=variant.cell, cell=variant.cell), cell, evaluation)
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

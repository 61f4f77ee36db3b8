"""Wall clock of plain decoding and of every head, interleaved prompt by prompt in one process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from lab.grid.acceptance import open_variant
from lab.grid.budget import Budget
from lab.grid.config import Base, Cell, GridConfig, Variant
from lab.grid.progress import Progress
from lab.grid.store import Store, read_json, write_json
from lab.grid.targets import Target, Targets
from polydraft.bench.prompts import Prompt, prompts_path, read_prompts, spread
from polydraft.bench.runs import Run, Sampling, run_drafted, run_plain

WARM_UP_TOKENS = 8
TEMPERATURES = (0.0, 1.0)


@dataclass(frozen=True)
class Round:
    """One prompt at one temperature: plain decoding, then the heads that lack it."""

    prompt: int
    temperature: float
    lacking: tuple[Variant, ...]


def rounds_of(
    config: GridConfig, store: Store, variants: Sequence[Variant], prompts: Sequence[Prompt]
) -> list[Round]:
    """Rounds that are not done for `variants`, of one base."""
    evaluation = config.evaluation
    rows = {v.name: store.speed(v, config.cell(v.cell), evaluation) for v in variants}
    done = {(name, row["prompt"], row["temperature"]) for name, found in rows.items() for row in found}
    every = [
        Round(
            index,
            temperature,
            tuple(v for v in variants if v.times(temperature) and (v.name, index, temperature) not in done),
        )
        for index in spread([prompt.kind for prompt in prompts])[: evaluation.speed_prompts]
        for temperature in TEMPERATURES
    ]
    return [found for found in every if found.lacking]


def time_variants(
    config: GridConfig, store: Store, targets: Targets, base: Base, *, progress: Progress, budget: Budget
) -> None:
    """Run every trained head of `base` on each prompt that it lacks, greedily and at temperature 1.

    A round is one prompt at one temperature: plain decoding of every model that verifies, and the heads, in
    an order that rotates from round to round. Every head is compared with the plain run of its model in its
    round. A row is kept as soon as it is there; no round begins once the budget is spent.
    """
    evaluation = config.evaluation
    prompts = read_prompts(prompts_path(base.prompts))
    trained = [v for v in config.variants if store.is_trained(v.cell) and config.cell(v.cell).base == base]
    rounds = rounds_of(config, store, trained, prompts)
    if not rounds or budget.spent:
        return
    asked = {variant.name for found in rounds for variant in found.lacking}
    variants = [variant for variant in trained if variant.name in asked]
    own: dict[str, Target] = {}
    for cell in (config.cell(variant.cell) for variant in variants):
        if target_name(cell) not in own:
            own[target_name(cell)] = targets.of(cell)
    names = {variant.name: target_name(config.cell(variant.cell)) for variant in variants}
    heads = {v.name: open_variant(store, v, own[names[v.name]]) for v in variants}

    def drafted(variant: Variant, ids: Sequence[int], sampling: Sampling) -> Run:
        head, (model, tokenizer) = heads[variant.name], own[names[variant.name]]
        whole: dict[str, Any] = {"drafting": "chain", "draft_length": head.config.horizon}  # as replayed
        chosen = replace(sampling, verification=variant.verification, **whole)
        return run_drafted(model, head, tokenizer, ids, chosen)

    few = Sampling(max_new_tokens=min(WARM_UP_TOKENS, evaluation.speed_tokens))
    for temperature in TEMPERATURES:
        warm = replace(few, temperature=temperature)
        for target in own.values():
            run_plain(*target, prompts[0].encode(target.tokenizer), warm)
        for variant in (v for v in variants if v.times(temperature)):
            drafted(variant, prompts[0].encode(own[names[variant.name]].tokenizer), warm)
    with progress.counting("wall clock", len(rounds)) as advance:
        for number, found in enumerate(rounds):
            if budget.spent:
                progress.note(f"the budget is spent after {number} of {len(rounds)} rounds")
                return
            prompt = prompts[found.prompt]
            sampling = Sampling(
                max_new_tokens=evaluation.speed_tokens,
                temperature=found.temperature,
                torch_seed=evaluation.seed + found.prompt,
            )
            plain: dict[str, Run] = {}
            turn = number % len(found.lacking)
            for variant in found.lacking[turn:] + found.lacking[:turn]:
                name = names[variant.name]
                ids = prompt.encode(own[name].tokenizer)
                if name not in plain:
                    plain[name] = run_plain(*own[name], ids, sampling)
                cell = config.cell(variant.cell)
                row = store.speed_settings(variant, cell, evaluation)
                row |= {"prompt": found.prompt, "temperature": found.temperature}
                row |= speed_row(prompt, drafted(variant, ids, sampling), plain[name])
                rows = read_json(store.speed_path(variant)) or []
                write_json(store.speed_path(variant), [*rows, row])
            advance(f"prompt {prompt.where}, T = {found.temperature:g}")


def target_name(cell: Cell) -> str:
    """Cells with one name are verified by one model."""
    return f"cell {cell.name}" if cell.own_model else f"base {cell.base.name}"


def speed_row(prompt: Prompt, run: Run, plain: Run) -> dict[str, Any]:
    """The figures of one drafted run beside the plain run of its round."""
    assert run.statistics is not None
    return {
        "kind": prompt.kind,
        "seconds": run.seconds,
        "tokens": len(run.tokens),
        "steps": run.statistics.steps,
        "accepted": run.statistics.accepted_tokens,
        "drafting_seconds": run.statistics.drafting_seconds,
        "plain_seconds": plain.seconds,
        "plain_tokens": len(plain.tokens),
    }

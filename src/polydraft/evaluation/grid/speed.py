"""Wall clock of plain decoding and of every head, interleaved prompt by prompt in one process."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from polydraft.evaluation.grid.acceptance import open_variant
from polydraft.evaluation.grid.config import GridConfig, Variant
from polydraft.evaluation.grid.progress import Progress
from polydraft.evaluation.grid.store import Store, write_json
from polydraft.evaluation.prompts import Prompt, prompts_path, read_prompts
from polydraft.evaluation.runs import Run, Sampling, run_drafted, run_plain

WARM_UP_TOKENS = 8
TEMPERATURES = (0.0, 1.0)


def time_variants(
    config: GridConfig,
    store: Store,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    progress: Progress,
    budget_seconds: float | None = None,
) -> None:
    """Run every trained head on each prompt that it lacks, greedily and at temperature 1.

    A round is one prompt at one temperature: plain decoding, then the heads, in an order that rotates from
    round to round. Every head is compared with the plain run of its round. A row is kept as soon as it is
    there; no round begins after `budget_seconds`.
    """
    evaluation = config.evaluation
    prompts = read_prompts(prompts_path(evaluation.prompts))
    rounds = [
        (index, temperature)
        for index in spread([prompt.kind for prompt in prompts])[: evaluation.speed_prompts]
        for temperature in TEMPERATURES
    ]
    variants = [variant for variant in config.variants if store.is_trained(variant.cell)]
    rows = {variant.name: store.speed(variant, evaluation) for variant in variants}
    done = {(name, row["prompt"], row["temperature"]) for name, found in rows.items() for row in found}
    lacking = [[v for v in variants if v.times(r[1]) and (v.name, *r) not in done] for r in rounds]
    if not any(lacking):
        return
    heads = {variant.name: open_variant(store, variant, model, tokenizer) for variant in variants}
    began = time.monotonic()

    def drafted(variant: Variant, ids: Sequence[int], sampling: Sampling) -> Run:
        head = heads[variant.name]
        whole: dict[str, Any] = {"drafting": "chain", "draft_length": head.config.horizon}  # as replayed
        chosen = replace(sampling, verification=variant.verification, **whole)
        return run_drafted(model, head, tokenizer, ids, chosen)

    few = Sampling(max_new_tokens=min(WARM_UP_TOKENS, evaluation.speed_tokens))
    for temperature in TEMPERATURES:
        first, warm = prompts[0].encode(tokenizer), replace(few, temperature=temperature)
        run_plain(model, tokenizer, first, warm)
        for variant in (v for v in variants if v.times(temperature)):
            drafted(variant, first, warm)
    with progress.counting("wall clock", len(rounds)) as advance:
        for number, ((index, temperature), todo) in enumerate(zip(rounds, lacking, strict=True)):
            if todo and budget_seconds is not None and time.monotonic() - began > budget_seconds:
                progress.note(f"the budget is spent after {number} of {len(rounds)} rounds")
                return
            if todo:
                ids = prompts[index].encode(tokenizer)
                sampling = Sampling(
                    max_new_tokens=evaluation.speed_tokens,
                    temperature=temperature,
                    seed=evaluation.seed + index,
                )
                plain = run_plain(model, tokenizer, ids, sampling)
                turn = number % len(todo)
                for variant in todo[turn:] + todo[:turn]:
                    row = store.speed_settings(variant, evaluation)
                    row |= {"prompt": index, "temperature": temperature}
                    row |= speed_row(prompts[index], drafted(variant, ids, sampling), plain)
                    rows[variant.name].append(row)
                    write_json(store.speed_path(variant), rows[variant.name])
            advance(f"prompt {prompts[index].where}, T = {temperature:g}")


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


def spread(kinds: Sequence[str | None]) -> list[int]:
    """Indices of prompts, one of each kind in turn, so that the first few are of all kinds."""
    seen: dict[str | None, int] = {}
    turns = []
    for index, kind in enumerate(kinds):
        turns.append((seen.get(kind, 0), index))
        seen[kind] = seen.get(kind, 0) + 1
    return [index for _, index in sorted(turns)]

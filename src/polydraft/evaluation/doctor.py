"""What to expect of a head on this machine: what forwards and drafts cost, and how many drafts are kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from polydraft.decoding.acceptance import chain_tokens
from polydraft.decoding.costs import Costs, device_name, load_costs, machine_key, save_costs
from polydraft.decoding.measuring import measure, policy_widths
from polydraft.decoding.statistics import DecodingStatistics
from polydraft.evaluation.bandwidth import forward_bytes, memory_bandwidth
from polydraft.evaluation.grid.speed import spread
from polydraft.evaluation.prompts import Prompt
from polydraft.evaluation.runs import Sampling, run_drafted
from polydraft.heads import DraftHead
from polydraft.versions import versions

WIDTHS = (1, 2, 3, 4, 5, 6, 8, 12, 16)
"""New tokens of the forwards that are timed."""


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """What was measured, and what follows.

    Attributes:
        rows: texts decoded at once. horizon: drafts at most.
        bandwidth: of memory, bytes per second. weight_bytes: that a forward over one token reads.
        costs: of this machine. statistics: of drafted generations, one text at a time.
        prompts, new_tokens: of these. temperature: 0 is greedy.
    """

    rows: int
    horizon: int
    bandwidth: float
    weight_bytes: int
    costs: Costs
    statistics: DecodingStatistics
    prompts: int
    new_tokens: int
    temperature: float

    @property
    def limit_seconds(self) -> float:
        """Of a plain forward that did nothing but read the weights."""
        return self.weight_bytes / self.bandwidth

    @property
    def plain_seconds(self) -> float:
        """Of a plain forward."""
        return self.costs.forward_seconds(self.rows, 1)

    @property
    def acceptance(self) -> list[float]:
        """Entry s - 1: how often draft s was kept where those before it were; 0 where none ever were."""
        at_least = [1.0, *self.statistics.acceptance_per_position] + [0.0] * self.horizon
        return [at_least[s] / at_least[s - 1] if at_least[s - 1] else 0.0 for s in range(1, self.horizon + 1)]

    def cost(self, drafts: int) -> float:
        """Of a cycle, in plain forwards."""
        return self.costs.cycle(self.rows, drafts) / self.plain_seconds

    @property
    def ratios(self) -> list[float]:
        """Expected speed against plain decoding with k = 0..horizon drafts a step."""
        return [tokens / self.cost(k) for k, tokens in enumerate(chain_tokens(self.acceptance))]

    @property
    def best(self) -> int:
        """The drafts a step that are fastest; 0 where plain decoding is."""
        ratios = self.ratios
        return max(range(len(ratios)), key=lambda k: ratios[k])

    def tokens_per_step(self, drafts: int) -> float:
        """Expected, of each text."""
        return chain_tokens(self.acceptance)[drafts]


def examine(
    model: PreTrainedModel,
    head: DraftHead,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    *,
    rows: int = 1,
    on_stage: Callable[[str], None] = lambda line: None,
) -> Diagnosis:
    """Measure this machine, and decode `prompts` with all drafts that the head can make.

    What generation remembers of the costs here is renewed.

    Args:
        rows: texts to be decoded at once, at least 1. on_stage: called with a line before each of `stages`.

    Raises:
        InputError: a prompt cannot be encoded; before anything is measured.
        OSError: the user's cache cannot be written.
    """
    ids = [prompt.encode(tokenizer) for prompt in prompts]
    horizon = head.config.horizon
    on_stage("memory bandwidth")
    bandwidth = memory_bandwidth(model.device)
    found = measure(
        model,
        head,
        rows=sorted({1, rows}),
        widths=sorted({*WIDTHS, *policy_widths(horizon)}),
        lengths=range(1, horizon + 1),
        on_rows=lambda count: on_stage(f"forwards and drafts, batch {count}"),
    )
    key = machine_key(model, head, path="eager", tree=False)
    known = load_costs(key)
    save_costs(key, found if known is None else known.updated(found))
    runs = []
    for number, prompt in enumerate(ids, start=1):
        on_stage(f"acceptance, prompt {number} of {len(ids)}")
        always = replace(sampling, seed=sampling.seed + number - 1, draft_length=horizon)
        runs.append(run_drafted(model, head, tokenizer, prompt, always))
    bandwidth = max(bandwidth, memory_bandwidth(model.device))  # other work may have come between
    return Diagnosis(
        rows=rows,
        horizon=horizon,
        bandwidth=bandwidth,
        weight_bytes=forward_bytes(model),
        costs=found,
        statistics=DecodingStatistics.merged(run.statistics for run in runs if run.statistics is not None),
        prompts=len(ids),
        new_tokens=sum(len(run.tokens) for run in runs),
        temperature=sampling.temperature,
    )


def stages(*, rows: int, prompts: int) -> int:
    """How many lines `examine` says."""
    return 1 + len({1, rows}) + prompts


def some_of_each_kind(prompts: Sequence[Prompt], count: int) -> list[Prompt]:
    """The first `count` prompts, one of each kind in turn."""
    return [prompts[index] for index in spread([prompt.kind for prompt in prompts])[:count]]


def to_dict(found: Diagnosis, *, model: str, head: str, on: PreTrainedModel) -> dict[str, Any]:
    """All figures, ready for JSON; seconds, bytes per second, and ratios to plain decoding."""
    return {
        "model": model,
        "head": head,
        "dtype": str(on.dtype).removeprefix("torch."),
        "device": device_name(on.device),
        "threads": torch.get_num_threads(),
        "batch": found.rows,
        "memory_bandwidth": found.bandwidth,
        "weight_bytes": found.weight_bytes,
        "limit_seconds": found.limit_seconds,
        "share_of_limit": found.limit_seconds / found.plain_seconds,
        "forward_seconds": {str(w): s for (rows, w), s in found.costs.forward.items() if rows == found.rows},
        "drafting_seconds": {
            str(k): s for (rows, k), s in found.costs.drafting.items() if rows == found.rows
        },
        "prompts": found.prompts,
        "new_tokens": found.new_tokens,
        "temperature": found.temperature,
        "acceptance": found.acceptance,
        "mean_acceptance_length": found.statistics.mean_acceptance_length,
        "expected_ratio": dict(enumerate(found.ratios)),
        "best_drafts": found.best,
        "plain_tokens_per_second": found.rows / found.plain_seconds,
        "expected_tokens_per_second": found.rows / found.plain_seconds * found.ratios[found.best],
        "versions": versions(),
    }

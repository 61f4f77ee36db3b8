"""What drafting and verifying cost on one machine, and the file that remembers it.

The file lies in the user's cache, one for each combination of model, head, dtype, device, threads and
versions. Since drafting is decided by what it holds, processes that share it decide alike.
"""

from __future__ import annotations

import hashlib
import json
import os
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from polydraft.compat import attention_implementation
from polydraft.embedded import cache_folder
from polydraft.errors import PolydraftError
from polydraft.files import write_atomic
from polydraft.heads import DraftHead
from polydraft.heads.fingerprint import describe_base
from polydraft.versions import versions

FORMAT = 2
"""Format of the file; costs in another one are measured again."""

Grid = Mapping[tuple[int, int], float]
"""(rows, tokens) -> seconds; for every number of rows at least one number of tokens, or nothing at all."""


@dataclass(frozen=True)
class Costs:
    """Seconds measured, and between them by straight lines; beyond them those of the nearest.

    Attributes:
        forward: a forward of the base model, by new tokens a row. drafting: greedy drafting, by drafts a row.
        rest: all else in a cycle, by drafts a row, one of which is kept: verification, and what is done for
            each row. rest_sampled: the same for rows whose tokens are drawn, and what drawing adds to
            drafting.
    """

    forward: Grid
    drafting: Grid
    rest: Grid = field(default_factory=dict)
    rest_sampled: Grid = field(default_factory=dict)

    def forward_seconds(self, rows: int, width: int) -> float:
        """Return the seconds of a forward over `width` new tokens of each of `rows` texts."""
        return between(self.forward, rows, width)

    def drafting_seconds(self, rows: int, drafts: int) -> float:
        """Return the seconds of making `drafts` drafts for each of `rows` texts; 0 for none."""
        return between(self.drafting, rows, drafts) if drafts else 0.0

    def rest_seconds(self, rows: int, drafts: int, *, sampled: int = 0) -> float:
        """Return the seconds of a cycle without its forward and drafts; `sampled` of the rows are drawn."""
        share = sampled / rows
        greedy, drawn = (between(grid, rows, drafts) for grid in (self.rest, self.rest_sampled))
        return (1 - share) * greedy + share * drawn

    def cycle(self, rows: int, drafts: int, *, sampled: int = 0) -> float:
        """Return the seconds of drafting, of the forward over pending token and drafts, and of the rest.

        Args:
            sampled: the number of rows whose tokens are drawn.
        """
        making = self.drafting_seconds(rows, drafts) + self.forward_seconds(rows, drafts + 1)
        return making + self.rest_seconds(rows, drafts, sampled=sampled)

    def copying(self) -> CopyingCosts:
        """Return the costs of cycles whose drafts are copied."""
        return CopyingCosts(self)

    @property
    def rows(self) -> set[int]:
        """The numbers of rows measured."""
        return {rows for rows, _ in self.forward}

    def updated(self, newer: Costs) -> Costs:
        """These, and what `newer` has measured instead."""
        return Costs(
            **{
                name: {at: s for at, s in getattr(self, name).items() if at[0] not in newer.rows}
                | dict(getattr(newer, name))
                for name in GRIDS
            }
        )


GRIDS = tuple(one.name for one in fields(Costs))


@dataclass(frozen=True)
class CopyingCosts:
    """The costs of cycles whose drafts cost nothing."""

    costs: Costs

    def cycle(self, rows: int, drafts: int, *, sampled: int = 0) -> float:
        """Return the seconds of the forward over pending token and drafts, and of a plain cycle's rest."""
        rest = self.costs.rest_seconds(rows, 0, sampled=sampled)
        return self.costs.forward_seconds(rows, drafts + 1) + rest


def between(grid: Grid, rows: int, tokens: int) -> float:
    """Bilinear interpolation; constant beyond what is there, 0 where nothing is."""
    if not grid:
        return 0.0
    by_rows = {
        count: line({t: s for (r, t), s in grid.items() if r == count}, tokens)
        for count in {r for r, _ in grid}
    }
    return line(by_rows, rows)


def line(points: Mapping[int, float], x: float) -> float:
    """Linear interpolation of at least one point; constant beyond them."""
    xs = sorted(points)
    right = min(bisect_left(xs, x), len(xs) - 1)
    left = max(right - 1, 0)
    if x >= xs[right] or x <= xs[left]:
        return points[xs[right] if x >= xs[right] else xs[left]]
    share = (x - xs[left]) / (xs[right] - xs[left])
    return (1 - share) * points[xs[left]] + share * points[xs[right]]


def machine_key(model: PreTrainedModel, head: DraftHead, *, path: str, tree: bool) -> dict[str, Any]:
    """All that decides what a forward or a draft costs.

    Args:
        path: how the model is run: "eager", "compiled". tree: trees are drafted, not chains.
    """
    sizes = {k: v for k, v in head.config.to_dict().items() if k not in ("base_model", "provenance")}
    return {
        "format": FORMAT,
        "path": path,
        "tree": tree,
        "model": {k: v for k, v in describe_base(model).items() if k != "id"},
        "head": hashlib.sha256(json.dumps(sizes, sort_keys=True, default=str).encode()).hexdigest()[:32],
        "adapted": head.switch is not None,
        "dtype": str(model.dtype),
        "attention": attention_implementation(model.config),
        "device": device_name(model.device),
        "threads": torch.get_num_threads(),
        "versions": versions(),
    }


def device_name(device: torch.device) -> str:
    """What computes, as far as torch knows it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}"


def costs_file(key: Mapping[str, Any]) -> Path:
    """Where the costs of `key` are remembered."""
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]
    return cache_folder() / "costs" / f"{digest}.json"


def load_costs(key: Mapping[str, Any]) -> Costs | None:
    """What is remembered, if anything.

    Raises:
        PolydraftError: the file is damaged.
    """
    path = costs_file(key)
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text())
        grids = {
            name: {(int(rows), int(tokens)): float(seconds) for rows, tokens, seconds in content[name]}
            for name in GRIDS
        }
    except (ValueError, KeyError, TypeError) as error:
        raise PolydraftError(f"{path} is damaged: delete it, it will be measured again") from error
    return Costs(**grids)


def save_costs(key: Mapping[str, Any], costs: Costs) -> None:
    """Remember.

    Raises:
        OSError: the cache cannot be written.
    """
    path = costs_file(key)
    path.parent.mkdir(parents=True, exist_ok=True)
    grids = {name: [[*at, seconds] for at, seconds in sorted(getattr(costs, name).items())] for name in GRIDS}
    write_atomic(path, json.dumps({"key": key} | grids, indent=1) + "\n")

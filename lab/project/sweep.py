"""The roofline over acceptance, rank, horizon and batch: where drafting pays, and where rank stops paying."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from lab.project.expectation import cell_tokens, expected_tokens
from lab.project.machine import Machine
from lab.project.roofline import Load, Projection, project
from lab.project.shapes import COSTED, HeadShape, ModelShape
from polydraft.errors import InputError
from polydraft.joint import MEMBERS

FEATURE_RATIO = 4
"""Width of the fusing layer over d, as the shipped head has it."""


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """What is projected.

    Attributes:
        ranks, horizons, batches: all combinations. acceptances: conditional acceptance by position, each held
            for all ranks: what a rank adds to acceptance is not predicted, but what it must add (`rows`).
        context, mode: of `Load`. joint, features, draft_vocab_size, map_rank, markov_rank, feature_size: of
            the heads; a feature_size of 0 is `FEATURE_RATIO` d.
    """

    ranks: tuple[int, ...]
    horizons: tuple[int, ...]
    batches: tuple[int, ...]
    acceptances: tuple[tuple[float, ...], ...]
    context: int = 512
    mode: str = "greedy"
    joint: str = "cp"
    features: str = "fused"
    draft_vocab_size: int = 32768
    map_rank: int = 128
    markov_rank: int = 128
    feature_size: int = 0

    def __post_init__(self) -> None:
        for name in ("ranks", "horizons", "batches"):
            if not getattr(self, name) or min(getattr(self, name)) < 1:
                raise InputError(f"{name} must be whole numbers from 1")

    def head(self, model: ModelShape, *, rank: int, horizon: int, joint: str | None = None) -> HeadShape:
        """One head beside `model`, in bfloat16."""
        return HeadShape(
            joint=joint or self.joint,
            rank=rank,
            horizon=horizon,
            draft_vocab_size=min(self.draft_vocab_size, model.vocab_size),
            feature_size=self.feature_size or FEATURE_RATIO * model.hidden_size,
            features=self.features,
            map_rank=self.map_rank,
            markov_rank=self.markov_rank,
        )


def rows(model: ModelShape, machine: Machine, sweep: Sweep) -> list[dict[str, Any]]:
    """A row per batch, horizon and rank: cost, speed-up by acceptance, and what rank must add.

    `gain_needed`: by how much tokens a cycle must grow over those of the lowest rank for this one to be as
    fast, cost / cost of the lowest rank - 1.
    """
    return list(_rows(model, machine, sweep))


def _rows(model: ModelShape, machine: Machine, sweep: Sweep) -> Iterator[dict[str, Any]]:
    for batch in sweep.batches:
        load = Load(batch=batch, context=sweep.context, mode=sweep.mode)
        for horizon in sweep.horizons:
            lowest: Projection | None = None
            for rank in sorted(sweep.ranks):
                head = sweep.head(model, rank=rank, horizon=horizon)
                found = project(model, head, machine, load)
                lowest = lowest or found
                yield {
                    "model": model.name,
                    "batch": batch,
                    "horizon": horizon,
                    "rank": rank,
                    "parameters": head.parameters(model),
                    "cost": found.cost,
                    "drafting_share": found.drafting / found.cycle,
                    "gain_needed": found.cost / lowest.cost - 1,
                    "speedups": [found.speedup(expected_tokens(a, horizon)) for a in sweep.acceptances],
                    "seconds": asdict(found),
                }


def grid_rows(
    model: ModelShape,
    machine: Machine,
    sweep: Sweep,
    cells: Sequence[dict[str, Any]],
    evaluated: Sequence[int],
) -> list[dict[str, Any]]:
    """The heads of a grid, with the tokens per step replayed there, beside `model` on `machine`.

    A row per batch and head whose costs are known; it supposes that a head of the same kind would be accepted
    as often beside this model.

    Args:
        evaluated: of each cell the components it evaluates.
    """
    out = []
    for batch in sweep.batches:
        load = Load(batch=batch, context=sweep.context, mode=sweep.mode)
        for cell, components in zip(cells, evaluated, strict=True):
            tokens = cell_tokens(cell, sweep.mode)
            if tokens is None or cell["joint"] not in COSTED:
                continue
            rank = 1 if MEMBERS[cell["joint"]].single else cell["rank"]
            head = sweep.head(model, rank=rank, horizon=cell["horizon"], joint=cell["joint"])
            found = project(model, replace(head, evaluated=components), machine, load)
            out.append(
                {
                    "model": model.name,
                    "batch": batch,
                    "name": cell["name"],
                    "tokens": tokens,
                    "cost": found.cost,
                    "speedup": found.speedup(tokens),
                }
            )
    return out

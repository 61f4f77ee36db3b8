"""From the rows of replays and timed runs to figures with intervals."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor

ALL = "all"


@dataclass(frozen=True)
class Bootstrap:
    """Prompts resampled with replacement, within each kind: the kinds are given, their prompts a sample.

    Attributes:
        kinds: of each prompt. picks: (draws, P) indices of prompts, the columns in the order of `kinds`.
    """

    kinds: tuple[str | None, ...]
    picks: Tensor

    @classmethod
    def draw(cls, kinds: Sequence[str | None], *, draws: int, seed: int) -> Bootstrap:
        """`draws` of them, fixed by `seed`."""
        rng = random.Random(seed)
        same = [[i for i, other in enumerate(kinds) if other == kind] for kind in kinds]
        picks = [[rng.choice(group) for group in same] for _ in range(draws)]
        return cls(tuple(kinds), torch.tensor(picks))

    def groups(self) -> dict[str, Tensor]:
        """Masks (P,) of the kinds, those named, and of all."""
        names = dict.fromkeys(kind for kind in self.kinds if kind is not None)
        masks = {name: torch.tensor([kind == name for kind in self.kinds]) for name in names}
        return {ALL: torch.ones(len(self.kinds), dtype=torch.bool)} | masks

    def sums(self, values: Tensor, mask: Tensor) -> Tensor:
        """Sum over a group of prompts in every draw; (P,) -> (draws,)."""
        return (values * mask)[self.picks].sum(-1)


def interval(values: Tensor) -> tuple[float, float]:
    """The middle 95%."""
    low, high = values.quantile(torch.tensor([0.025, 0.975], dtype=values.dtype)).tolist()
    return low, high


@dataclass(frozen=True)
class Counts:
    """Per prompt (P,): tokens that cycles emitted, and cycles."""

    tokens: Tensor
    cycles: Tensor

    @classmethod
    def of(cls, rows: Sequence[Mapping[str, Any]], prompts: int) -> Counts:
        """Sums over the rows of each prompt."""
        tokens, cycles = torch.zeros(2, prompts, dtype=torch.float64)
        for row in rows:
            tokens[row["prompt"]] += row["tokens"]
            cycles[row["prompt"]] += row["cycles"]
        return cls(tokens, cycles)


def lengths(counts: Counts, bootstrap: Bootstrap, reference: Counts | None = None) -> dict[str, Any]:
    """Mean acceptance length (tokens per cycle) of each group, and its ratio to the reference's.

    Intervals are those of the bootstrap over prompts; the ratio's is paired, both taken over the same draws.
    """
    out: dict[str, Any] = {}
    for name, mask in bootstrap.groups().items():
        total = float((counts.cycles * mask).sum())
        if not total:
            continue
        drawn = bootstrap.sums(counts.tokens, mask) / bootstrap.sums(counts.cycles, mask)
        length = float((counts.tokens * mask).sum()) / total
        out[name] = {"length": length, "interval": interval(drawn)}
        if reference is not None:
            base = float((reference.tokens * mask).sum()) / float((reference.cycles * mask).sum())
            drawn_base = bootstrap.sums(reference.tokens, mask) / bootstrap.sums(reference.cycles, mask)
            out[name] |= {"ratio": length / base, "ratio_interval": interval(drawn / drawn_base)}
    return out


def conditional(rows: Sequence[Mapping[str, Any]]) -> list[float]:
    """P(draft s accepted | those before it were), over the cycles that have such a draft to judge."""
    tried = torch.tensor([row["tried"] for row in rows], dtype=torch.float64).sum(0)
    accepted = torch.tensor([row["accepted"] for row in rows], dtype=torch.float64).sum(0)
    return [float(a / t) if t else 0.0 for a, t in zip(accepted, tried, strict=True)]


def speeds(rows: Sequence[Mapping[str, Any]], *, draws: int, seed: int) -> dict[str, Any]:
    """Figures of timed runs at one temperature, a row per prompt.

    `median_ratio` is the median over prompts of the ratio to the plain run of the same round, with its
    bootstrap interval. `cycle_cost` is the median time of a
    cycle, the prompt's forward spread over all, in plain tokens. `length` is tokens per step as decoded.
    """
    drafted = [row["tokens"] / row["seconds"] for row in rows]
    plain = [row["plain_tokens"] / row["plain_seconds"] for row in rows]
    ratios = torch.tensor([d / p for d, p in zip(drafted, plain, strict=True)], dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    picks = torch.randint(len(rows), (draws, len(rows)), generator=generator)
    costs = [row["seconds"] / (row["steps"] + 1) * p for row, p in zip(rows, plain, strict=True)]
    return {
        "prompts": len(rows),
        "tokens_per_second": median(drafted),
        "plain_tokens_per_second": median(plain),
        "token_ms": 1000 / median(drafted),
        "plain_token_ms": 1000 / median(plain),
        "median_ratio": float(ratios.quantile(0.5)),
        "interval": interval(ratios[picks].quantile(0.5, dim=-1)),
        "drafting_share": sum(row["drafting_seconds"] for row in rows) / sum(row["seconds"] for row in rows),
        "cycle_cost": median(costs),
        "length": sum(row["tokens"] - 1 for row in rows) / max(sum(row["steps"] for row in rows), 1),
    }


def window_figures(
    rows: Sequence[Mapping[str, Any]], reference: Sequence[Mapping[str, Any]], *, draws: int, seed: int
) -> dict[str, Any]:
    """Losses over windows of test text, with bootstrap intervals over windows.

    `joint` is the mean of -log q(x_1..x_n) over anchors; `first_draft` that of its first position; `language`
    the model's own loss per token, what gives the first token. `difference`: of `joint` to the reference's,
    over the same windows.
    """
    nll = torch.tensor([sum(row["nll"]) for row in rows], dtype=torch.float64)
    counts = torch.tensor([row["counts"] for row in rows], dtype=torch.float64)
    language = torch.tensor([row["language"] for row in rows], dtype=torch.float64)
    tokens = torch.tensor([row["tokens"] for row in rows], dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    picks = torch.randint(len(rows), (draws, len(rows)), generator=generator)

    def drawn(values: Tensor, by: Tensor) -> Tensor:
        return values[picks].sum(-1) / by[picks].sum(-1)

    out = {
        "joint": float(nll.sum() / counts.sum()),
        "joint_interval": interval(drawn(nll, counts)),
        "first_draft": sum(row["nll"][0] for row in rows) / float(counts.sum()),
        "language": float(language.sum() / tokens.sum()),
        "language_interval": interval(drawn(language, tokens)),
        "windows": len(rows),
    }
    if reference:
        base = torch.tensor([sum(row["nll"]) for row in reference], dtype=torch.float64)
        base_counts = torch.tensor([row["counts"] for row in reference], dtype=torch.float64)
        out["difference"] = out["joint"] - float(base.sum() / base_counts.sum())
        out["difference_interval"] = interval(drawn(nll, counts) - drawn(base, base_counts))
    return out

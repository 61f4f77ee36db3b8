"""What was measured of a head on a machine, and what follows from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from polydraft.decoding.acceptance import TreeExpectation, chain_tokens, usual_tokens
from polydraft.decoding.costs import Costs, device_name
from polydraft.decoding.measuring import MOST_NODES
from polydraft.decoding.statistics import DecodingStatistics
from polydraft.versions import versions


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """Figures of one way to generate: how it drafts, compiled or not.

    Attributes:
        rows: texts decoded at once. horizon: tokens that the head sees ahead.
        drafting: "tree" or "chain".
        compiling: plain forwards compiled in the time of one that is not; None where nothing is compiled.
        bandwidth: of memory, bytes per second. weight_bytes: that a forward over one token reads.
        costs: of this machine, this way. statistics: of drafted generations, one text at a time.
        tried: drafts of each of their steps, nodes of a tree.
        prompts, new_tokens: of these. temperature: 0 is greedy.
    """

    rows: int
    horizon: int
    drafting: str
    compiling: float | None
    bandwidth: float
    weight_bytes: int
    costs: Costs
    statistics: DecodingStatistics
    tried: int
    prompts: int
    new_tokens: int
    temperature: float

    @property
    def trees(self) -> bool:
        """Whether trees are drafted."""
        return self.drafting == "tree"

    @property
    def limit_seconds(self) -> float:
        """Return the seconds of a plain forward that did nothing but read the weights."""
        return self.weight_bytes / self.bandwidth

    @property
    def plain_seconds(self) -> float:
        """Return the seconds of a plain forward this way."""
        return self.costs.forward_seconds(self.rows, 1)

    @property
    def eager_seconds(self) -> float:
        """Return the seconds of a plain forward that is not compiled."""
        return self.plain_seconds * (self.compiling or 1.0)

    @property
    def acceptance(self) -> list[float]:
        """Entry s - 1: how often a draft s tokens ahead was kept where one was before it; 0 if none was."""
        at_least = [1.0, *self.statistics.acceptance_per_position] + [0.0] * self.horizon
        return [at_least[s] / at_least[s - 1] if at_least[s - 1] else 0.0 for s in range(1, self.horizon + 1)]

    @property
    def sizes(self) -> Sequence[int]:
        """The numbers of drafts that generation chooses from, ascending, 0 first."""
        return TreeExpectation(MOST_NODES).sizes if self.trees else range(self.horizon + 1)

    @property
    def tokens(self) -> dict[int, float]:
        """Expected of a step, for each of `sizes`.

        Of a chain as its drafts were kept. Of trees E(N) = 1 + c g(N), as in `TreeExpectation`, with c such
        that E(`tried`) is what was seen.
        """
        if not self.trees:
            return dict(zip(self.sizes, chain_tokens(self.acceptance), strict=True))
        factor = (self.statistics.mean_acceptance_length - 1) / usual_tokens(self.tried)
        return {nodes: 1 + factor * usual_tokens(nodes) for nodes in self.sizes}

    def cost(self, drafts: int) -> float:
        """Return the cost of a cycle, in plain cycles this way."""
        whole, plain = (self.costs.cycle(self.rows, size, sampled=self.sampled) for size in (drafts, 0))
        return whole / plain

    @property
    def sampled(self) -> int:
        """How many of the rows are sampled."""
        return self.rows if self.temperature else 0

    @property
    def ratios(self) -> dict[int, float]:
        """Expected speed with each of `sizes`, against plain decoding this way, compiled or not."""
        return {size: tokens / self.cost(size) for size, tokens in self.tokens.items()}

    @property
    def eager_ratios(self) -> dict[int, float]:
        """Expected speed with each of `sizes`, against plain decoding that is not compiled."""
        return {size: ratio * (self.compiling or 1.0) for size, ratio in self.ratios.items()}

    @property
    def best(self) -> int:
        """The drafts a step that are fastest; 0 where drafting does not pay."""
        return fastest(self.ratios)

    @property
    def best_drafted(self) -> int:
        """The drafts a step that are fastest, at least 1."""
        return fastest({size: ratio for size, ratio in self.ratios.items() if size})

    @property
    def speed_up(self) -> float:
        """Expected with `best`, against plain decoding this way."""
        return self.ratios[self.best]

    @property
    def plain_tokens_per_second(self) -> float:
        """Return the tokens per second of all texts together, this way."""
        return self.rows / self.plain_seconds

    def to_dict(self, *, model: str, head: str, on: PreTrainedModel) -> dict[str, Any]:
        """All figures, ready for JSON; seconds, bytes per second, and ratios to plain decoding.

        Args:
            model, head: their names. on: the model.
        """
        forward, drafting = (
            {str(size): seconds for (rows, size), seconds in grid.items() if rows == self.rows}
            for grid in (self.costs.forward, self.costs.drafting)
        )
        return {
            "model": model,
            "head": head,
            "dtype": str(on.dtype).removeprefix("torch."),
            "device": device_name(on.device),
            "threads": torch.get_num_threads(),
            "batch": self.rows,
            "drafting": self.drafting,
            "compiled": self.compiling is not None,
            "memory_bandwidth": self.bandwidth,
            "weight_bytes": self.weight_bytes,
            "limit_seconds": self.limit_seconds,
            "share_of_limit": self.limit_seconds / self.plain_seconds,
            "forward_seconds": forward,
            "drafting_seconds": drafting,
            "rest_seconds": {
                str(size): self.costs.rest_seconds(self.rows, size, sampled=self.sampled)
                for size in self.sizes
            },
            "eager_forward_seconds": self.eager_seconds,
            "prompts": self.prompts,
            "new_tokens": self.new_tokens,
            "temperature": self.temperature,
            "tried_drafts": self.tried,
            "acceptance": self.acceptance,
            "mean_acceptance_length": self.statistics.mean_acceptance_length,
            "expected_tokens": self.tokens,
            "expected_ratio": self.ratios,
            "expected_ratio_to_eager": self.eager_ratios,
            "best_drafts": self.best,
            "plain_tokens_per_second": self.plain_tokens_per_second,
            "eager_tokens_per_second": self.rows / self.eager_seconds,
            "expected_tokens_per_second": self.plain_tokens_per_second * self.speed_up,
            "versions": versions(),
        }


def fastest(ratios: dict[int, float]) -> int:
    """The number of drafts with the highest ratio; the smallest of equals."""
    return max(ratios, key=lambda size: ratios[size])

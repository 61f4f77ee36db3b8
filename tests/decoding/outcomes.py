"""Every outcome of a random procedure with its exact probability: each choice is made every possible way."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import pytest
import torch
from torch import Tensor

from polydraft.decoding import block, engine, verify

T = TypeVar("T")


@dataclass
class Choice:
    """One choice of the run at hand: the options that are possible, and which of them is taken."""

    options: list[int]
    chances: list[float]
    taken: int = 0


class Choices:
    """Stands in for chance: `verify.happens`, `verify.draw` and `torch.multinomial`.

    Attributes:
        weights: of the last `draw`, normalised; which token is drawn from them is left open.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._plan: list[Choice] = []
        self._made = 0
        self._depth: int | None = None
        self.weights = torch.empty(0)
        for module in (verify, block):
            monkeypatch.setattr(module, "happens", lambda chance, *_: not self.choose([chance, 1 - chance]))
        for module in (verify, block, engine):
            monkeypatch.setattr(module, "draw", self._draw)
        monkeypatch.setattr(torch, "multinomial", self._multinomial)

    def choose(self, chances: Sequence[float]) -> int:
        """The next choice of this run: an index of `chances`, never one whose chance is 0 or below."""
        if self._made == len(self._plan):
            options = [k for k, chance in enumerate(chances) if chance > 0]
            whole = sum(chances[k] for k in options)
            self._plan.append(Choice(options, [chances[k] / whole for k in options]))
        choice = self._plan[self._made]
        self._made += 1
        return choice.options[choice.taken]

    def every(self, run: Callable[[], T], *, depth: int | None = None) -> Iterator[tuple[float, T]]:
        """All results of `run`, depth first, with their probabilities.

        Args:
            depth: tokens drawn by `torch.multinomial` that matter; those after them are the likeliest.
        """
        self._plan, self._depth = [], depth
        while True:
            self._made = 0
            result = run()
            chance = 1.0
            for choice in self._plan:
                chance *= choice.chances[choice.taken]
            yield chance, result
            while self._plan and self._plan[-1].taken + 1 == len(self._plan[-1].options):
                self._plan.pop()
            if not self._plan:
                return
            self._plan[-1].taken += 1

    def _draw(self, weights: Tensor, generator: torch.Generator | None) -> int:
        self.weights = weights.double() / weights.double().sum()
        return 0

    def _multinomial(self, row: Tensor, count: int, *, generator: torch.Generator | None) -> Tensor:
        assert (row.shape[0], count) == (1, 1)
        if self._made == self._depth:
            return row.argmax(-1, keepdim=True)
        return torch.tensor([[self.choose(row[0].tolist())]])

"""Random joints of every member, made by its gate, and their tables by enumeration."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from polydraft.joint import MEMBERS, Gate, JointDistribution, LatentMixture, member
from polydraft.joint.mixture import ALL, Bias, Rows
from tests.joint.enumeration import Array, enumerate_tokens, mixture, softmax
from tests.joint.processes import process
from tests.joint.toy import TOY

NAMES = tuple(dict.fromkeys((*MEMBERS, TOY)))
"""Every registered member, and a sixth."""
every_member = pytest.mark.parametrize("name", NAMES)
FEATURES = 3
VOCAB_SIZE, HORIZON, RANK = 5, 4, 3
TOLERANCE = 1e-10
FALSE_ALARM_RATE = 1e-4
"""Chance that a sampling test fails on a correct sampler; the seeds are fixed, so it never changes."""


@dataclass(frozen=True)
class Case:
    """What a joint is made of.

    Attributes:
        gate: of the member. features: (B, d). logits: (B, n, r, V).
        biases: (B, n, V, r, V), [b, s, u, a, v] added after token u, for members that see it.
    """

    gate: Gate
    features: Tensor
    logits: Tensor
    biases: Tensor | None

    def joint(self) -> LatentMixture:
        """The joint itself."""
        return LatentMixture(self.gate(self.features), self.logits, table_bias(self.biases))

    def __getitem__(self, rows: Any) -> Case:
        """Some rows of the batch."""
        biases = None if self.biases is None else self.biases[rows]
        return replace(self, features=self.features[rows], logits=self.logits[rows], biases=biases)

    def repeated(self, count: int, *, row: int = 0) -> Case:
        """One row, `count` times, without a copy of it."""
        own = {
            name: None if value is None else value[row : row + 1].expand(count, *value.shape[1:])
            for name, value in (("features", self.features), ("logits", self.logits), ("biases", self.biases))
        }
        return replace(self, **own)  # type: ignore[arg-type]

    def split(self) -> Iterator[Case]:
        """Every row of the batch by itself."""
        return (self[row : row + 1] for row in range(len(self.features)))

    def factors(self, row: int = 0) -> Array:
        """P_a^(s)(v | u) of one row; (n, r, V, V)."""
        logits = self.logits[row].detach().double().numpy()[:, :, None]
        if self.biases is None:
            return np.repeat(softmax(logits), logits.shape[-1], axis=2)
        biases = self.biases[row].detach().double().numpy().swapaxes(1, 2).copy()
        biases[0] = 0  # no token stands before the first position
        return softmax(logits + biases)

    def reference(self, row: int = 0) -> Array:
        """The whole table of one row, by enumeration; n axes of V."""
        return mixture(process(self.gate(self.features), row), self.factors(row))


def table_bias(biases: Tensor | None) -> Bias | None:
    """A bias read off a table, one for all components where there is but one."""
    if biases is None:
        return None

    def bias(position: int, before: Tensor, rows: Rows = ALL) -> Tensor:
        each = torch.arange(len(biases))[rows]
        found = biases[each, position, before.clamp(min=0)]
        found = torch.where((before >= 0)[:, None, None], found, 0.0)
        return found.squeeze(1) if found.shape[1] == 1 else found

    return bias


def random_case(
    name: str,
    *,
    rank: int = RANK,
    horizon: int = HORIZON,
    vocab_size: int = VOCAB_SIZE,
    batch: int = 1,
    seed: int = 0,
    scale: float = 1.5,
) -> Case:
    """Of a member, in float64: logits and biases of standard deviation `scale`, gates that are far from even.

    Args:
        rank: of members of one component it is one, whatever is asked.
    """
    found = member(name)
    rank = 1 if found.single else rank
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    gate = found.gate(FEATURES, rank, horizon).double().requires_grad_(False)
    for parameter in gate.parameters():
        parameter.copy_(normal(*parameter.shape))
    logits = scale * normal(batch, horizon, rank, vocab_size)
    biases = scale * normal(batch, horizon, vocab_size, rank, vocab_size) if found.markov else None
    return Case(gate, normal(batch, FEATURES), logits, biases)


def random_joint(name: str, **sizes: Any) -> LatentMixture:
    """The joint of `random_case`."""
    return random_case(name, **sizes).joint()


def table(case: Case, length: int, *, row: int = 0) -> Array:
    """exp(log_prob) of every sequence of `length` tokens, as an array with that many axes."""
    tokens = torch.tensor(enumerate_tokens(case.logits.shape[-1], length))
    return as_table(case.repeated(len(tokens), row=row).joint(), tokens)


def as_table(joint: JointDistribution, tokens: Tensor) -> Array:
    """exp(log_prob) of all `tokens`, one sequence a row of `joint`, as an array with an axis a position."""
    shape = (joint.vocab_size,) * tokens.shape[1]
    return np.asarray(joint.log_prob(tokens).exp().numpy().reshape(shape))

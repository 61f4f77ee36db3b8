"""Random joints of every member, made by its gate, and their tables by enumeration."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from polydraft.joint import MEMBERS, Gate, JointDistribution, LatentMixture, Step, StepwiseJoint, member
from polydraft.joint.mixture import ALL, Bias, Rows
from tests.joint.enumeration import Array, enumerate_tokens, mixture, softmax
from tests.joint.processes import process
from tests.joint.toy import TOY

NAMES = tuple(dict.fromkeys((*MEMBERS, TOY)))
"""Every registered member, and one more."""
STEPWISE = tuple(name for name in NAMES if name != TOY and MEMBERS[name].steps)
"""Members that are no mixture: what they are is in `steps`."""
MIXTURES = tuple(name for name in NAMES if name not in STEPWISE)
every_member = pytest.mark.parametrize("name", NAMES)
every_mixture = pytest.mark.parametrize("name", MIXTURES)
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

    def joint(self) -> Any:
        """The joint itself, a `LatentMixture` but for `StepCase`."""
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


@dataclass(frozen=True)
class StepCase(Case):
    """A recurrent network in place of a head's module; `logits` give the sizes alone.

        z_1 = features, z_{s+1} = tanh(W z_s + E x_s),  rows softmax(U_s z_s)

    Attributes:
        cell: W, (F, F). tokens: E, (V, F). unembedding: U, (n, V, F).
    """

    cell: Tensor
    tokens: Tensor
    unembedding: Tensor

    def joint(self) -> StepwiseJoint:
        """The joint itself."""
        rows = self.unembedding
        horizon, size = rows.shape[:2]
        stepper = TableStepper(self)
        return StepwiseJoint(stepper, lambda z, s: times(z, rows[s]), horizon=horizon, vocab_size=size)

    def reference(self, row: int = 0) -> Array:
        """The whole table of one row, a sequence at a time."""
        cell, told, rows = (x.numpy() for x in (self.cell, self.tokens, self.unembedding))
        horizon, size = rows.shape[:2]
        out = np.ones((size,) * horizon)
        for tokens in enumerate_tokens(size, horizon):
            z = self.features[row].numpy()
            for s, token in enumerate(tokens):
                out[tokens] *= softmax(rows[s] @ z)[token]
                z = np.tanh(cell @ z + told[token])
        return out


class TableStepper:
    """`polydraft.joint.Stepper` of a `StepCase`; counts its steps, for a memory that goes along."""

    def __init__(self, case: StepCase) -> None:
        self._case = case
        self.batch_size, self.device = len(case.features), case.features.device

    def start(self) -> Step:
        return Step(self._case.features, (torch.zeros(self.batch_size),))

    def advance(self, step: Step, position: int, tokens: Tensor) -> Step:
        assert bool((step.memory[0] == position).all())
        told = torch.where((tokens >= 0)[:, None], self._case.tokens[tokens.clamp(min=0)], 0.0)
        return Step((times(step.z, self._case.cell) + told).tanh(), (step.memory[0] + 1,))

    def select(self, rows: Tensor) -> TableStepper:
        return TableStepper(self._case[rows])


def times(z: Tensor, matrix: Tensor) -> Tensor:
    """z @ matrix.T, each row as if it were alone, to the bit."""
    return (z[:, None] * matrix).sum(-1)


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
    if found.steps:
        empty = torch.empty(batch, horizon, 1, vocab_size, dtype=torch.float64)
        weights = normal(FEATURES, FEATURES), normal(vocab_size, FEATURES)
        rows = scale * normal(horizon, vocab_size, FEATURES)
        return StepCase(gate, normal(batch, FEATURES), empty, None, *weights, rows)
    logits = scale * normal(batch, horizon, rank, vocab_size)
    biases = scale * normal(batch, horizon, vocab_size, rank, vocab_size) if found.markov else None
    return Case(gate, normal(batch, FEATURES), logits, biases)


def random_joint(name: str, **sizes: Any) -> Any:
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

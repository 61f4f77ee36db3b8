"""Gradients against finite differences, extreme logits, dtypes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from polydraft.joint import Gate, LatentMixture, member
from polydraft.joint.mixture import ALL, Rows
from tests.joint.members import FEATURES, MIXTURES, Case, every_mixture, random_case, table_bias

WIDE, NARROW = 49_152, 1_024
"""A real vocabulary, and one that many rows can be had of."""
MANY = 15_000
"""Rows of each member over the small one."""


class Whole(nn.Module):
    """A gate and the logits behind it as one module, so that all are differentiated alike."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.gate: Gate = case.gate
        self.features, self.logits = nn.Parameter(case.features), nn.Parameter(case.logits)
        self.biases = None if case.biases is None else nn.Parameter(case.biases)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        joint = LatentMixture(self.gate(self.features), self.logits, table_bias(self.biases))
        return joint.log_prob(tokens), joint.conditional(tokens[:, :-1])


@every_mixture
@pytest.mark.parametrize("horizon", [2, 3])
def test_gradients_of_log_prob_and_rows(name: str, horizon: int) -> None:
    """Of features, logits, biases and every parameter of the gate."""
    whole = Whole(random_case(name, rank=2, horizon=horizon, vocab_size=3, batch=2))
    whole.gate.requires_grad_(True)
    tokens = torch.tensor([[0, 2, 1], [2, 2, 0]])[:, :horizon]
    names, values = zip(*whole.named_parameters(), strict=True)

    def run(*changed: Tensor) -> tuple[Tensor, Tensor]:
        out: tuple[Tensor, Tensor] = functional_call(whole, dict(zip(names, changed, strict=True)), (tokens,))
        return out

    assert torch.autograd.gradcheck(run, tuple(v.detach().clone().requires_grad_() for v in values))


@every_mixture
def test_every_parameter_of_the_gate_decides(name: str) -> None:
    whole = Whole(random_case(name, horizon=3, batch=4))
    whole.gate.requires_grad_(True)
    log_prob, _ = whole(torch.tensor([[0, 2, 1], [2, 2, 0], [4, 1, 1], [3, 0, 2]]))
    log_prob.sum().backward()
    for parameter_name, parameter in whole.gate.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.abs().max() > 0, parameter_name


@every_mixture
def test_gradients_are_finite_where_components_are_almost_impossible(name: str) -> None:
    case = random_case(name, rank=2, horizon=4, vocab_size=7)
    case.gate.float()
    for parameter in case.gate.parameters():
        parameter.copy_(80 * torch.sign(parameter))
    biases = None if case.biases is None else 40 * case.biases.sign().float()
    whole = Whole(Case(case.gate, torch.ones(1, FEATURES), 80 * case.logits.sign().float(), biases))
    whole.gate.requires_grad_(True)
    log_prob, row = whole(torch.tensor([[0, 1, 2, 3]]))
    assert row.isfinite().all()
    assert log_prob.isfinite().all()
    log_prob.sum().backward()
    found = [p.grad for p in whole.parameters() if p.grad is not None]
    assert len(found) >= len([*whole.parameters()]) - member(name).single  # no gate, no need of features
    assert all(gradient.isfinite().all() for gradient in found)


@every_mixture
def test_extreme_bfloat16_logits_stay_exact_in_float32(name: str) -> None:
    exact = random_case(name, horizon=4, vocab_size=50)
    exact = replace(exact, logits=80 * exact.logits.sign())
    biases = None if exact.biases is None else exact.biases.bfloat16()
    rough = Case(exact.gate.float(), exact.features.float(), exact.logits.bfloat16(), biases)
    latent = rough.gate(rough.features)
    whole = Case(
        exact.gate, exact.features, exact.logits, None if biases is None else biases.double()
    ).repeated(1)
    joint = rough.joint()
    assert joint.log_factors.dtype == torch.float32
    exact_joint = LatentMixture(latent, whole.logits, table_bias(whole.biases))
    for token in range(50):
        tokens = torch.tensor([[token, 49 - token, token, 7]])
        found = joint.log_prob(tokens)
        assert found.dtype == torch.float32
        assert torch.allclose(found.double(), exact_joint.log_prob(tokens), rtol=1e-5, atol=1e-4)
        row = joint.conditional(tokens[:, :3])
        assert abs(row.exp().sum().item() - 1) < 1e-5
        assert torch.allclose(row.double(), exact_joint.conditional(tokens[:, :3]), rtol=1e-5, atol=1e-4)


@every_mixture
def test_float64_is_kept(name: str) -> None:
    joint = random_case(name).joint()
    assert joint.log_prob(torch.tensor([[0, 1]])).dtype == torch.float64
    assert joint.sample().log_rows.dtype == joint.log_factors.dtype == torch.float64  # type: ignore[union-attr]


@cache
def stretches(size: int) -> Tensor:
    """All stretches of one long random text of bfloat16 numbers up to 80, half of them just +-80 or 0."""
    generator = torch.Generator().manual_seed(0)
    pool = torch.rand(2**20, generator=generator) * 160 - 80
    kind = torch.randint(6, pool.shape, generator=generator)
    for k, value in enumerate((-80.0, 0.0, 80.0)):
        pool[kind == k] = value
    return pool.bfloat16().unfold(0, size, 1)


def wild_logits(rows: int, size: int, *, batch: int, horizon: int, rank: int) -> Iterator[Tensor]:
    """`rows` rows of `size` bfloat16 logits, a batch of joints at a time."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(0, rows, batch * horizon * rank):
        starts = torch.randint(len(stretches(size)), (batch * horizon * rank,), generator=generator)
        yield stretches(size)[starts].view(batch, horizon, rank, size)


@every_mixture
@pytest.mark.parametrize(
    ("rows", "size", "batch"), [pytest.param(400, WIDE, 2, marks=pytest.mark.slow), (MANY, NARROW, 8)]
)
@torch.no_grad()
def test_wild_bfloat16_logits(name: str, rows: int, size: int, batch: int) -> None:
    """Nowhere NaN or infinite, rows that sum to one; 10^5 rows of logits in all, over the members."""
    found = member(name)
    rank, horizon = 1 if found.single else 4, 4
    gate = found.gate(FEATURES, rank, horizon).requires_grad_(False)
    biases = next(wild_logits(8, size, batch=2, horizon=4, rank=1)).view(8, 1, size)

    def bias(position: int, before: Tensor, rows: Rows = ALL) -> Tensor:
        return biases[before % 8]

    for logits in wild_logits(rows, size, batch=batch, horizon=horizon, rank=rank):
        for parameter in gate.parameters():
            parameter.copy_(80 * torch.randn_like(parameter).sign())
        joint = LatentMixture(gate(torch.randn(batch, FEATURES)), logits, bias if found.markov else None)
        state = joint.start()
        for s in range(horizon):
            row = joint.row(state, s)
            assert row.sum(-1).isfinite().all()  # so is every entry
            assert (row.exp().sum(-1) - 1).abs().max() < 1e-3
            tokens = torch.where(torch.rand(batch) < 0.5, row.argmax(-1), torch.randint(size, (batch,)))
            assert joint.token_log_prob(state, s, tokens).isfinite().all()
            if s + 1 < horizon:
                state = joint.advance(state, s, tokens)


def test_there_are_a_hundred_thousand_rows() -> None:
    assert MANY * len(MIXTURES) >= 100_000

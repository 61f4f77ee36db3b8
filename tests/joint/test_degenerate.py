"""Where two members say the same: one component, transitions that never leave, a bias of zero."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from polydraft.joint import MEMBERS, BinaryTree, Canonical, HiddenMarkov, Latent, LatentMixture, member
from polydraft.joint.gate import STAY
from tests.joint.enumeration import mixture
from tests.joint.members import (
    FEATURES,
    HORIZON,
    MIXTURES,
    RANK,
    TOLERANCE,
    VOCAB_SIZE,
    every_mixture,
    random_case,
    random_joint,
    table,
)
from tests.joint.processes import process

NEVER = -torch.inf


def assert_same(first: LatentMixture, second: LatentMixture) -> None:
    """Equal probabilities, rows, chains and draws."""
    tokens = torch.randint(VOCAB_SIZE, (first.batch_size, HORIZON))
    assert torch.allclose(first.log_prob(tokens), second.log_prob(tokens), rtol=0, atol=TOLERANCE)
    for length in range(HORIZON):
        rows = [joint.conditional(tokens[:, :length]) for joint in (first, second)]
        assert torch.allclose(*rows, rtol=0, atol=TOLERANCE)
    assert torch.equal(first.argmax().tokens, second.argmax().tokens)
    draws = [joint.sample(generator=torch.Generator().manual_seed(1)).tokens for joint in (first, second)]
    assert torch.equal(*draws)


def never_leaving(count: int, batch: int = 4) -> Tensor:
    """log of identity matrices, exact: (B, count, r, r)."""
    return torch.eye(RANK, dtype=torch.float64).log().expand(batch, count, RANK, RANK).clone()


@every_mixture
def test_one_component_is_the_independent_head(name: str) -> None:
    case = random_case(name, rank=1, batch=4)
    single = "markov" if member(name).markov else "independent"
    assert_same(case.joint(), replace(case, gate=member(single).gate(FEATURES, 1, HORIZON)).joint())


@pytest.mark.parametrize("process", [HiddenMarkov, BinaryTree])
class TestIdentityTransitions:
    def parts(self, process: type[Latent]) -> tuple[Tensor, Tensor, Tensor]:
        prior = torch.randn(4, RANK, dtype=torch.float64).log_softmax(-1)
        edges = never_leaving(HORIZON - 1 if process is HiddenMarkov else 2 * HORIZON - 2)
        return prior, edges, torch.randn(4, HORIZON, RANK, VOCAB_SIZE, dtype=torch.float64)

    def test_are_cp(self, process: type) -> None:
        prior, edges, logits = self.parts(process)
        joint = LatentMixture(process(prior, edges), logits)
        assert_same(joint, LatentMixture(Canonical(prior, HORIZON), logits))

    @pytest.mark.parametrize("count", [1, 2])
    def test_are_cp_when_routed(self, process: type, count: int) -> None:
        prior, edges, logits = self.parts(process)
        joints = []
        for latent in (process(prior, edges), Canonical(prior, HORIZON)):
            routed, kept = latent.routed(count)
            index = kept[..., None].expand(-1, -1, -1, VOCAB_SIZE)
            joints.append(LatentMixture(routed, logits.gather(2, index)))
        assert_same(*joints)

    def test_have_the_gradients_of_cp(self, process: type) -> None:
        prior, edges, logits = self.parts(process)
        tokens = torch.randint(VOCAB_SIZE, (4, HORIZON))
        found = []
        for cp in (True, False):
            weights, moves, own = (t.clone().requires_grad_() for t in (prior, edges, logits))
            normal = weights.log_softmax(-1)
            latent = Canonical(normal, HORIZON) if cp else process(normal, moves.log_softmax(-1))
            joint = LatentMixture(latent, own)
            total = joint.log_prob(tokens).sum() + joint.conditional(tokens[:, :-1]).square().sum()
            total.backward()
            assert cp or bool(moves.grad is not None and moves.grad.isfinite().all())
            found.append((total.detach(), weights.grad, own.grad))
        for cp_value, value in zip(*found, strict=True):
            assert cp_value is not None and value is not None
            assert torch.allclose(cp_value, value, rtol=0, atol=TOLERANCE)

    def test_of_a_component_that_never_occurs(self, process: type) -> None:
        prior, edges, logits = self.parts(process)
        without = prior.clone()
        without[:, 1] = NEVER
        joint = LatentMixture(process(without.log_softmax(-1), edges), logits)
        fewer = Canonical(without[:, [0, 2]].log_softmax(-1), HORIZON)
        expected = LatentMixture(fewer, logits[:, :, [0, 2]])
        tokens = torch.randint(VOCAB_SIZE, (4, HORIZON))
        assert torch.allclose(joint.log_prob(tokens), expected.log_prob(tokens), rtol=0, atol=TOLERANCE)
        assert torch.equal(joint.argmax().tokens, expected.argmax().tokens)


def test_forgetful_transitions_leave_positions_independent() -> None:
    """Rows that do not depend on the component before: a mixture at every position, and no memory."""
    moves = torch.randn(4, HORIZON - 1, 1, RANK, dtype=torch.float64).log_softmax(-1).expand(-1, -1, RANK, -1)
    prior = torch.randn(4, RANK, dtype=torch.float64).log_softmax(-1)
    logits = torch.randn(4, HORIZON, RANK, VOCAB_SIZE, dtype=torch.float64)
    latent = HiddenMarkov(prior, moves)
    rows = torch.logsumexp(latent.marginals()[..., None] + logits.log_softmax(-1), dim=2)
    single = member("independent").gate(FEATURES, 1, HORIZON)(torch.zeros(4, FEATURES))
    joint, expected = LatentMixture(latent, logits), LatentMixture(single, rows[:, :, None])
    tokens = torch.randint(VOCAB_SIZE, (4, HORIZON))
    assert torch.allclose(joint.log_prob(tokens), expected.log_prob(tokens), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", [name for name in MEMBERS if MEMBERS[name].markov])
def test_a_zero_bias_is_none(name: str) -> None:
    case = random_case(name, batch=4)
    assert case.biases is not None
    plain = replace(case, biases=None)
    assert_same(replace(case, biases=torch.zeros_like(case.biases)).joint(), plain.joint())
    with pytest.raises(AssertionError):
        assert_same(case.joint(), plain.joint())


def test_one_bias_for_all_components_is_that_bias_for_each() -> None:
    case = random_case("cp-markov", batch=4)
    assert case.biases is not None
    shared = case.biases[:, :, :, :1]
    assert_same(
        replace(case, biases=shared).joint(),
        replace(case, biases=shared.expand_as(case.biases)).joint(),
    )


@pytest.mark.parametrize(("name", "edges"), [("hmm", HORIZON - 1), ("tree", 2 * HORIZON - 2)])
def test_a_fresh_gate_is_near_cp(name: str, edges: int) -> None:
    """As far as it leaves a component at any of its edges, in total variation."""
    case, gate = random_case("cp"), member(name).gate(FEATURES, RANK, HORIZON)
    gate.reset()
    own = replace(case, gate=gate.double().requires_grad_(False))
    even = Canonical(gate.scores(case.features).log_softmax(-1), HORIZON)
    expected = mixture(process(even), case.factors())
    found = own.reference()
    assert np.abs(table(own, HORIZON) - found).max() < TOLERANCE
    assert 0.001 < np.abs(found - expected).sum() / 2 < 1 - STAY**edges


def test_random_members_differ() -> None:
    """What the tests above find equal is not equal for want of chances to differ."""
    tokens = torch.randint(VOCAB_SIZE, (4, HORIZON))
    found = [random_joint(name, batch=4).log_prob(tokens) for name in MIXTURES]
    for i, first in enumerate(found):
        assert all((first - second).abs().max() > 0.01 for second in found[:i])

"""The hidden process of every member, by itself: its formula, its marginals, routing to few components."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from polydraft.joint import BinaryTree, Canonical, HiddenMarkov, Latent, LatentMixture
from polydraft.joint.mixture import ALL, Rows
from tests.joint.enumeration import Array, enumerate_tokens, mixture
from tests.joint.members import (
    HORIZON,
    RANK,
    TOLERANCE,
    Case,
    as_table,
    every_mixture,
    random_case,
    table,
)
from tests.joint.processes import chain, probed, process, tree_nodes, values


def latent_of(case: Case) -> Latent:
    return case.gate(case.features)


@every_mixture
@pytest.mark.parametrize("horizon", range(1, 8))
def test_is_its_formula_at_any_horizon(name: str, horizon: int) -> None:
    latent = latent_of(random_case(name, rank=2, horizon=horizon, batch=2))
    assert (latent.horizon, latent.batch_size) == (horizon, 2)
    for row in range(2):
        expected = process(latent, row)
        assert abs(expected.sum() - 1) < TOLERANCE
        assert np.abs(probed(latent, row) - expected).max() < TOLERANCE


@every_mixture
def test_marginals(name: str) -> None:
    latent = latent_of(random_case(name, batch=2))
    marginals = latent.marginals().exp().numpy()
    assert marginals.shape == (2, HORIZON, latent.rank)
    for row in range(2):
        whole = process(latent, row)
        for s in range(HORIZON):
            others = tuple(axis for axis in range(HORIZON) if axis != s)
            assert np.abs(marginals[row, s] - whole.sum(axis=others)).max() < TOLERANCE


def routed_case(case: Case, count: int) -> tuple[LatentMixture, Latent, torch.Tensor]:
    """A case's joint over its `count` likeliest components, as the head makes it."""
    latent, kept = latent_of(case).routed(count)
    size = case.logits.shape[-1]
    logits = case.logits.gather(2, kept[..., None].expand(-1, -1, -1, size))
    whole = case.joint().bias

    def bias(position: int, before: torch.Tensor, rows: Rows = ALL) -> torch.Tensor:
        assert whole is not None
        out = whole(position, before, rows)
        return out if out.dim() == 2 else out.gather(1, kept[rows, position][:, :, None].expand(-1, -1, size))

    return LatentMixture(latent, logits, None if case.biases is None else bias), latent, kept


@every_mixture
class TestRouted:
    @pytest.mark.parametrize("count", [1, 2])
    def test_keeps_the_likeliest_components_of_each_position(self, name: str, count: int) -> None:
        latent = latent_of(random_case(name, batch=8))
        count = min(count, latent.rank)
        routed, kept = latent.routed(count)
        assert (routed.rank, routed.horizon, routed.batch_size) == (count, HORIZON, 8)
        assert kept.shape == (8, HORIZON, count)
        expected = latent.marginals().topk(count, dim=-1).indices.sort(dim=-1).values
        assert torch.equal(kept, expected)
        for row in range(8):
            assert abs(process(routed, row).sum() - 1) < TOLERANCE
            assert np.abs(probed(routed, row) - process(routed, row)).max() < TOLERANCE

    @pytest.mark.parametrize("count", [1, 2])
    def test_is_an_exact_joint(self, name: str, count: int) -> None:
        case = random_case(name, vocab_size=4)
        count = min(count, case.gate.rank)
        tokens = torch.tensor(enumerate_tokens(4, HORIZON))
        joint, _, _ = routed_case(case.repeated(len(tokens)), count)
        found = as_table(joint, tokens)
        assert abs(found.sum() - 1) < TOLERANCE
        _, latent, kept = routed_case(case, count)
        factors = np.stack([case.factors()[s, kept[0, s].numpy()] for s in range(HORIZON)])
        assert np.abs(found - mixture(process(latent), factors)).max() < TOLERANCE

    def test_to_all_components_is_the_whole(self, name: str) -> None:
        case = random_case(name, batch=2)
        joint, latent, kept = routed_case(case, case.gate.rank)
        assert torch.equal(kept, torch.arange(case.gate.rank).expand_as(kept))
        tokens = torch.randint(5, (2, HORIZON))
        assert torch.allclose(joint.log_prob(tokens), case.joint().log_prob(tokens), rtol=0, atol=TOLERANCE)
        for row in range(2):
            assert np.abs(process(latent, row) - process(latent_of(case), row)).max() < TOLERANCE

    def test_to_one_component_leaves_nothing_hidden(self, name: str) -> None:
        case = random_case(name)
        joint, latent, kept = routed_case(case, 1)
        assert process(latent).ravel().tolist() == [1.0]
        one = Case(
            random_case("independent").gate,
            case.features,
            case.logits.gather(2, kept[..., None].expand(-1, -1, -1, 5)),
            None if case.biases is None else one_bias(case, kept),
        )
        tokens = torch.tensor(enumerate_tokens(5, HORIZON))
        many, _, _ = routed_case(case.repeated(len(tokens)), 1)
        assert np.abs(as_table(many, tokens) - table(one, HORIZON)).max() < TOLERANCE
        assert joint.rank == 1


def one_bias(case: Case, kept: torch.Tensor) -> torch.Tensor:
    """The bias of the one component kept at each position."""
    assert case.biases is not None
    return torch.stack([case.biases[:, s, :, int(kept[0, s, 0])][:, :, None] for s in range(HORIZON)], dim=1)


def renormalised(rows: Array) -> Array:
    return np.asarray(rows / rows.sum(-1, keepdims=True))


class TestRoutedByHand:
    """What each process becomes, built from its parameters in numpy."""

    def test_canonical_keeps_the_largest_weights(self) -> None:
        log_weights = torch.tensor([[0.1, 0.5, 0.15, 0.25]]).double().log()
        routed, kept = Canonical(log_weights, 3).routed(2)
        assert kept.tolist() == [[[1, 3]] * 3]
        expected = np.zeros((2, 2, 2))
        expected[0, 0, 0], expected[1, 1, 1] = 2 / 3, 1 / 3
        assert np.allclose(process(routed), expected)

    def test_hidden_markov(self) -> None:
        latent = latent_of(random_case("hmm", rank=4))
        assert isinstance(latent, HiddenMarkov)
        initial, transitions = values(latent.initial, 0), values(latent.transitions, 0)
        belief, kept = initial, [np.sort(np.argsort(initial)[-2:])]
        for matrix in transitions:
            belief = belief @ matrix
            kept.append(np.sort(np.argsort(belief)[-2:]))
        confined = [
            renormalised(m[np.ix_(a, b)]) for m, a, b in zip(transitions, kept, kept[1:], strict=False)
        ]
        expected = chain(renormalised(initial[kept[0]]), np.stack(confined))
        routed, found = latent.routed(2)
        assert found[0].tolist() == [list(row) for row in kept]
        assert np.abs(process(routed) - expected).max() < TOLERANCE

    def test_tree(self) -> None:
        latent = latent_of(random_case("tree", rank=4, horizon=3))  # root, left, 1, 2, 3
        assert isinstance(latent, BinaryTree)
        root, edges, parents = values(latent.root, 0), values(latent.edges, 0), [0, 1, 1, 0]
        beliefs = [root]
        for parent, matrix in zip(parents, edges, strict=True):
            beliefs.append(beliefs[parent] @ matrix)
        kept = [np.sort(np.argsort(belief)[-2:]) for belief in beliefs]
        confined = [
            renormalised(matrix[np.ix_(kept[parent], kept[i + 1])])
            for i, (parent, matrix) in enumerate(zip(parents, edges, strict=True))
        ]
        nodes, leaves = tree_nodes(renormalised(root[kept[0]]), np.stack(confined))
        assert leaves == [2, 3, 4]
        routed, found = latent.routed(2)
        assert found[0].tolist() == [list(kept[i]) for i in leaves]
        assert np.abs(process(routed) - nodes.sum(axis=(0, 1))).max() < TOLERANCE


class TestBadShapes:
    @pytest.mark.parametrize("shape", [(1, 2, 3, 3), (2, 2, 2, 3), (2, 2, 3, 2), (2, 2, 3)])
    def test_of_transitions(self, shape: tuple[int, ...]) -> None:
        with pytest.raises(ValueError, match=r"transitions \(B, n - 1, r, r\)"):
            HiddenMarkov(torch.zeros(2, 3), torch.zeros(shape))

    @pytest.mark.parametrize("shape", [(1, 2, 3, 3), (2, 2, 2, 3), (2, 2, 3, 2), (2, 3, 3, 3), (2, 2, 3)])
    def test_of_edges(self, shape: tuple[int, ...]) -> None:
        with pytest.raises(ValueError, match=r"edges \(B, 2n - 2, r, r\)"):
            BinaryTree(torch.zeros(2, 3), torch.zeros(shape))

    @pytest.mark.parametrize("shape", [(1, 4, 3, 5), (2, 3, 3, 5), (2, 4, 2, 5), (2, 4, 3)])
    def test_of_logits(self, shape: tuple[int, ...]) -> None:
        with pytest.raises(ValueError, match=r"logits must be \(B, n, r, V\)"):
            LatentMixture(Canonical(torch.zeros(2, RANK), 4), torch.zeros(shape))

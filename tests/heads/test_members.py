"""The head of every member: its joint from the parameters by hand, its folder, routing to few components."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from polydraft.heads import DraftHead
from polydraft.joint import LatentMixture, member
from tests.joint.enumeration import Array, conditional, enumerate_tokens, mixture, softmax
from tests.joint.members import MIXTURES, as_table, every_mixture
from tests.joint.processes import chain, process, tree_nodes
from tests.joint.toy import registered
from tests.tiny import HIDDEN_SIZE, tiny_head, tiny_model

DRAFT_VOCAB_SIZE, HORIZON, RANK = 6, 3, 3
FORMS: tuple[dict[str, Any], ...] = ({}, {"own_unembedding": True}, {"map_rank": 0})
forms = pytest.mark.parametrize("form", FORMS, ids=str)


@pytest.fixture(autouse=True)
def _toy() -> Iterator[None]:
    with registered():
        yield


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return tiny_model()


def make(model: PreTrainedModel, name: str, **options: Any) -> DraftHead:
    """A random head of a member."""
    fields = {"horizon": HORIZON, "rank": RANK, "draft_vocab_size": DRAFT_VOCAB_SIZE} | options
    return tiny_head(model, joint=name, **(fields | ({"rank": 1} if member(name).single else {})))


@torch.no_grad()
def head_table(head: DraftHead, hidden: Tensor, token: int) -> Array:
    """The joint it drafts from, over all sequences; n axes of V'."""
    tokens = torch.tensor(enumerate_tokens(head.config.draft_vocab_size, head.config.horizon))
    joint = head(hidden.expand(len(tokens), -1), torch.full((len(tokens),), token))
    return as_table(joint, tokens)


def process_by_hand(head: DraftHead, value: dict[str, Array], features: Array) -> Array:
    """P(z) of one row from the parameters of the gate."""
    n, r, name = head.config.positions, head.config.rank, head.config.joint
    if member(name).single:
        return np.ones((1,) * n)
    weights = softmax(value["gate.weight"] @ features + value["gate.bias"])
    if name in ("cp", "cp-markov"):
        return chain(weights, np.stack([np.eye(r)] * (n - 1)))
    part = {"hmm": "transitions", "tree": "edges"}[name]
    bias = value[f"gate.{part}.bias"]
    moves = softmax((value[f"gate.{part}.weight"] @ features).reshape(bias.shape) + bias)
    if name == "hmm":
        return chain(weights, moves)
    nodes, leaves = tree_nodes(weights, moves)
    return np.asarray(nodes.sum(axis=tuple(i for i in range(nodes.ndim) if i not in leaves)))


def factors_by_hand(
    head: DraftHead, model: PreTrainedModel, value: dict[str, Array], features: Array
) -> Array:
    """P_a^(s)(v | u) of one row, (n, r, V', V'), from its features and maps."""
    config, draft_ids = head.config, head.draft_ids.tolist()
    base = {name: tensor.double().numpy() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        mapped = head.maps(torch.tensor(features).float()[None])[0].double().numpy()
    size = config.draft_vocab_size
    out = np.zeros((config.positions, config.rank, size, size))
    for s in range(config.positions):
        for u, token in enumerate(draft_ids):
            shift = np.zeros(HIDDEN_SIZE)
            if s > 0 and head.previous is not None:
                embedding = base["model.embed_tokens.weight"][token]
                embedding = embedding / np.sqrt((embedding**2).mean() + torch.finfo(torch.float32).eps)
                k = config.markov_rank
                inner = value["previous.embedded.weight"] @ embedding
                inner = inner + value["previous.context.weight"][s * k : (s + 1) * k] @ features
                shift = value["previous.out.weight"] @ (inner / (1 + np.exp(-inner)))
            for a in range(config.rank):
                rows = value["own"][s, a] if config.own_unembedding else base["lm_head.weight"][draft_ids]
                out[s, a, u] = softmax(rows @ (mapped[s, a] + shift))
    return out


@pytest.mark.parametrize("name", [name for name in MIXTURES if name != "switch"])
@pytest.mark.parametrize("features", ["fused", "hidden"])
@forms
def test_joint_equals_the_formula_by_hand(
    model: PreTrainedModel, name: str, features: str, form: dict[str, Any]
) -> None:
    head = make(model, name, features=features, **form)
    value = {key: tensor.double().numpy() for key, tensor in head.state_dict().items()}
    hidden = torch.randn(1, HIDDEN_SIZE)
    for index in (0, 4):
        token = int(head.draft_ids[index])
        with torch.no_grad():
            own = head.features(hidden, torch.tensor([token]))[0].double().numpy()
        expected = mixture(process_by_hand(head, value, own), factors_by_hand(head, model, value, own))
        if features == "hidden":
            expected = expected[index] / expected[index].sum()
        found = head_table(head, hidden, token)
        assert abs(found.sum() - 1) < 1e-5
        assert np.allclose(found, expected, rtol=1e-3, atol=1e-6)


@every_mixture
@pytest.mark.parametrize("features", ["fused", "hidden"])
@forms
class TestEveryMember:
    def test_round_trip_keeps_every_bit_of_the_weights(
        self, model: PreTrainedModel, tmp_path: Path, name: str, features: str, form: dict[str, Any]
    ) -> None:
        head = make(model, name, features=features, **form)
        head.save_pretrained(tmp_path)
        again, found = DraftHead.from_pretrained(tmp_path, output_loading_info=True)
        assert not found["missing_keys"]
        assert not found["unexpected_keys"]
        assert again.config.joint == name
        torch.testing.assert_close(again.state_dict(), head.state_dict(), rtol=0, atol=0)
        hidden = torch.randn(1, HIDDEN_SIZE)
        tables = [head_table(h, hidden, 3) for h in (head, again.attach(model))]
        assert np.allclose(*tables, rtol=1e-4, atol=1e-8)

    def test_every_parameter_learns(
        self, model: PreTrainedModel, name: str, features: str, form: dict[str, Any]
    ) -> None:
        model.requires_grad_(False)
        head = make(model, name, features=features, **form)
        joint = head(torch.randn(5, HIDDEN_SIZE), head.draft_ids[:5])
        joint.log_prob(torch.randint(DRAFT_VOCAB_SIZE, (5, HORIZON))).sum().backward()
        for key, parameter in head.named_parameters():
            assert parameter.grad is not None, key
            assert parameter.grad.abs().max() > 0, key

    def test_in_bfloat16(
        self, model: PreTrainedModel, name: str, features: str, form: dict[str, Any]
    ) -> None:
        head = make(model, name, features=features, **form)
        hidden = torch.randn(1, HIDDEN_SIZE)
        exact = head_table(head, hidden, 3)
        found = head_table(head.to(torch.bfloat16), hidden, 3)
        assert found.dtype == np.float32
        assert abs(found.sum() - 1) < 1e-4
        assert np.abs(found - exact).sum() / 2 < 0.3


@every_mixture
def test_a_fresh_head_is_made_and_evenly_gated(model: PreTrainedModel, name: str) -> None:
    config = make(model, name).config
    head = DraftHead(config).eval()
    assert all(parameter.isfinite().all() for parameter in head.parameters())
    scores = head.gate.scores(torch.randn(4, HIDDEN_SIZE)).softmax(-1)
    assert (scores - 1 / config.rank).abs().max() < 0.1
    if head.previous is not None:
        assert not head.previous.out.weight.any()


class TestComponents:
    """Top-k routing at draft time."""

    @every_mixture
    @forms
    @pytest.mark.parametrize("count", [1, 2])
    def test_is_the_whole_head_routed(
        self, model: PreTrainedModel, name: str, form: dict[str, Any], count: int
    ) -> None:
        count = min(count, 1 if member(name).single else RANK)
        few, whole = (make(model, name, components=c, **form) for c in (count, 0))
        hidden, token = torch.randn(1, HIDDEN_SIZE), 3
        with torch.no_grad():
            joint = whole(hidden, torch.tensor([token]))
            features = whole.features(hidden, torch.tensor([token]))[0].double().numpy()
        latent, kept = joint.latent.routed(count)
        value = {key: tensor.double().numpy() for key, tensor in whole.state_dict().items()}
        factors = factors_by_hand(whole, model, value, features)
        chosen = np.stack([factors[s, kept[0, s].numpy()] for s in range(HORIZON)])
        found = head_table(few, hidden, token)
        assert abs(found.sum() - 1) < 1e-5
        assert np.allclose(found, mixture(process(latent), chosen), rtol=1e-3, atol=1e-6)
        assert few(hidden, torch.tensor([token])).rank == count

    def test_keeps_the_largest_weights_renormalised(self, model: PreTrainedModel) -> None:
        few, whole = (make(model, "cp", components=c, rank=4) for c in (2, 0))
        hidden = torch.randn(1, HIDDEN_SIZE)
        with torch.no_grad():
            joint = whole(hidden, torch.tensor([3]))
        weights, factors = joint.latent.prior[0].exp().numpy(), joint.log_factors[0].exp().numpy()
        best = np.argsort(weights)[-2:]
        share = weights[best] / weights[best].sum()
        expected = np.einsum("r,ra,rb,rc->abc", share, *factors[:, best])
        assert np.allclose(head_table(few, hidden, 3), expected, rtol=1e-3, atol=1e-6)

    @every_mixture
    def test_of_all_components_is_the_whole(self, model: PreTrainedModel, name: str) -> None:
        rank = 1 if member(name).single else RANK
        few, whole = (make(model, name, components=c) for c in (rank, 0))
        hidden = torch.randn(1, HIDDEN_SIZE)
        assert np.allclose(head_table(few, hidden, 3), head_table(whole, hidden, 3), rtol=1e-4, atol=1e-8)

    def test_each_row_of_a_batch_has_its_own(self, model: PreTrainedModel) -> None:
        head = make(model, "cp", components=1)
        hidden, tokens = 3 * torch.randn(32, HIDDEN_SIZE), torch.arange(32)
        _, kept = head.gate(head.features(hidden, tokens)).routed(1)
        assert len(kept[:, 0].unique()) > 1
        greedy = head(hidden, tokens).argmax().tokens
        for row in range(32):
            alone = head(hidden[row : row + 1], tokens[row : row + 1]).argmax().tokens
            assert torch.equal(alone[0], greedy[row])


class TestPreviousToken:
    def test_the_row_after_a_token_is_given_it(self, model: PreTrainedModel) -> None:
        head = make(model, "markov")
        whole = head_table(head, torch.randn(1, HIDDEN_SIZE), 3)
        rows = np.stack([conditional(whole, (u,)) for u in range(DRAFT_VOCAB_SIZE)])
        assert (rows.max(0) - rows.min(0)).max() > 0.05
        later = np.stack([conditional(whole, (u, 2)) for u in range(DRAFT_VOCAB_SIZE)])
        assert (later.max(0) - later.min(0)).max() < 1e-5  # first order: the one before, and no other

    @forms
    def test_no_shift_is_no_bias(self, model: PreTrainedModel, form: dict[str, Any]) -> None:
        head = make(model, "cp-markov", **form)
        assert head.previous is not None
        head.previous.out.weight.data.zero_()
        hidden = torch.randn(1, HIDDEN_SIZE)
        with torch.no_grad():
            joint = head(hidden, torch.tensor([3]))
        plain = LatentMixture(joint.latent, joint.logits).log_prob(torch.tensor([[0, 1, 2]]))
        assert torch.allclose(joint.log_prob(torch.tensor([[0, 1, 2]])), plain, atol=1e-5)

    @torch.no_grad()
    def fresh(self, model: PreTrainedModel, other: PreTrainedModel) -> DraftHead:
        """A head of `model` with a doubled shift, that goes over to another base model."""
        head = make(model, "markov", base_model=None)
        assert head.previous is not None
        head.previous.out.weight.mul_(2)
        return head.attach(other)

    def rounded(self, head: DraftHead, hidden: Tensor) -> Array:
        return head_table(head.to(torch.bfloat16), hidden, 3)

    @torch.no_grad()
    def test_the_table_follows_its_weights_and_its_base(self, model: PreTrainedModel) -> None:
        head = make(model, "markov", base_model=None)
        hidden = torch.randn(1, HIDDEN_SIZE)
        assert head.previous is not None
        before = head_table(head, hidden, 3)
        head.previous.out.weight.mul_(2)
        fresh = self.fresh(model, model)
        after = head_table(head, hidden, 3)
        assert np.abs(after - before).max() > 1e-3
        assert np.array_equal(after, head_table(fresh, hidden, 3))
        other = tiny_model(seed=1)
        assert np.array_equal(
            head_table(head.attach(other), hidden, 3), head_table(fresh.attach(other), hidden, 3)
        )
        assert np.array_equal(self.rounded(head, hidden), self.rounded(self.fresh(model, other), hidden))

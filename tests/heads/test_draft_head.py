"""The draft head: its folder, its base model, and its joint against the formula by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedModel

from polydraft.errors import InputError, PolydraftError
from polydraft.heads import DraftConfig, DraftHead
from polydraft.joint import JointDistribution, LatentMixture
from tests.tiny import HIDDEN_SIZE, tiny_head, tiny_model, tiny_tokenizer

VOCAB_SIZE, DRAFT_VOCAB_SIZE = 64, 20
FORMS = ({}, {"map_rank": 0}, {"own_unembedding": True}, {"map_rank": 0, "own_unembedding": True})
"""Low-rank maps and the shared unembedding, full maps, own unembeddings, both (the paper's form)."""

Array = NDArray[np.float64]


@pytest.fixture
def model() -> PreTrainedModel:
    return tiny_model()


def inputs(head: DraftHead, batch: int = 5) -> tuple[Tensor, Tensor]:
    """Random hidden states and next tokens, the last of which cannot be drafted."""
    outside = next(t for t in range(VOCAB_SIZE) if t not in head.draft_ids.tolist() or t == VOCAB_SIZE - 1)
    tokens = torch.cat([head.draft_ids[: batch - 1], torch.tensor([outside])])
    return torch.randn(batch, HIDDEN_SIZE, dtype=head.dtype), tokens


def parts(joint: JointDistribution) -> tuple[Tensor, Tensor]:
    """log P(z) before the first draft (B, r), and log P_a^(s) (B, n, r, V') of a CP joint."""
    weights, first = joint.start()
    whole = joint if isinstance(joint, LatentMixture) else joint._joint  # type: ignore[attr-defined]
    factors = whole.log_factors[:, -joint.horizon :]
    assert torch.equal(first, factors[:, 0])
    return weights, factors


def joint_of(head: DraftHead, hidden: Tensor, tokens: Tensor) -> JointDistribution:
    with torch.no_grad():
        joint: JointDistribution = head(hidden, tokens)
    return joint


def softmax(logits: Array) -> Array:
    powers = np.exp(logits - logits.max())
    return np.asarray(powers / powers.sum())


def by_hand(head: DraftHead, model: PreTrainedModel, hidden: Array, token: int) -> tuple[Array, Array]:
    """w (r,) and P (n, r, V') of one row of the batch, from the parameters, term by term in float64."""
    value = {name: tensor.double().numpy() for name, tensor in head.state_dict().items()}
    config, draft_ids = head.config, value["draft_ids"].astype(int)
    base = {name: tensor.double().numpy() for name, tensor in model.state_dict().items()}
    features = hidden
    if config.features == "fused":
        embedding = base["model.embed_tokens.weight"][token]
        eps = torch.finfo(torch.float32).eps
        normed = [part / np.sqrt((part**2).mean() + eps) for part in (hidden, embedding)]
        gate, up = np.split(value["fuse.up.weight"] @ np.concatenate(normed), 2)
        features = hidden + value["fuse.down.weight"] @ (gate / (1 + np.exp(-gate)) * up)
    weights = softmax(value["gate.weight"] @ features + value["gate.bias"])
    factors = np.zeros((config.positions, config.rank, config.draft_vocab_size))
    for s in range(config.positions):
        for a in range(config.rank):
            if config.map_rank:
                start = (s * config.rank + a) * config.map_rank
                inner = value["maps.inner.weight"][start : start + config.map_rank] @ features
                mapped = features + value["maps.outer"][s, a].T @ inner
            else:
                mapped = value["maps.weight"][s, a] @ features
            rows = value["own"][s, a] if config.own_unembedding else base["lm_head.weight"][draft_ids]
            factors[s, a] = softmax(rows @ mapped)
    if config.features == "hidden":
        if token in draft_ids:
            weights = weights * factors[0, :, list(draft_ids).index(token)]
            weights = weights / weights.sum()
        factors = factors[1:]
    return weights, factors


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("features", ["hidden", "fused"])
class TestEveryForm:
    def test_joint_equals_the_formula_by_hand(
        self, model: PreTrainedModel, features: str, form: dict[str, int]
    ) -> None:
        head = tiny_head(
            model, rank=3, horizon=2, features=features, draft_vocab_size=DRAFT_VOCAB_SIZE, **form
        )
        hidden, tokens = inputs(head)
        log_weights, log_factors = parts(joint_of(head, hidden, tokens))
        assert log_factors.shape == (5, 2, 3, DRAFT_VOCAB_SIZE)
        for row in range(5):
            weights, factors = by_hand(head, model, hidden[row].double().numpy(), int(tokens[row]))
            assert np.allclose(log_weights[row].exp().numpy(), weights, rtol=1e-3, atol=1e-5)
            assert np.allclose(log_factors[row].exp().numpy(), factors, rtol=1e-3, atol=1e-5)

    def test_round_trip_keeps_every_bit_of_the_weights(
        self, model: PreTrainedModel, tmp_path: Path, features: str, form: dict[str, int]
    ) -> None:
        head = tiny_head(model, features=features, draft_vocab_size=DRAFT_VOCAB_SIZE, **form)
        head.save_pretrained(tmp_path)
        again, found = DraftHead.from_pretrained(tmp_path, output_loading_info=True)
        assert not found["missing_keys"]
        assert not found["unexpected_keys"]
        assert not again.is_attached
        assert again.state_dict().keys() == head.state_dict().keys()
        torch.testing.assert_close(again.state_dict(), head.state_dict(), rtol=0, atol=0)
        hidden, tokens = inputs(head)
        before, after = (parts(joint_of(h, hidden, tokens)) for h in (head, again.attach(model)))
        torch.testing.assert_close(after, before)  # a file's weights lie at other addresses: other kernels

    def test_rows_and_weights_are_normalised(
        self, model: PreTrainedModel, features: str, form: dict[str, int]
    ) -> None:
        head = tiny_head(model, features=features, draft_vocab_size=DRAFT_VOCAB_SIZE, **form)
        joint = joint_of(head, *inputs(head))
        assert (joint.horizon, joint.vocab_size) == (3, DRAFT_VOCAB_SIZE)
        assert torch.allclose(parts(joint)[0].exp().sum(-1), torch.ones(5))
        rows = joint.sample(generator=torch.Generator().manual_seed(0)).log_rows
        assert rows is not None
        assert torch.allclose(rows.exp().sum(-1), torch.ones(5, 3))


class TestFolder:
    def test_holds_nothing_of_the_base_model(self, model: PreTrainedModel, tmp_path: Path) -> None:
        head = tiny_head(model, draft_vocab_size=DRAFT_VOCAB_SIZE)
        head.save_pretrained(tmp_path)
        with safe_open(tmp_path / "model.safetensors", "pt") as file:
            names = set(file.keys())
        assert names == {
            "draft_ids", "fuse.up.weight", "fuse.down.weight",
            "gate.weight", "gate.bias", "maps.inner.weight", "maps.outer",
        }  # fmt: skip
        own = sum(parameter.numel() for parameter in head.parameters()) * 4 + DRAFT_VOCAB_SIZE * 8
        assert (tmp_path / "model.safetensors").stat().st_size < own + 2000
        assert {file.name for file in tmp_path.iterdir()} == {"config.json", "model.safetensors"}

    def test_draft_ids_keep_their_order_and_type(self, model: PreTrainedModel, tmp_path: Path) -> None:
        head = tiny_head(model, draft_vocab_size=DRAFT_VOCAB_SIZE)
        head.to(torch.bfloat16).save_pretrained(tmp_path)
        again = DraftHead.from_pretrained(tmp_path, dtype=torch.bfloat16)
        assert again.draft_ids.dtype == torch.int64
        assert again.draft_ids.tolist() == head.draft_ids.tolist()
        assert again.draft_ids.tolist() != sorted(head.draft_ids.tolist())

    def test_says_what_it_was_trained_for(self, model: PreTrainedModel, tmp_path: Path) -> None:
        head = tiny_head(model, tokenizer=None)
        head.config.provenance = {"command": "polydraft train"}
        head.save_pretrained(tmp_path)
        again = DraftHead.from_pretrained(tmp_path).config
        assert again.base_model == head.config.base_model
        assert again.provenance == {"command": "polydraft train"}


class TestAttach:
    @pytest.mark.parametrize(
        ("other", "part"),
        [({"kind": "qwen3"}, "config"), ({"vocab_size": 65}, "config"), ({"seed": 1}, "weights")],
    )
    def test_refuses_another_model(self, model: PreTrainedModel, other: dict[str, object], part: str) -> None:
        head = tiny_head(model)
        with pytest.raises(InputError, match=f"has another {part}") as caught:
            head.attach(tiny_model(**other))  # type: ignore[arg-type]
        assert "\n" not in str(caught.value)
        assert head.is_attached_to(model)

    def test_refuses_another_tokenizer(self) -> None:
        tokenizer, grown = tiny_tokenizer(), tiny_tokenizer()
        grown.add_tokens(["<more>"])
        model = tiny_model(vocab_size=300)
        head = tiny_head(model, tokenizer=tokenizer)
        head.attach(model, tokenizer)
        head.attach(model, grown)  # a token added within the rows of the model changes no other
        with pytest.raises(InputError, match="has another tokenizer"):
            tiny_head(model, tokenizer=grown).attach(model, tokenizer)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_takes_the_same_model_in_another_dtype(self, dtype: torch.dtype) -> None:
        head = tiny_head(tiny_model())
        model = tiny_model().to(dtype)
        head.attach(model)
        assert head.rows.dtype == dtype
        assert torch.equal(head.rows, model.get_output_embeddings().weight[head.draft_ids])

    def test_without_a_record_the_sizes_must_still_fit(self, model: PreTrainedModel) -> None:
        head = tiny_head(model, base_model=None)
        head.attach(tiny_model(seed=1))
        with pytest.raises(InputError, match="an unembedding of 64 x 32, LlamaForCausalLM has 65 x 32"):
            head.attach(tiny_model(vocab_size=65))

    def test_needs_a_draft_vocabulary(self, model: PreTrainedModel) -> None:
        config = DraftConfig(hidden_size=HIDDEN_SIZE, vocab_size=VOCAB_SIZE, draft_vocab_size=4)
        with pytest.raises(PolydraftError, match=r"fill head\.draft_ids"):
            DraftHead(config).attach(model)

    @pytest.mark.parametrize("features", ["hidden", "fused"])
    def test_use_before_it_raises(self, model: PreTrainedModel, tmp_path: Path, features: str) -> None:
        tiny_head(model, features=features, own_unembedding=True).save_pretrained(tmp_path)
        head = DraftHead.from_pretrained(tmp_path)
        assert not head.is_attached
        assert not head.is_attached_to(model)
        with pytest.raises(PolydraftError, match=r"call head\.attach\(model\) first"):
            head(torch.zeros(1, HIDDEN_SIZE), torch.zeros(1, dtype=torch.long))

    def test_shares_the_base_model_without_owning_it(self, model: PreTrainedModel) -> None:
        head = tiny_head(model, draft_vocab_size=DRAFT_VOCAB_SIZE)
        assert head.is_attached_to(model)
        assert not head.is_attached_to(tiny_model())
        assert torch.equal(head.rows, model.get_output_embeddings().weight[head.draft_ids])
        tokens = torch.tensor([[3, 4], [5, 6]])
        assert torch.equal(head.embed(tokens), model.get_input_embeddings()(tokens))
        shared = {id(parameter) for parameter in model.parameters()}
        assert not any(id(parameter) in shared for parameter in head.parameters())

    def test_draft_index_is_the_inverse_of_draft_ids(self, model: PreTrainedModel) -> None:
        head = tiny_head(model, draft_vocab_size=DRAFT_VOCAB_SIZE)
        assert head.draft_index(head.draft_ids).tolist() == list(range(DRAFT_VOCAB_SIZE))
        every = head.draft_index(torch.arange(VOCAB_SIZE))
        assert (every == -1).sum() == VOCAB_SIZE - DRAFT_VOCAB_SIZE


class TestFeatures:
    def test_fused_change_with_the_next_token(self, model: PreTrainedModel) -> None:
        head = tiny_head(model, features="fused")
        hidden = torch.randn(1, HIDDEN_SIZE).expand(2, -1)
        features = head.features(hidden, torch.tensor([3, 4]))
        assert (features[0] - features[1]).abs().max() > 0.1

    def test_fused_start_as_the_hidden_state(self) -> None:
        head = DraftHead(DraftConfig(hidden_size=32, vocab_size=9, draft_vocab_size=9, feature_size=64))
        assert head.fuse is not None
        hidden = torch.randn(3, 32)
        assert torch.equal(head.fuse(hidden, torch.randn(3, 32)), hidden)
        assert abs(head.fuse.up.weight.std() - 64**-0.5) < 0.01

    def test_hidden_leave_the_next_token_to_the_posterior(self, model: PreTrainedModel) -> None:
        head = tiny_head(model, features="hidden", rank=3)
        hidden = torch.randn(1, HIDDEN_SIZE).expand(2, -1)
        weights, factors = parts(joint_of(head, hidden, torch.tensor([3, 4])))
        torch.testing.assert_close(factors[0], factors[1])
        assert (weights[0] - weights[1]).abs().max() > 0.01

    def test_a_token_that_cannot_be_drafted_leaves_the_prior(self, model: PreTrainedModel) -> None:
        head = tiny_head(model, features="hidden", rank=3, draft_vocab_size=DRAFT_VOCAB_SIZE)
        hidden, tokens = inputs(head)
        weights, _ = parts(joint_of(head, hidden, tokens))
        prior = head.gate.scores(hidden).log_softmax(-1)
        assert torch.allclose(weights[-1], prior[-1], atol=1e-6)
        assert not torch.allclose(weights[0], prior[0], atol=1e-3)

    def test_at_rank_one_the_posterior_says_nothing(self, model: PreTrainedModel) -> None:
        head = tiny_head(model, features="hidden", rank=1)
        hidden = torch.randn(1, HIDDEN_SIZE).expand(2, -1)
        joint = joint_of(head, hidden, torch.tensor([3, 4]))
        torch.testing.assert_close(*joint.conditional(torch.zeros(2, 1, dtype=torch.long)))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("features", ["hidden", "fused"])
@pytest.mark.parametrize("base", [torch.float32, torch.bfloat16])
def test_bfloat16_head(base: torch.dtype, features: str, form: dict[str, int]) -> None:
    model = tiny_model().to(base)
    head = tiny_head(model, features=features, draft_vocab_size=DRAFT_VOCAB_SIZE, **form)
    hidden, tokens = inputs(head)
    _, exact = parts(joint_of(head, hidden, tokens))
    joint = joint_of(head.to(torch.bfloat16), hidden.to(base), tokens)
    weights, factors = parts(joint)
    assert weights.dtype == factors.dtype == torch.float32
    rows = joint.sample(generator=torch.Generator().manual_seed(0)).log_rows
    assert rows is not None
    assert torch.allclose(rows.exp().sum(-1), torch.ones(5, 3))
    assert (factors.exp() - exact.exp()).abs().max() < 0.2


@pytest.mark.parametrize("form", FORMS)
def test_components_of_a_fresh_head_differ(model: PreTrainedModel, form: dict[str, int]) -> None:
    config = DraftConfig(
        hidden_size=HIDDEN_SIZE, vocab_size=VOCAB_SIZE, draft_vocab_size=8, horizon=2, rank=2, map_rank=4
    )
    head = DraftHead(DraftConfig(**(config.to_diff_dict() | form)))
    head.draft_ids.copy_(torch.arange(8))
    weights, factors = parts(joint_of(head.attach(model), torch.randn(1, HIDDEN_SIZE), torch.tensor([3])))
    assert (factors[:, :, 0] - factors[:, :, 1]).abs().max() > 1e-4
    assert (weights.exp() - 0.5).abs().max() < 0.1


def test_every_parameter_learns(model: PreTrainedModel) -> None:
    model.requires_grad_(False)
    for features in ("hidden", "fused"):
        head = tiny_head(model, features=features, draft_vocab_size=DRAFT_VOCAB_SIZE)
        hidden, tokens = inputs(head)
        head(hidden, tokens).log_prob(torch.zeros(5, 3, dtype=torch.long)).sum().backward()
        for name, parameter in head.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.abs().max() > 0, name

"""A head that starts from a trained one: of lower rank, of another member, of another horizon."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from polydraft.errors import InputError
from polydraft.heads import DraftConfig, DraftHead
from polydraft.joint import MEMBERS, member
from polydraft.joint.gate import STAY
from polydraft.training import start
from polydraft.training.data import Document, frequent_tokens
from polydraft.training.start import FIXED, NOISE, new_head
from tests.joint.toy import TOY, registered
from tests.tiny import BLOCK, tiny_head, tiny_model, tiny_tokenizer

DOCUMENTS = (Document([1, 2, 3]),)
EVERY = (*(name for name in MEMBERS if name != TOY and not MEMBERS[name].steps), TOY)
"""All with maps; of the others see `test_steps`."""
SINGLE = tuple(name for name in EVERY if name != TOY and MEMBERS[name].single)
EXACT = ("independent", "cp", "markov", "cp-markov")
"""Members with nothing to start from scratch, but for a bias of zero."""
FORMS: tuple[dict[str, Any], ...] = (
    {},
    {"features": "hidden"},
    {"map_rank": 0},
    {"own_unembedding": True},
    {"features": "block", "block": BLOCK, "layers": [2]},
)
forms = pytest.mark.parametrize("form", FORMS, ids=str)


@pytest.fixture(autouse=True)
def _toy() -> Iterator[None]:
    with registered():
        yield


@pytest.fixture
def _no_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start, "NOISE", 0.0)


def trained_head(**form: Any) -> DraftHead:
    return tiny_head(tiny_model(), **({"rank": 1, "draft_vocab_size": 20} | form))


def grown(trained: DraftHead, **changes: Any) -> DraftHead:
    """Of rank 3 where the member has as many, and otherwise like `trained`."""
    kept = (*FIXED, "features", "layers", "block", "horizon", "markov_rank", "draft_vocab_size", "joint")
    fields = {name: getattr(trained.config, name) for name in kept} | changes
    fields.setdefault("rank", 1 if member(fields["joint"]).single else 3)
    return new_head(
        DraftConfig(**fields), tiny_model(), tiny_tokenizer(), DOCUMENTS, init_from=trained
    ).eval()


@torch.no_grad()
def gains(trained: DraftHead, head: DraftHead, *, length: int = 3) -> Tensor:
    """By how much the log probabilities of random chains, after random states, have become larger; (64,)."""
    size = head.config.state_size
    hidden, tokens = torch.randn(64, size), torch.randint(64, (64,))
    chains = torch.randint(20, (64, length))
    old, new = (h(hidden, tokens).log_prob(chains) for h in (trained, head))
    return new - old


def difference(trained: DraftHead, head: DraftHead, *, length: int = 3) -> float:
    """The largest change in either direction."""
    return float(gains(trained, head, length=length).abs().max())


class TestFromIndependent:
    """`--init-from` a head of one component: the start of every member."""

    @forms
    @pytest.mark.parametrize("name", EVERY)
    def test_it_is_the_trained_joint_up_to_noise(self, name: str, form: dict[str, Any]) -> None:
        trained = trained_head(joint="independent", **form)
        head = grown(trained, joint=name)
        assert torch.equal(head.draft_ids, trained.draft_ids)
        found = difference(trained, head)
        assert found < 30 * NOISE
        assert (found > 1e-4) == (head.config.rank > 1)

    @forms
    @pytest.mark.parametrize("name", EVERY)
    @pytest.mark.usefixtures("_no_noise")
    def test_without_noise_it_is_that_joint(self, name: str, form: dict[str, Any]) -> None:
        trained = trained_head(joint="independent", **form)
        assert difference(trained, grown(trained, joint=name)) < 1e-4


class TestDraftVocabulary:
    """`--init-from` a head with as many draft tokens, on other text."""

    TEXT = (Document(list(range(10, 45))),)

    def starts(self, trained: DraftHead) -> tuple[DraftHead, DraftHead]:
        """With the tokens of the trained head, and with those of the text."""
        kept = (*FIXED, "features", "horizon", "markov_rank", "draft_vocab_size", "joint", "rank")
        fields = {name: getattr(trained.config, name) for name in kept}
        old, new = (
            new_head(
                DraftConfig(**fields),
                tiny_model(),
                tiny_tokenizer(),
                self.TEXT,
                init_from=trained,
                draft_vocab=which,
            ).eval()
            for which in ("kept", "data")
        )
        return old, new

    def test_the_tokens_of_the_text_replace_those_of_the_trained_head(self) -> None:
        trained = trained_head(joint="markov")
        old, new = self.starts(trained)
        assert torch.equal(old.draft_ids, trained.draft_ids)
        assert new.draft_ids.tolist() == list(range(10, 30))  # all once: the lowest ids of the text
        assert not torch.equal(new.draft_ids, old.draft_ids)

    def test_what_is_known_of_a_token_stays_with_it(self) -> None:
        """Tokens of both are scored as before, relative to each other: logits belong to the base's rows."""
        trained = trained_head(joint="markov")
        _, head = self.starts(trained)
        both = sorted(set(head.draft_ids.tolist()) & set(trained.draft_ids.tolist()))
        assert len(both) > 1
        hidden, tokens = torch.randn(8, trained.config.state_size), torch.randint(64, (8,))
        found = []
        for each in (trained, head):
            joint, ids = each(hidden, tokens), each.draft_ids.tolist()
            row = joint.row(joint.start(), 0)[:, [ids.index(token) for token in both]]
            found.append(row - row[:, :1])
        assert torch.allclose(*found, atol=1e-5)


class TestFromItself:
    @pytest.mark.parametrize("features", ["fused", "hidden"])
    @pytest.mark.parametrize("name", [name for name in EVERY if name not in SINGLE])
    @pytest.mark.usefixtures("_no_noise")
    def test_of_lower_rank(self, name: str, features: str) -> None:
        """Copies share weights and transitions, so that nothing changes."""
        trained = trained_head(joint=name, rank=2, features=features)
        assert difference(trained, grown(trained, rank=5)) < 1e-4

    @pytest.mark.parametrize("name", EVERY)
    @pytest.mark.usefixtures("_no_noise")
    def test_of_one_component(self, name: str) -> None:
        trained = trained_head(joint=name)
        assert difference(trained, grown(trained)) < 1e-4

    @pytest.mark.parametrize("name", [name for name in EVERY if name != "tree"])
    @pytest.mark.parametrize("horizon", [1, 2, 5])
    @pytest.mark.usefixtures("_no_noise")
    def test_of_another_horizon(self, name: str, horizon: int) -> None:
        trained = trained_head(joint=name, rank=1 if name in SINGLE else 2)
        head = grown(trained, rank=trained.config.rank, horizon=horizon)
        assert difference(trained, head, length=min(horizon, 3)) < 1e-4
        last = min(horizon, 3) - 1
        assert torch.equal(head.maps.outer[-1], trained.maps.outer[last])  # type: ignore[union-attr]

    @pytest.mark.parametrize("horizon", [2, 5])
    @pytest.mark.usefixtures("_no_noise")
    def test_a_tree_of_another_horizon_starts_near_cp(self, horizon: int) -> None:
        """Its edges are others."""
        trained = trained_head(joint="tree", rank=2)
        head = grown(trained, rank=2, horizon=horizon)
        fresh = DraftHead(head.config)
        assert torch.equal(head.gate.edges.bias, fresh.gate.edges.bias)  # type: ignore[union-attr]
        assert torch.equal(head.gate.weight, trained.gate.weight)


class TestFromAnother:
    @pytest.mark.parametrize("old", ["cp", "hmm", "tree", TOY])
    @pytest.mark.parametrize("new", ["cp", "hmm", "tree", "cp-markov", TOY])
    @pytest.mark.usefixtures("_no_noise")
    def test_takes_components_and_their_weights(self, old: str, new: str) -> None:
        trained = trained_head(joint=old, rank=2)
        head = grown(trained, joint=new, rank=2)
        assert torch.equal(head.gate.weight, trained.gate.weight)
        if old == new or (old in EXACT and new in EXACT):
            assert difference(trained, head) < 1e-4
        elif old == "cp":
            edges = {"hmm": 2, "tree": 4, TOY: 2}[new]
            assert gains(trained, head).min() > edges * math.log(STAY) - 1e-3  # the chance that all stay
            assert difference(trained, head) > 1e-4

    @pytest.mark.parametrize("features", ["fused", "hidden"])
    @pytest.mark.usefixtures("_no_noise")
    def test_a_bias_is_kept(self, features: str) -> None:
        trained = trained_head(joint="markov", features=features)
        assert difference(trained, grown(trained, joint="cp-markov")) < 1e-4
        assert difference(trained, grown(trained, joint="cp")) > 0.1

    def test_of_another_draft_vocabulary(self) -> None:
        trained = trained_head(rank=2)
        head = grown(trained, rank=2, draft_vocab_size=8)
        assert head.draft_ids.tolist() == frequent_tokens(DOCUMENTS, size=8, vocab_size=64)
        assert torch.equal(head.gate.weight, trained.gate.weight)


class TestCopies:
    def test_differ_and_share_the_weight(self) -> None:
        trained = trained_head(rank=2)
        head = grown(trained)
        hidden = torch.randn(4, 32)
        joints = [h(hidden, torch.arange(4)) for h in (trained, head)]
        old, new = (joint.latent.prior.exp() for joint in joints)
        assert torch.allclose(new[:, 0], new[:, 2])
        assert torch.allclose(new[:, 0] + new[:, 2], old[:, 0], atol=1e-5)
        assert torch.allclose(new[:, 1], old[:, 1], atol=1e-5)
        factors = joints[1].log_factors
        assert (factors[:, :, 0] - factors[:, :, 2]).abs().max() > 0.001

    def test_noise_is_small_and_in_proportion(self) -> None:
        trained = trained_head()
        head = grown(trained)
        for a in range(3):
            change = head.maps.outer[:, a] - trained.maps.outer[:, 0]  # type: ignore[index]
            assert 0.5 * NOISE < change.std() / trained.maps.outer.std() < 2 * NOISE  # type: ignore[operator]


@pytest.mark.parametrize(
    ("changes", "fragment"),
    [
        ({"features": "hidden"}, "--init-from has features 'fused', this run 'hidden'"),
        ({"map_rank": 2}, "--init-from has map_rank 4, this run 2"),
        ({"rank": 1}, "--init-from has rank 2, above this run's 1"),
        ({"joint": "independent"}, "--init-from has rank 2, above this run's 1"),
        ({"markov_rank": 3}, "--init-from has markov_rank 6, this run 3"),
    ],
)
def test_refuses_another_form(changes: dict[str, Any], fragment: str) -> None:
    trained = trained_head(rank=2, joint="cp-markov")
    with pytest.raises(InputError, match=fragment) as error:
        grown(trained, **changes)
    assert "\n" not in str(error.value)


def test_refuses_another_draft_vocabulary_with_unembeddings_of_its_own() -> None:
    trained = trained_head(rank=2, own_unembedding=True)
    with pytest.raises(InputError, match="its own unembedding for another draft_vocab_size"):
        grown(trained, draft_vocab_size=8)


class TestFeatures:
    """A block, or layers, that the trained head lacks, change nothing at the start."""

    @torch.no_grad()
    @pytest.mark.parametrize("more", [{"features": "block", "block": BLOCK}, {"layers": [2, 1]}], ids=str)
    def test_more_than_the_trained_head_has(self, more: dict[str, Any]) -> None:
        trained = trained_head()
        head = grown(trained, rank=1, **more)
        generator = torch.Generator().manual_seed(0)
        hidden = torch.randn(1, 6, head.config.state_size, generator=generator)
        tokens = torch.randint(64, (1, 6), generator=generator)
        expected = trained.features(hidden[..., : trained.config.hidden_size], tokens)
        torch.testing.assert_close(head.features(hidden, tokens), expected)

    @pytest.mark.parametrize(
        ("old", "new"),
        [
            ({"features": "hidden"}, {"features": "fused"}),
            ({"features": "block", "block": BLOCK}, {"features": "fused", "block": {}}),
            ({"layers": [1]}, {"layers": []}),
            ({"features": "block", "block": BLOCK}, {"block": BLOCK | {"intermediate_size": 50}}),
        ],
        ids=str,
    )
    def test_refused(self, old: dict[str, Any], new: dict[str, Any]) -> None:
        with pytest.raises(InputError, match="--init-from has"):
            grown(trained_head(**old), **new)

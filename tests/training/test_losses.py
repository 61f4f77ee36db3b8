"""The chunked losses against the joint itself, and what they promise about memory."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from polydraft.heads import DraftHead
from polydraft.joint import BinaryTree
from polydraft.training.losses import Anchors, Losses, head_losses
from polydraft.training.teacher import Teacher
from polydraft.training.weights import LossWeights
from tests.tiny import HIDDEN_SIZE, tiny_head, tiny_model
from tests.training.plain import assert_close, gradients, make_anchors, make_head, reference, whole_joint

TEXT_ONLY = LossWeights(nll=1.0, balance=0.0)
FORMS: tuple[dict[str, Any], ...] = (
    {"rank": 1},
    {"rank": 3},
    {"rank": 1, "features": "hidden"},
    {"rank": 3, "features": "hidden"},
    {"rank": 3, "own_unembedding": True},
    {"rank": 3, "map_rank": 0, "features": "hidden"},
    {"joint": "independent", "rank": 1},
    {"joint": "independent", "rank": 1, "features": "hidden"},
    {"joint": "hmm", "rank": 3},
    {"joint": "hmm", "rank": 3, "features": "hidden"},
    {"joint": "hmm", "rank": 2, "own_unembedding": True},
    {"joint": "tree", "rank": 3},
    {"joint": "tree", "rank": 3, "features": "hidden"},
    {"joint": "tree", "rank": 2, "horizon": 5},
    {"joint": "tree", "rank": 2, "own_unembedding": True},
    {"joint": "markov", "rank": 1},
    {"joint": "markov", "rank": 1, "features": "hidden"},
    {"joint": "markov", "rank": 1, "own_unembedding": True},
    {"joint": "cp-markov", "rank": 3},
    {"joint": "cp-markov", "rank": 3, "features": "hidden"},
    {"joint": "cp-markov", "rank": 2, "own_unembedding": True},
    {"joint": "cp-markov", "rank": 2, "map_rank": 0},
)
forms = pytest.mark.parametrize("form", FORMS, ids=lambda form: "-".join(map(str, form.values())))


@forms
def test_likelihood_is_that_of_the_joint(form: dict[str, Any]) -> None:
    head = make_head(**form)
    anchors = make_anchors(head)
    found = head_losses(head, anchors, TEXT_ONLY)
    whole = whole_joint(head, anchors).log_prob(anchors.targets)
    assert_close(found.nll.sum(), -whole.sum())
    skip = head.config.positions - head.config.horizon
    given = head(anchors.hidden, anchors.next_tokens).log_prob(anchors.targets[:, skip:])
    assert_close(found.nll[skip:].sum(), -given.sum())
    assert found.counts.tolist() == [len(anchors.hidden)] * head.config.positions


@forms
def test_drafting_and_training_see_one_joint(form: dict[str, Any]) -> None:
    """What the head drafts from is the joint that the losses are held against."""
    head = make_head(**form)
    anchors = make_anchors(head, outside=0.3)
    skip = head.config.positions - head.config.horizon
    whole, given = whole_joint(head, anchors), head(anchors.hidden, anchors.next_tokens)
    for s in range(head.config.horizon):
        prefix = anchors.targets[:, : skip + s]
        assert_close(given.conditional(prefix[:, skip:]), whole.conditional(prefix))


@forms
def test_all_terms_equal_the_rows_of_the_joint(form: dict[str, Any]) -> None:
    head = make_head(**form)
    anchors = make_anchors(head, count=12, outside=0.3)
    nll, kl, tv = reference(head, anchors)
    found = head_losses(head, anchors, LossWeights(nll=0.3, kl=0.7, tv=0.9, balance=0.0, discount=0.5))
    assert_close(found.nll, nll)
    assert_close(found.kl, kl)
    assert_close(found.tv, tv)
    gamma = 0.5 ** torch.arange(head.config.positions)
    assert_close(found.total, ((0.3 * nll + 0.7 * kl + 0.9 * tv) * gamma).sum())
    assert found.counts.tolist() == anchors.valid.sum(0).tolist()
    latent = whole_joint(head, anchors).latent
    first = latent.root if isinstance(latent, BinaryTree) else latent.log_weights(latent.start(), 0)
    assert_close(found.load, first.exp().mean(0))


@forms
@pytest.mark.parametrize("term", ["kl", "tv"])
def test_gradients_equal_those_of_the_plain_formula(form: dict[str, Any], term: str) -> None:
    head = make_head(**form)
    anchors = make_anchors(head, outside=0.2)
    nll, kl, tv = reference(head, anchors)
    plain = gradients(head, (0.3 * nll + 2.0 * {"kl": kl, "tv": tv}[term]).sum())
    weights = replace(TEXT_ONLY, nll=0.3, **{term: 2.0})
    found = gradients(head, head_losses(head, anchors, weights, chunk=3).total)
    for name, expected in plain.items():
        assert_close(found[name], expected)
    assert sum(float(g.abs().sum()) for g in plain.values()) > 1


@pytest.mark.parametrize("joint", ["cp", "hmm", "tree", "cp-markov"])
@pytest.mark.parametrize("chunk", [1, 3])
def test_the_chunk_changes_nothing(chunk: int, joint: str) -> None:
    head = make_head(rank=3, joint=joint)
    anchors = make_anchors(head, count=8, outside=0.2)
    weights = LossWeights(nll=0.5, kl=0.5, tv=0.5, balance=0.1)
    whole, parts = (head_losses(head, anchors, weights, chunk=c) for c in (64, chunk))
    for name in Losses._fields:
        assert_close(getattr(parts, name).float(), getattr(whole, name).float())
    expected = gradients(head, whole.total)
    for name, gradient in gradients(head, parts.total).items():
        assert_close(gradient, expected[name])


def test_no_distillation_without_a_teacher() -> None:
    head = make_head()
    anchors = make_anchors(head)._replace(teacher=None, teacher_index=None)
    found = head_losses(head, anchors, LossWeights(nll=1.0, kl=1.0, balance=0.0))
    assert found.kl.tolist() == found.tv.tolist() == [0.0] * 3
    assert_close(found.total, found.nll.sum())


def test_what_is_not_valid_contributes_nothing() -> None:
    head = make_head(rank=3)
    anchors = make_anchors(head, count=6)
    assert anchors.teacher_index is not None
    valid = anchors.valid.clone()
    valid[:, 2], valid[4:] = False, False
    masked = anchors._replace(valid=valid)
    scrambled = masked._replace(
        targets=torch.where(valid, anchors.targets, -1),
        teacher_index=torch.where(valid, anchors.teacher_index, 0),
    )
    weights = LossWeights(nll=0.5, kl=0.5, tv=0.5, balance=0.0)
    first, second = (head_losses(head, a, weights) for a in (masked, scrambled))
    assert_close(first.total, second.total)
    assert first.nll[2] == first.kl[2] == first.tv[2] == 0
    assert first.counts.tolist() == [4, 4, 0]
    fields = ("hidden", "next_tokens", "targets", "valid", "teacher_index")
    few = masked._replace(**{name: getattr(masked, name)[:4] for name in fields})
    assert_close(first.total, head_losses(head, few, weights).total)


@pytest.mark.parametrize("features", ["fused", "hidden"])
@pytest.mark.parametrize("joint", ["independent", "cp", "tree", "cp-markov"])
@pytest.mark.parametrize("count", [0, 3])
def test_nothing_to_learn_from_is_a_loss_of_zero(features: str, joint: str, count: int) -> None:
    head = make_head(rank=1 if joint == "independent" else 2, joint=joint, features=features)
    anchors = make_anchors(head, count=count, outside=2.0)
    found = head_losses(head, anchors, LossWeights(nll=0.5, kl=0.5, tv=0.5, balance=0.0))
    assert found.total == 0
    assert bool(found.load.isfinite().all())
    assert all(not g.any() for g in gradients(head, found.total).values())


class LargestTensor(TorchDispatchMode):
    """Records the number of elements of the largest tensor that any operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(tensor, Tensor):
                self.numel = max(self.numel, tensor.numel())
        return out


@forms
def test_logits_of_all_anchors_never_exist(form: dict[str, Any]) -> None:
    count, chunk = 256, 8
    head = tiny_head(tiny_model(vocab_size=2048), **form)
    anchors = make_anchors_of_full_vocabulary(head, count)
    config = head.config
    with LargestTensor() as seen:
        found = head_losses(head, anchors, LossWeights(nll=0.5, kl=0.5, tv=0.5), chunk=chunk)
        found.total.backward()  # type: ignore[no-untyped-call]
    every_logit = count * config.positions * config.rank * config.draft_vocab_size
    parameters = max(p.numel() for p in head.parameters())
    logits = chunk * config.rank * config.draft_vocab_size
    table = config.draft_vocab_size * HIDDEN_SIZE
    maps = chunk * config.positions * config.rank * HIDDEN_SIZE
    inputs = count * 2 * HIDDEN_SIZE
    assert logits <= seen.numel <= max(logits, maps, parameters, inputs, table)
    assert 8 * seen.numel <= every_logit


def make_anchors_of_full_vocabulary(head: DraftHead, count: int) -> Anchors:
    """Anchors whose every target can be drafted, with few teacher rows."""
    generator = torch.Generator().manual_seed(3)
    shape = (count, head.config.positions)
    logits = torch.randn(2, head.config.vocab_size, generator=generator)
    return Anchors(
        hidden=torch.randn(count, HIDDEN_SIZE, generator=generator),
        next_tokens=torch.randint(head.config.vocab_size, (count,), generator=generator),
        targets=torch.randint(head.config.draft_vocab_size, shape, generator=generator),
        valid=torch.ones(shape, dtype=torch.bool),
        teacher=Teacher(logits.logsumexp(-1), logits=logits, draft_ids=head.draft_ids),
        teacher_index=torch.randint(2, shape, generator=generator),
    )

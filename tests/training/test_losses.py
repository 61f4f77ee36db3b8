"""The chunked losses against the joint itself, and what they promise about memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from polydraft.heads import DraftHead
from polydraft.joint import Canonical
from polydraft.training.losses import Anchors, Losses, LossWeights, balance_loss, head_losses
from tests.tiny import HIDDEN_SIZE, tiny_head, tiny_model

TEXT_ONLY = LossWeights(nll=1.0, kl=0.0, balance=0.0)
FORMS: tuple[dict[str, Any], ...] = (
    {"rank": 1},
    {"rank": 3},
    {"rank": 1, "features": "hidden"},
    {"rank": 3, "features": "hidden"},
    {"rank": 3, "own_unembedding": True},
    {"rank": 3, "map_rank": 0, "features": "hidden"},
)
forms = pytest.mark.parametrize("form", FORMS, ids=lambda form: "-".join(map(str, form.values())))


def make_head(**form: Any) -> DraftHead:
    """A random head with a draft vocabulary of 24 of the 64 tokens."""
    return tiny_head(tiny_model(), draft_vocab_size=24, **form)


def make_anchors(head: DraftHead, *, count: int = 7, seed: int = 1, outside: float = 0.0) -> Anchors:
    """Random anchors with teacher rows of a random model; a share of the drafts lies outside V'."""
    config, generator = head.config, torch.Generator().manual_seed(seed)
    skip = config.positions - config.horizon
    targets = torch.randint(config.draft_vocab_size, (count, config.positions), generator=generator)
    targets[torch.rand(targets.shape, generator=generator) < outside] = -1
    next_tokens = torch.randint(config.vocab_size, (count,), generator=generator)
    if skip:  # the first target is x[t+1] itself
        known = targets[:, 0] >= 0
        outsiders = [v for v in range(config.vocab_size) if int(head.draft_index(torch.tensor(v))) < 0]
        next_tokens = torch.where(known, head.draft_ids[targets[:, 0].clamp(min=0)], outsiders[0])
    known = targets >= 0
    valid = torch.cat([known[:, :skip], known[:, skip:].cumprod(-1).bool()], -1)
    rows = torch.randn(count + 5, config.vocab_size, generator=generator).log_softmax(-1)[:, head.draft_ids]
    return Anchors(
        hidden=torch.randn(count, HIDDEN_SIZE, generator=generator),
        next_tokens=next_tokens,
        targets=targets,
        valid=valid,
        teacher=torch.randint(count + 5, targets.shape, generator=generator),
        teacher_log_probs=rows,
    )


def whole_joint(head: DraftHead, anchors: Anchors) -> Canonical:
    """The joint over every modelled position, x[t+1] included for `hidden` features; no conditioning."""
    features = head.features(anchors.hidden, anchors.next_tokens)
    mapped = head.maps(features)
    logits = torch.stack([head.logits(mapped[:, s], s) for s in range(head.config.positions)], dim=1)
    return Canonical.from_logits(head.gate(features), logits)


def reference(head: DraftHead, anchors: Anchors) -> tuple[Tensor, Tensor]:
    """nll (S,) and kl (S,), one anchor and one position at a time, through `joint.conditional`.

    A position outside V' tells nothing, so what follows it conditions on the tokens before it alone;
    only x[t+1] (position 0 of `hidden` features) can be such a gap before a target that counts.
    """
    joint = whole_joint(head, anchors)
    assert anchors.teacher is not None and anchors.teacher_log_probs is not None
    nll = [torch.zeros(()) for _ in range(head.config.positions)]
    kl = [torch.zeros(()) for _ in range(head.config.positions)]
    for i, line in enumerate(anchors.targets):
        one = Canonical(joint.log_weights[i : i + 1], joint.log_factors[i : i + 1])
        start = 0
        if line[0] < 0 and anchors.targets.shape[1] > head.config.horizon:
            one, start = Canonical(one.log_weights, one.log_factors[:, 1:]), 1
        for s in range(start, head.config.positions):
            if not anchors.valid[i, s]:
                continue
            row = one.conditional(line[None, start:s])[0]
            p = anchors.teacher_log_probs[anchors.teacher[i, s]].exp()
            nll[s] = nll[s] - row[line[s]]
            kl[s] = kl[s] - (p * row).sum()
    return torch.stack(nll), torch.stack(kl)


def gradients(head: DraftHead, total: Tensor) -> dict[str, Tensor]:
    found = torch.autograd.grad(total, list(head.parameters()), allow_unused=True)
    named = zip(head.named_parameters(), found, strict=True)
    return {name: torch.zeros_like(p) if g is None else g for (name, p), g in named}


def assert_close(found: Tensor, expected: Tensor) -> None:
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5), (found - expected).abs().max()


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
def test_both_losses_equal_the_rows_of_the_joint(form: dict[str, Any]) -> None:
    head = make_head(**form)
    anchors = make_anchors(head, count=12, outside=0.3)
    nll, kl = reference(head, anchors)
    found = head_losses(head, anchors, LossWeights(nll=0.3, kl=0.7, balance=0.0, discount=0.5))
    assert_close(found.nll, nll)
    assert_close(found.kl, kl)
    gamma = 0.5 ** torch.arange(head.config.positions)
    assert_close(found.total, ((0.3 * nll + 0.7 * kl) * gamma).sum())
    assert found.counts.tolist() == anchors.valid.sum(0).tolist()
    assert_close(found.load, whole_joint(head, anchors).log_weights.exp().mean(0))


@forms
def test_gradients_equal_those_of_the_plain_formula(form: dict[str, Any]) -> None:
    head = make_head(**form)
    anchors = make_anchors(head, outside=0.2)
    nll, kl = reference(head, anchors)
    plain = gradients(head, (0.3 * nll + 0.7 * kl).sum())
    weights = LossWeights(nll=0.3, kl=0.7, balance=0.0)
    found = gradients(head, head_losses(head, anchors, weights, chunk=3).total)
    for name, expected in plain.items():
        assert_close(found[name], expected)
    assert sum(float(g.abs().sum()) for g in plain.values()) > 1


@pytest.mark.parametrize("chunk", [1, 3])
def test_the_chunk_changes_nothing(chunk: int) -> None:
    head = make_head(rank=3)
    anchors = make_anchors(head, count=8, outside=0.2)
    weights = LossWeights(nll=0.5, kl=0.5, balance=0.1)
    whole, parts = (head_losses(head, anchors, weights, chunk=c) for c in (64, chunk))
    for name in Losses._fields:
        assert_close(getattr(parts, name).float(), getattr(whole, name).float())
    expected = gradients(head, whole.total)
    for name, gradient in gradients(head, parts.total).items():
        assert_close(gradient, expected[name])


def test_no_distillation_without_a_teacher() -> None:
    head = make_head()
    anchors = make_anchors(head)._replace(teacher=None, teacher_log_probs=None)
    found = head_losses(head, anchors, LossWeights(nll=1.0, kl=1.0, balance=0.0))
    assert found.kl.tolist() == [0.0] * 3
    assert_close(found.total, found.nll.sum())


def test_what_is_not_valid_contributes_nothing() -> None:
    head = make_head(rank=3)
    anchors = make_anchors(head, count=6)
    assert anchors.teacher is not None
    valid = anchors.valid.clone()
    valid[:, 2], valid[4:] = False, False
    masked = anchors._replace(valid=valid)
    scrambled = masked._replace(
        targets=torch.where(valid, anchors.targets, -1),
        teacher=torch.where(valid, anchors.teacher, 0),
    )
    weights = LossWeights(nll=0.5, kl=0.5, balance=0.0)
    first, second = (head_losses(head, a, weights) for a in (masked, scrambled))
    assert_close(first.total, second.total)
    assert first.nll[2] == first.kl[2] == 0
    assert first.counts.tolist() == [4, 4, 0]
    fields = ("hidden", "next_tokens", "targets", "valid", "teacher")
    few = masked._replace(**{name: getattr(masked, name)[:4] for name in fields})
    assert_close(first.total, head_losses(head, few, weights).total)


@pytest.mark.parametrize("features", ["fused", "hidden"])
@pytest.mark.parametrize("count", [0, 3])
def test_nothing_to_learn_from_is_a_loss_of_zero(features: str, count: int) -> None:
    head = make_head(rank=2, features=features)
    anchors = make_anchors(head, count=count, outside=2.0)
    found = head_losses(head, anchors, LossWeights(nll=0.5, kl=0.5, balance=0.0))
    assert found.total == 0
    assert bool(found.load.isfinite().all())
    assert all(not g.any() for g in gradients(head, found.total).values())


class TestBalance:
    def test_balanced_is_one(self) -> None:
        rows = torch.full((4, 4), 0.1).fill_diagonal_(0.7)
        assert balance_loss(rows.log()) == pytest.approx(1.0)

    def test_collapsed_is_the_rank(self) -> None:
        rows = torch.tensor([[1 - 3e-6, 1e-6, 1e-6, 1e-6]] * 5)
        assert balance_loss(rows.log()) == pytest.approx(4.0, abs=1e-4)

    def test_by_hand(self) -> None:
        rows = torch.tensor([[0.8, 0.2], [0.6, 0.4], [0.1, 0.9]])
        expected = 2 * (2 / 3 * 0.5 + 1 / 3 * 0.5)  # both mean weights are 1/2
        assert balance_loss(rows.log()) == pytest.approx(expected)

    def test_counts_once_per_anchor_and_not_at_rank_one(self) -> None:
        for rank in (1, 3):
            head = make_head(rank=rank)
            anchors = make_anchors(head, count=5)
            without, with_it = (
                head_losses(head, anchors, LossWeights(nll=1.0, balance=b)).total.item() for b in (0.0, 0.1)
            )
            weights = whole_joint(head, anchors).log_weights
            expected = 0.1 * 5 * balance_loss(weights).item() if rank > 1 else 0.0
            assert with_it - without == pytest.approx(expected, abs=1e-3)


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
        found = head_losses(head, anchors, LossWeights(nll=0.5, kl=0.5), chunk=chunk)
        found.total.backward()  # type: ignore[no-untyped-call]
    every_logit = count * config.positions * config.rank * config.draft_vocab_size
    parameters = max(p.numel() for p in head.parameters())
    logits = chunk * config.rank * config.draft_vocab_size
    rows = chunk * config.positions * config.draft_vocab_size
    maps = chunk * config.positions * config.rank * HIDDEN_SIZE
    inputs = count * 2 * HIDDEN_SIZE
    assert logits <= seen.numel <= max(logits, rows, maps, parameters, inputs, head.rows.numel())
    assert 8 * seen.numel <= every_logit


def make_anchors_of_full_vocabulary(head: DraftHead, count: int) -> Anchors:
    """Anchors whose every target can be drafted, with few teacher rows."""
    generator = torch.Generator().manual_seed(3)
    shape = (count, head.config.positions)
    return Anchors(
        hidden=torch.randn(count, HIDDEN_SIZE, generator=generator),
        next_tokens=torch.randint(head.config.vocab_size, (count,), generator=generator),
        targets=torch.randint(head.config.draft_vocab_size, shape, generator=generator),
        valid=torch.ones(shape, dtype=torch.bool),
        teacher=torch.randint(2, shape, generator=generator),
        teacher_log_probs=torch.randn(2, head.config.draft_vocab_size, generator=generator).log_softmax(-1),
    )

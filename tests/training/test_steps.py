"""Training of stepwise heads: chains unrolled along the text against each anchor computed by itself."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import polydraft
from polydraft.errors import InputError
from polydraft.heads import DraftHead
from polydraft.training.anchors import build_anchors
from polydraft.training.cache import cache_hidden
from polydraft.training.data import Document, collate
from polydraft.training.losses import head_losses
from polydraft.training.packing import PackedDataset
from polydraft.training.paths import paths
from polydraft.training.weights import LossWeights
from tests.heads.test_steps import FORMS, forms, make, z_by_hand
from tests.tiny import BLOCK, tiny_head, tiny_model
from tests.training.plain import gradients
from tests.training.runs import run, same_weights, write_corpus
from tests.training.test_grow import difference, grown

SEQUENTIAL, RECURRENT = FORMS[0], FORMS[3]
both = pytest.mark.parametrize("form", [SEQUENTIAL, RECURRENT], ids=["sequential", "recurrent"])
NLL = LossWeights(nll=1.0, balance=0.0, discount=0.8)


def documents(*, lengths: Sequence[int] = (9, 4, 12, 6)) -> list[Document]:
    generator = torch.Generator().manual_seed(1)
    return [Document(torch.randint(64, (n,), generator=generator).tolist()) for n in lengths]


def batch_of(texts: Sequence[Document]) -> dict[str, Tensor]:
    return collate([vars(text) for text in texts])


def slow_losses(head: DraftHead, texts: Sequence[Document]) -> tuple[Tensor, Tensor]:
    """Summed -log q per position, (n,), and how many there are; an anchor and a draft at a time."""
    n, model = head.config.horizon, tiny_model()
    totals, counts = [torch.zeros(()) for _ in range(n)], torch.zeros(n, dtype=torch.long)
    for document in texts:
        ids = torch.tensor(document.input_ids)
        states = torch.cat(model(input_ids=ids[None], output_hidden_states=True).hidden_states)
        hidden = torch.cat([states[-1], *(states[k] for k in head.config.layers)], -1).detach()
        for t in range(len(ids) - 2):
            drafts = head.draft_index(ids[t + 2 : t + 2 + n]).tolist()
            for s, draft in enumerate(drafts):
                if draft < 0:
                    break
                z = z_by_hand(head, hidden[: t + 1], ids[1 : t + 2], drafts[:s])
                rows = head.own[s, 0] if head.config.own_unembedding else head.rows
                totals[s] = totals[s] - (rows @ z).log_softmax(-1)[draft]
                counts[s] += 1
    return torch.stack(totals), counts


@forms
def test_loss_and_gradient_are_those_of_each_anchor_by_itself(form: dict[str, Any]) -> None:
    head = make(form | {"draft_vocab_size": 60})
    model = tiny_model().requires_grad_(False)
    found = head_losses(head, build_anchors(head, model, batch_of(documents()), teacher=False), NLL)
    nll, counts = slow_losses(head, documents())
    assert torch.equal(found.counts, counts) and bool((counts > 0).all())
    torch.testing.assert_close(found.nll, nll.detach(), rtol=1e-4, atol=1e-3)
    expected = gradients(head, (nll * 0.8 ** torch.arange(head.config.horizon)).sum())
    for name, gradient in gradients(head, found.total).items():
        scale = float(expected[name].abs().max())
        assert scale > 0, name
        assert float((gradient - expected[name]).abs().max()) < 1e-3 * scale, name


@torch.no_grad()
@forms
def test_training_sees_the_rows_that_are_drafted_from(form: dict[str, Any]) -> None:
    head, model = make(form | {"draft_vocab_size": 64}), tiny_model()
    anchors = build_anchors(head, model, batch_of(documents()), teacher=True)
    found = paths(head, anchors)
    z = head.maps(anchors.features(head))[:, :, 0]
    for s in range(head.config.horizon):
        rows = head.logits(z[:, s, None], s)[:, 0].log_softmax(-1)
        own = anchors.valid[:, s]
        log_q = rows.gather(-1, anchors.targets[:, s].clamp(min=0)[:, None])[:, 0]
        torch.testing.assert_close(log_q[own], found.log_q[own, s], rtol=1e-4, atol=1e-4)


@forms
def test_packed_documents_are_isolated(form: dict[str, Any]) -> None:
    head, model = make(form), tiny_model()
    packed = PackedDataset(documents(), size=24)
    batch = packed.collate([packed[i] for i in range(len(packed))])
    assert len(batch["input_ids"]) == 2
    weights = LossWeights(nll=0.5, kl=0.5, balance=0.0)
    one, other = (
        head_losses(head, build_anchors(head, model, b, teacher=True), weights)
        for b in (batch, batch_of(documents()))
    )
    torch.testing.assert_close(one.nll, other.nll, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(one.kl, other.kl, rtol=1e-4, atol=1e-3)
    other_gradients = gradients(head, other.total)
    for name, gradient in gradients(head, one.total).items():
        torch.testing.assert_close(gradient, other_gradients[name], rtol=1e-3, atol=1e-3)


@forms
def test_from_the_cache_and_some_anchors(form: dict[str, Any]) -> None:
    head, model = make(form), tiny_model()
    whole = build_anchors(head, model, batch_of(documents()), teacher=True)
    cached = cache_hidden(model, documents(), layers=head.config.layers)
    again = build_anchors(head, model, batch_of(cached), teacher=True)
    torch.testing.assert_close(again.features(head), whole.features(head), rtol=1e-4, atol=1e-4)
    torch.manual_seed(0)
    few = build_anchors(head, model, batch_of(documents()), teacher=False, most=2)
    assert len(few.features(head)) == 8
    none = few._replace(
        targets=few.targets[:0],
        valid=few.valid[:0],
        hidden=few.hidden[:0],
        next_tokens=few.next_tokens[:0],
        context=None if few.context is None else few.context._replace(places=few.context.places[:0]),
    )
    assert float(head_losses(head, none, NLL).total.detach()) == 0


@forms
def test_under_autocast(form: dict[str, Any]) -> None:
    head, model = make(form), tiny_model()
    anchors = build_anchors(head, model, batch_of(documents()), teacher=False)
    exact = head_losses(head, anchors, NLL).nll
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = head_losses(head, anchors, NLL)
    rough.total.backward()
    torch.testing.assert_close(rough.nll, exact, rtol=0.05, atol=0.5)
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in head.parameters())


@forms
def test_a_fresh_head_learns(form: dict[str, Any]) -> None:
    made, model = make(form), tiny_model().requires_grad_(False)
    torch.manual_seed(0)
    head = DraftHead(made.config)
    head.draft_ids.copy_(made.draft_ids)
    head.attach(model)
    anchors = build_anchors(head, model, batch_of(documents()), teacher=False)
    optimizer, totals = torch.optim.Adam(head.parameters(), lr=1e-2), []
    for _ in range(20):
        losses = head_losses(head, anchors, NLL)
        optimizer.zero_grad()
        losses.total.backward()
        optimizer.step()
        totals.append(float(losses.total))
    assert totals[-1] < 0.5 * totals[0]


@both
def test_a_run_goes_on_from_another(form: dict[str, Any], tmp_path: Path) -> None:
    changes = {name: value for name, value in form.items() if name != "block"} | {"rank": 1, "horizon": 3}
    data, out = write_corpus(tmp_path / "data.jsonl", count=12), tmp_path / "head"
    run(data, out, steps=1, every=1, packing=True, **changes)
    head = DraftHead.from_pretrained(out)
    run(data, tmp_path / "more", steps=1, every=1, init_from=head, mixed_precision="bf16", **changes)
    assert not same_weights(out, tmp_path / "more")


class TestGrow:
    def test_recurrent_takes_the_block_of_a_head_with_maps(self) -> None:
        trained = tiny_head(tiny_model(), joint="independent", rank=1, **_BLOCK)
        head = grown(trained, joint="recurrent", map_rank=64)
        old = trained.state_dict()
        for name, value in head.state_dict().items():
            assert torch.equal(value, old[name]), name

    def test_a_head_with_maps_takes_the_features_of_a_stepwise_one(self) -> None:
        trained = tiny_head(tiny_model(), joint="recurrent", rank=1, **_BLOCK)
        head = grown(trained, joint="cp", map_rank=3)
        assert head.block is not None and trained.block is not None
        for name, value in head.block.state_dict().items():
            assert torch.equal(value, trained.block.state_dict()[name])
        assert bool(head.maps.inner.weight.isfinite().all())  # type: ignore[union-attr]

    @pytest.mark.parametrize("horizon", [1, 3, 5])
    @pytest.mark.parametrize("form", FORMS[:4])
    def test_of_another_horizon(self, form: dict[str, Any], horizon: int) -> None:
        trained = make(form | {"horizon": 3})
        head = grown(trained, horizon=horizon)
        assert difference(trained, head, length=min(horizon, 3)) < 1e-4

    def test_another_width_is_refused(self) -> None:
        with pytest.raises(InputError, match="--init-from has markov_rank 6, this run 7: they must agree"):
            grown(make(SEQUENTIAL), markov_rank=7)


_BLOCK: dict[str, Any] = {"features": "block", "block": BLOCK, "draft_vocab_size": 20}


@both
@pytest.mark.parametrize(("drafting", "length"), [("chain", 4), ("tree", 7)])
def test_greedy_text_of_a_ragged_batch_is_plain_text(
    form: dict[str, Any], drafting: str, length: int
) -> None:
    model = tiny_model(vocab_size=8, initializer_range=0.08)
    head = tiny_head(model, **({"rank": 1, "horizon": 4, "draft_vocab_size": 7} | form))
    ids = torch.tensor([[0, 0, 0, 5, 2], [3, 1, 4, 1, 5], [0, 0, 7, 7, 2]])
    options: dict[str, Any] = {"max_new_tokens": 30, "do_sample": False, "pad_token_id": 0}
    modes: dict[str, Any] = {"drafting": drafting, "draft_length": length}
    out = polydraft.generate(model, head, ids, attention_mask=(ids > 0).long(), **modes, **options)
    assert out.sequences is not None and out.statistics is not None
    assert out.statistics.accepted_tokens > 0
    for row, prompt in enumerate(ids):
        plain = model.generate(prompt[prompt > 0][None], **options)  # type: ignore[operator]
        assert torch.equal(out.sequences[row, 5:], plain[0, -30:])

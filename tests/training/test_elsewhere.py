"""Training on a device that is not there: losses and gradients of the CPU, and no tensor left behind."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor

from polydraft.heads import DraftHead
from polydraft.joint import MEMBERS
from polydraft.training.data import Document, collate
from polydraft.training.gating import TextSample
from polydraft.training.objective import Objective
from polydraft.training.options import TrainOptions
from polydraft.training.packing import collate_packed
from polydraft.training.prune import component_load, confined
from polydraft.training.start import grow
from polydraft.training.trunk import Trunk
from polydraft.training.validation import validate
from polydraft.training.weights import LossWeights
from tests.elsewhere import DEVICE, Drafter, Elsewhere, pair, there
from tests.tiny import BLOCK

SIZE = 40
WEIGHTS = LossWeights(nll=0.4, kl=0.5, tv=0.6, balance=0.1, z_loss=0.01, discount=0.9)
IN_BLOCK: dict[str, Any] = {"features": "block", "block": BLOCK}
FORMS: tuple[dict[str, Any], ...] = (
    *({"joint": name, "features": "fused"} for name in MEMBERS if name != "recurrent"),
    {"joint": "cp", "features": "hidden"},
    {"joint": "cp", "own_unembedding": True},
    {"joint": "cp-markov", "layers": [1]} | IN_BLOCK,
    {"joint": "recurrent"} | IN_BLOCK,
)
forms = pytest.mark.parametrize("form", FORMS, ids=lambda form: "-".join(str(x) for x in form.values())[:40])


@pytest.fixture(autouse=True)
def _no_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which does not know the device."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())


def fields(form: dict[str, Any]) -> dict[str, Any]:
    return {"rank": 1 if MEMBERS[form["joint"]].single else 2, "draft_vocab_size": SIZE} | form


def documents() -> list[Document]:
    """Three texts, of which the model may have written two."""
    generator = torch.Generator().manual_seed(4)
    ids = [torch.randint(64, (size,), generator=generator).tolist() for size in (9, 12, 7)]
    return [Document(text, temperature=t) for text, t in zip(ids, (0.0, 1.0, None), strict=True)]


def batch(*, packed: bool = False) -> dict[str, Tensor]:
    rows: list[dict[str, Any]] = [vars(document) for document in documents()]
    return collate_packed([{"documents": rows[:2]}, {"documents": rows[2:]}]) if packed else collate(rows)


def learnt(objective: Objective, given: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor | None]]:
    """The loss, and the gradient of everything that learns."""
    torch.manual_seed(2)
    loss = objective(given).loss
    loss.backward()
    trained = {name: p for name, p in objective.named_parameters() if p.requires_grad}
    return loss.detach().cpu(), {n: None if p.grad is None else p.grad.cpu() for n, p in trained.items()}


def check_same(objectives: tuple[Objective, Objective], given: dict[str, Tensor]) -> None:
    loss, expected = learnt(objectives[0], given)
    with Elsewhere():
        found, gradients = learnt(objectives[1], {name: there(value) for name, value in given.items()})
    torch.testing.assert_close(found, loss)
    assert gradients.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(
            gradients[name], value, rtol=1e-4, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}"
        )


@forms
@pytest.mark.parametrize("packed", [False, True], ids=["", "packed"])
def test_losses_and_gradients(form: dict[str, Any], packed: bool) -> None:
    here, moved = (Objective(d.head, d.model, weights=WEIGHTS) for d in pair(**fields(form)))
    check_same((here, moved), batch(packed=packed))


def test_some_anchors_of_each_window() -> None:
    here, moved = (
        Objective(d.head, d.model, weights=WEIGHTS, anchors_per_window=3) for d in pair(draft_vocab_size=SIZE)
    )
    check_same((here, moved), batch())


def test_a_trunk_that_learns() -> None:
    here, moved = pair(draft_vocab_size=SIZE)
    options = TrainOptions(trunk="full", lm_weight=0.5)

    def objective(drafter: Drafter) -> Objective:
        trunk = Trunk(drafter.model, options, held_out=documents())
        return Objective(drafter.head, drafter.model, weights=WEIGHTS, trunk=trunk)

    with Elsewhere():
        elsewhere = objective(moved)
    check_same((objective(here), elsewhere), batch())


@forms
def test_held_out_figures(form: dict[str, Any]) -> None:
    here, moved = pair(**fields(form))
    expected = validate(*here[::-1], documents())
    with Elsewhere():
        found = validate(*moved[::-1], documents())
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert {"greedy_acceptance_length", "sampled_acceptance_length"} <= set(found)


@torch.no_grad()
@pytest.mark.parametrize("name", MEMBERS)
def test_a_head_grown_from_one_that_is_there(name: str) -> None:
    form = {"joint": name} | (IN_BLOCK if name == "recurrent" else {})
    here, moved = pair(**fields(form))
    config = here.head.config.to_dict() | {"horizon": 4} | ({} if MEMBERS[name].single else {"rank": 3})
    heads = [DraftHead(type(here.head.config)(**config)) for _ in range(2)]
    torch.manual_seed(3)
    grow(heads[0], here.head)
    with Elsewhere():
        torch.manual_seed(3)
        grow(heads[1], moved.head)
    torch.testing.assert_close(heads[1].state_dict(), heads[0].state_dict())


@torch.no_grad()
def test_load_of_components_and_a_pruned_head() -> None:
    here, moved = pair(rank=3, joint="hmm", draft_vocab_size=SIZE)
    sample = TextSample(anchors_per_window=0)
    expected, anchors = component_load(here.head, here.model, documents(), sample=sample)
    with Elsewhere():
        found, count = component_load(moved.head, moved.model, documents(), sample=sample)
        torch.testing.assert_close(found, expected)
        assert count == anchors
        smaller = confined(moved.head, [0, 2]).attach(moved.model)
        assert smaller.gate.weight.device == DEVICE
        torch.testing.assert_close(smaller.gate.bias.cpu(), confined(here.head, [0, 2]).gate.bias)

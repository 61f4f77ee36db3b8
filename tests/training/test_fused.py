"""The fused loss of a position against the plain one: float64 autograd, bfloat16 rows, autocast."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from polydraft.training import fused as module
from polydraft.training.fused import FusedRows
from polydraft.training.losses import head_losses
from polydraft.training.terms import position_reference
from polydraft.training.weights import LossWeights, RowWeights
from tests.training.plain import gradients, make_anchors, make_head

COUNT, RANK, VOCABULARY, WIDTH, OUTSIDE = 9, 3, 40, 16, 8
WEIGHTS = (RowWeights(kl=1.0, tv=0.0), RowWeights(kl=0.0, tv=1.0), RowWeights(kl=0.4, tv=0.6))
weightings = pytest.mark.parametrize("weights", WEIGHTS, ids=["kl", "tv", "both"])


def made(seed: int = 0) -> dict[str, Tensor]:
    """A position at random, float64: U', z, log w, targets, which rows count, and the base model's rows."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    scores = normal(COUNT, VOCABULARY + OUTSIDE)
    return {
        "rows": normal(VOCABULARY, WIDTH) / 2,
        "mapped": normal(COUNT, RANK, WIDTH),
        "log_weights": normal(COUNT, RANK).log_softmax(-1),
        "targets": torch.randint(VOCABULARY, (COUNT,), generator=generator),
        "keep": torch.tensor([1.0, 1, 0, 1, 1, 1, 0, 1, 1], dtype=torch.float64),
        "scores": scores[:, :VOCABULARY],
        "normaliser": scores.logsumexp(-1, keepdim=True),
        "of_token": normal(COUNT, RANK),
    }


def plain(
    given: dict[str, Tensor], weights: RowWeights, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, ...]:
    """log P_a(x), total, (kl, tv), and the gradients of z and log w; float64 but for the product with U'."""
    mapped, log_weights = (given[name].clone().requires_grad_() for name in ("mapped", "log_weights"))
    logits = (mapped.to(dtype) @ given["rows"].to(dtype).T).double()
    p = (given["scores"] - given["normaliser"]).exp()
    token, total, figures = position_reference(
        logits, log_weights, given["targets"], given["keep"], p, weights
    )
    loss = (token * given["of_token"] * given["keep"][:, None]).sum() + 3 * total
    return token, total, figures, *torch.autograd.grad(loss, [mapped, log_weights])


def fast(given: dict[str, Tensor], weights: RowWeights, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """The same by `FusedRows`, in float32 but for U' and the logits, which are in `dtype`."""
    single = {k: v.float() if v.is_floating_point() else v for k, v in given.items()}
    mapped, log_weights = (single[name].requires_grad_() for name in ("mapped", "log_weights"))
    fused = FusedRows(single["rows"].to(dtype), rank=RANK, most=COUNT, weights=weights)
    token, total, figures = fused.position(
        mapped,
        log_weights,
        single["targets"],
        single["keep"],
        lambda which: (single["scores"][which], single["normaliser"][which]),
    )
    loss = (token * single["of_token"]).sum() + 3 * total
    return token, total, figures, *torch.autograd.grad(loss, [mapped, log_weights])


def differences(found: tuple[Tensor, ...], expected: tuple[Tensor, ...], keep: Tensor) -> list[float]:
    """Largest ones of token (rows that count), total, figures and gradients, relative to their size."""
    counts = keep.bool()
    pairs = [(found[0][counts], expected[0][counts]), *zip(found[1:], expected[1:], strict=True)]
    return [float(((a - b).abs().max() / b.abs().max()).detach()) for a, b in pairs]


@weightings
@pytest.mark.parametrize("few", [1, 2, 2**18])
def test_equals_the_plain_form(weights: RowWeights, few: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In blocks of one and two rows, and of all."""
    monkeypatch.setattr(module, "MOST_FACTORS", few * RANK * VOCABULARY)
    monkeypatch.setattr(module, "MOST_LOGITS", 2 * few * RANK * VOCABULARY)
    given = made()
    found = fast(given, weights, torch.float32)
    assert max(differences(found, plain(given, weights), given["keep"])) < 1e-5


@weightings
def test_rounds_as_the_plain_form_does_in_bfloat16(weights: RowWeights) -> None:
    """Its error against float64 may be that of autograd through bfloat16 products, and half as much again."""
    found, rounded = [], []
    for seed in range(8):
        given = made(seed)
        exact = plain(given, weights)
        found.append(differences(fast(given, weights, torch.bfloat16), exact, given["keep"]))
        rounded.append(differences(plain(given, weights, torch.bfloat16), exact, given["keep"]))
    for error, allowed in zip(torch.tensor(found).mean(0), torch.tensor(rounded).mean(0), strict=True):
        assert error <= 1.5 * allowed + 2**-9


def test_kl_is_zero_where_nothing_is_left_to_learn() -> None:
    given = made()
    p = (given["scores"] - given["normaliser"]).exp()
    scores = given["scores"][:, None].expand(-1, RANK, -1)
    arguments = (scores, given["log_weights"], given["targets"], given["keep"], p, WEIGHTS[2])
    figures = position_reference(*arguments)[2]
    outside = 1 - p.sum(-1)
    assert figures[0].item() == pytest.approx(0, abs=1e-12)
    assert figures[1].item() == pytest.approx(float((outside * given["keep"]).sum()))
    assert outside.min() > 0.01


def test_tv_is_the_rate_at_which_verification_rejects() -> None:
    """A draft from q is accepted with probability min(1, p / q)."""
    given = made(4)
    p = (given["scores"] - given["normaliser"]).exp()
    factors = (given["mapped"] @ given["rows"].T).softmax(-1)
    q = (given["log_weights"].exp()[..., None] * factors).sum(1)
    rejected = (q * (1 - (p / q).clamp(max=1))).sum(-1)
    figures = plain(given, WEIGHTS[0])[2]
    assert figures[1].item() == pytest.approx(float((rejected * given["keep"]).sum()))


@pytest.mark.parametrize("form", [{"rank": 3}, {"joint": "markov", "rank": 1}], ids=str)
def test_autocast_leaves_the_rows_alone(form: dict[str, Any]) -> None:
    """Under autocast the maps are rounded, and the losses no more than that."""
    head = make_head(**form)
    anchors = make_anchors(head, count=40)
    weights = LossWeights(nll=0.5, kl=0.5, tv=0.5)
    exact = head_losses(head, anchors, weights)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = head_losses(head, anchors, weights)
    for name in ("total", "nll", "kl", "tv"):
        assert torch.allclose(getattr(rounded, name), getattr(exact, name), rtol=0.01)
    expected = gradients(head, exact.total)
    for name, gradient in gradients(head, rounded.total).items():
        assert gradient.dtype == torch.float32
        assert (gradient - expected[name]).norm() <= 0.05 * expected[name].norm()

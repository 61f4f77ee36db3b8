"""What a trace says of a text agrees with the model and the head, asked again token by token."""

from __future__ import annotations

import math
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from polydraft.decoding.drafts import Draft, Kept
from polydraft.decoding.live import LiveBatch, new_row
from polydraft.decoding.plan import Plan
from polydraft.decoding.row import Row
from polydraft.decoding.trace import along, ending
from polydraft.hidden import HiddenTap
from tests.decoding.models import NEW_TOKENS, known, oracle_of_many
from tests.tiny import tiny_head, tiny_model

PROMPT = [3, 9, 27, 17]


def written(model: Any, head: Any, *, plan: Plan, **options: Any) -> list[Row]:
    """Three texts of one batch, each with a trace."""
    batch = LiveBatch(model, head, rows=3, plan=plan)
    rows = [
        new_row([*PROMPT, more], device=model.device, max_new_tokens=20, trace=4, **options)
        for more in range(3)
    ]
    batch.admit(rows)
    while batch.active:
        batch.step()
    return list(rows)


def read(model: Any, text: Tensor) -> tuple[Tensor, Tensor]:
    """Log rows (L, V) and states (L, d) of a text (L,), without a cache."""
    with torch.no_grad(), HiddenTap(model) as tap:
        logits = model(input_ids=text[None]).logits[0]
        return logits.log_softmax(-1), tap.hidden[0]


@pytest.mark.parametrize("options", [{}, {"temperature": 1.0, "seed": 4}], ids=["greedy", "sampled"])
def test_probabilities_are_those_of_the_model_and_the_head(options: dict[str, Any]) -> None:
    model = tiny_model(vocab_size=64, initializer_range=0.1)
    head = tiny_head(model, rank=3, draft_vocab_size=50)
    told = 0
    for row in written(model, head, plan=Plan(draft_length=8), **options):
        text, begin = row.ids[0], row.ids.shape[1] - len(row.generated)
        log_rows, states = read(model, text)
        assert [one.token for one in row.trace] == row.generated
        assert [one.origin for one in row.trace] == row.origins
        root = 0  # of each step: the place of its pending token, which the head drafts behind
        for at, one in enumerate(row.trace):
            place = begin + at - 1
            assert one.log_prob == pytest.approx(float(log_rows[place, one.token]), abs=1e-4)
            best = log_rows[place].topk(4)
            assert [token for token, _ in one.top] == best.indices.tolist()
            assert [value for _, value in one.top] == pytest.approx(best.values.tolist(), abs=1e-4)
            if one.step != (row.trace[at - 1].step if at else 0):
                root = place
            if one.draft_log_prob is None:
                continue
            with torch.no_grad():
                joint = head(states[root - 1][None], text[root][None])
            behind = head.draft_index(text[root + 1 : place + 1])[None]
            expected = joint.conditional(behind)[0, head.draft_index(torch.tensor(one.token))]
            assert one.draft_log_prob == pytest.approx(float(expected), abs=1e-4)
            assert math.fsum(one.weights) == pytest.approx(1, abs=1e-5)
            told += len(one.weights) == 3
    assert told > 10


def test_weights_are_the_posterior_by_bayes_rule() -> None:
    """P(a | x_1) by enumeration over components of what they say of x_1."""
    model = tiny_model(vocab_size=64)
    head = tiny_head(model, rank=3)
    with torch.no_grad():
        joint = cast(Any, head(torch.randn(1, 32), torch.tensor([5])))
    prior = joint.latent.log_weights(joint.latent.start(), 0)[0].exp()
    says = joint.log_factors[0, 0, :, 11].exp()
    said = along(joint, [11, 4])
    assert said[0].weights == pytest.approx(prior.tolist(), abs=1e-6)
    assert said[1].weights == pytest.approx((prior * says / (prior * says).sum()).tolist(), abs=1e-5)
    assert said[0].log_prob == pytest.approx(float((prior * says).sum().log()), abs=1e-5)


def test_nothing_is_said_beyond_the_horizon_or_behind_an_unknown_token() -> None:
    model = tiny_model(vocab_size=64)
    head = tiny_head(model, rank=3, horizon=3)
    with torch.no_grad():
        joint = head(torch.randn(1, 32), torch.tensor([5]))
    assert len(along(joint, [1, 2, 3, 4, 5])) == 3
    found = along(joint, [1, -1, 3])
    assert len(found) == 2 and found[1].log_prob is None and len(found[1].weights) == 3


def test_kinds_follow_what_was_kept() -> None:
    """A head that is right for 3, 1, 0, 2 drafts in turn: bonus behind three, else correction."""
    model, prompts, texts = known("llama")
    head = oracle_of_many(model, texts[:1], pattern=(3, 1, 0, 2))
    batch = LiveBatch(model, head, rows=1, plan=Plan(draft_length=3, drafting="chain"))
    row = new_row(prompts[0].tolist(), device=model.device, max_new_tokens=NEW_TOKENS, trace=0)
    batch.admit([row])
    while batch.active:
        batch.step()
    kinds = [one.kind for one in row.trace]
    turn = (
        ["drafted"] * 3
        + ["bonus"]
        + ["drafted", "correction"]
        + ["correction"]
        + ["drafted"] * 2
        + ["correction"]
    )
    assert kinds[: 1 + 2 * len(turn)] == ["first", *turn, *turn]
    assert [one.step for one in row.trace[:8]] == [0, 1, 1, 1, 1, 2, 2, 3]
    assert all(one.top == () and one.weights == () for one in row.trace)


def test_plain_texts_are_called_plain() -> None:
    model = tiny_model(vocab_size=64)
    row = written(model, tiny_head(model), plan=Plan(draft_length=4), drafted=False)[0]
    assert {one.kind for one in row.trace[1:]} == {"plain"}
    assert all(one.draft_log_prob is None for one in row.trace)


def test_nothing_is_said_of_a_plain_text_beside_drafted_ones() -> None:
    """The head is asked for the others: what it says of this text is left out, as it is alone."""
    model = tiny_model(vocab_size=64)
    batch = LiveBatch(model, tiny_head(model, rank=3), rows=2, plan=Plan(draft_length=4))
    plain, drafted = (
        new_row(PROMPT, device=model.device, max_new_tokens=20, trace=0, drafted=way) for way in (False, True)
    )
    batch.admit([plain, drafted])
    while batch.active:
        batch.step()
    assert plain.generated == drafted.generated
    assert {(one.kind, one.draft_log_prob, one.weights) for one in plain.trace[1:]} == {("plain", None, ())}
    assert any(one.draft_log_prob is not None for one in drafted.trace)


@pytest.mark.parametrize(
    ("path", "kind"), [((), "correction"), ((0,), "correction"), ((1,), "bonus"), ((0, 2), "bonus")]
)
def test_in_a_tree_what_follows_a_leaf_is_a_bonus(path: tuple[int, ...], kind: str) -> None:
    draft = Draft([4, 5, 6], parents=(-1, -1, 0))
    assert ending(draft, Kept(path, 9)) == kind
    assert ending(Draft([]), Kept((), 9)) == "plain"

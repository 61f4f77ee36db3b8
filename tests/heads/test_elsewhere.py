"""Heads on a device that is not there: the numbers of the CPU, and no tensor left behind."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from polydraft.heads import DraftHead
from polydraft.joint import MEMBERS, select_state
from tests.elsewhere import Elsewhere, back, pair, there
from tests.tiny import BLOCK

SIZE, HORIZON = 40, 3
IN_BLOCK: dict[str, Any] = {"features": "block", "block": BLOCK}
FORMS: tuple[dict[str, Any], ...] = (
    *(
        {"joint": name, "features": f}
        for name in MEMBERS
        for f in ("hidden", "fused")
        if not MEMBERS[name].steps
    ),
    *({"joint": name} | IN_BLOCK for name in ("cp", "cp-markov", "sequential", "recurrent")),
    {"joint": "sequential", "own_unembedding": True},
    {"joint": "recurrent", "own_unembedding": True, "layers": [1]} | IN_BLOCK,
    {"joint": "cp", "layers": [2, 1]},
    *({"joint": name, "components": 1} for name in ("cp", "hmm", "tree", "cp-markov")),
    {"joint": "hmm", "components": 1, "map_rank": 0},
    {"joint": "cp-markov", "components": 1, "own_unembedding": True},
    {"joint": "cp", "own_unembedding": True, "map_rank": 0},
)


def name_of(form: dict[str, Any]) -> str:
    return "-".join(str(value) for key, value in form.items() if key != "block")


forms = pytest.mark.parametrize("form", FORMS, ids=name_of)


def fields(form: dict[str, Any]) -> dict[str, Any]:
    rank = 1 if MEMBERS[form["joint"]].single else 2
    return {"rank": rank, "horizon": HORIZON, "draft_vocab_size": SIZE} | form


def texts(head: DraftHead) -> list[tuple[Tensor, Tensor]]:
    """States and the tokens after them, of two texts of five and two tokens."""
    generator = torch.Generator().manual_seed(3)
    return [
        (
            torch.randn(size, head.config.state_size, generator=generator),
            torch.randint(64, (size,), generator=generator),
        )
        for size in (5, 2)
    ]


@torch.no_grad()
def ask(head: DraftHead, told: list[tuple[Tensor, Tensor]], tokens: Tensor, order: Tensor) -> list[Tensor]:
    """What drafting asks of a head, over texts that grow."""
    reader = head.reader(rows=2)
    reader.tell([hidden[:-1] for hidden, _ in told], [after[:-1] for _, after in told])
    reader.catch_up()
    reader.tell([hidden[-1:] for hidden, _ in told], [after[-1:] for _, after in told])
    joint = reader.joint()
    state = joint.advance(joint.start(), 0, tokens[:, 0])
    torch.manual_seed(1)
    drawn = joint.sample()
    assert drawn.log_rows is not None
    some = joint.select(order)
    return [
        joint.log_prob(tokens),
        joint.conditional(tokens[:, :2]),
        joint.weights(state, 1),
        joint.argmax().tokens,
        drawn.tokens,
        drawn.log_rows,
        joint.token_log_prob(state, 1, tokens[:, 1]),
        some.row(select_state(state, order), 1),
    ]


@forms
def test_what_drafting_asks(form: dict[str, Any]) -> None:
    here, moved = pair(**fields(form))
    told = texts(here.head)
    tokens, order = torch.tensor([[1, 5, 2], [0, 3, 7]]), torch.tensor([1, 0, 1])
    expected = ask(here.head, told, tokens, order)
    with Elsewhere():
        found = ask(moved.head, [(there(h), there(a)) for h, a in told], there(tokens), there(order))
        for one, other in zip(back(found), expected, strict=True):
            torch.testing.assert_close(one, other)


@forms
def test_gradients(form: dict[str, Any]) -> None:
    here, moved = pair(**fields(form))
    (hidden, after), _ = texts(here.head)
    tokens = torch.tensor([[4, 1, 2]])
    here.head(hidden[None], after[None]).log_prob(tokens).sum().backward()
    with Elsewhere():
        moved.head(there(hidden[None]), there(after[None])).log_prob(there(tokens)).sum().backward()
        for (name, one), other in zip(moved.head.named_parameters(), here.head.parameters(), strict=True):
            assert (one.grad is None) == (other.grad is None), name
            if one.grad is not None:
                torch.testing.assert_close(one.grad.cpu(), other.grad, rtol=1e-4, atol=1e-5)


def test_what_a_gpu_refuses_is_refused() -> None:
    """The device itself: it would not pass what CUDA does not."""
    with Elsewhere() as device:
        moved, stayed = there(torch.arange(4)), torch.arange(4)
        for refused in (
            lambda: moved + stayed,
            lambda: torch.cat([moved, stayed]),
            lambda: stayed[moved],
            lambda: torch.where(moved > 1, moved, stayed),
            lambda: moved.index_put((stayed,), stayed),
            lambda: torch.rand(3, device=moved.device, generator=torch.Generator()),
        ):
            with pytest.raises(RuntimeError, match="expected"):
                refused()
        with pytest.raises(TypeError, match="numpy"):
            moved.numpy()
        device.clear()
        assert (moved + 1)[stayed[2:]].tolist() == [3, 4]  # an index comes along, the result goes back
        assert (device.reads.total(), device.writes.total()) == (1, 1)
        device.clear()
        assert int(moved[moved > 2].sum()) == 3
        assert device.reads == {"index.Tensor by a mask": 1, "_local_scalar_dense.default": 1}
    with pytest.raises(RuntimeError, match="outside `Elsewhere`"):
        moved + 1

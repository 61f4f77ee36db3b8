"""Rows of a joint and of its states, taken out, repeated and reordered: the same rows as before."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

from polydraft.joint import select_state
from tests.joint.members import HORIZON, STEPWISE, VOCAB_SIZE, every_member, random_case, random_joint
from tests.joint.test_latent import routed_case

ROWS = torch.tensor([2, 0, 0, 3, 2])
assert_close = partial(torch.testing.assert_close, rtol=1e-12, atol=1e-12)
"""In float64; no bits are promised, since a batch of another size may go through another kernel."""


def random_tokens(batch: int) -> Tensor:
    return torch.randint(VOCAB_SIZE, (batch, HORIZON), generator=torch.Generator().manual_seed(1))


@every_member
def test_selected_rows_are_the_rows(name: str) -> None:
    joint, tokens = random_joint(name, batch=4), random_tokens(4)
    selected = joint.select(ROWS)
    assert (selected.batch_size, selected.horizon, selected.vocab_size) == (5, HORIZON, VOCAB_SIZE)
    assert_close(selected.log_prob(tokens[ROWS]), joint.log_prob(tokens)[ROWS])
    for length in range(HORIZON):
        whole = joint.conditional(tokens[:, :length])
        assert_close(selected.conditional(tokens[ROWS, :length]), whole[ROWS])
    assert torch.equal(selected.argmax().tokens, joint.argmax().tokens[ROWS])


@every_member
def test_selecting_twice_is_selecting_once(name: str) -> None:
    joint, again = random_joint(name, batch=4), torch.tensor([4, 1, 1])
    tokens = random_tokens(3)
    twice, once = joint.select(ROWS).select(again), joint.select(ROWS[again])
    assert_close(twice.log_prob(tokens), once.log_prob(tokens))


@every_member
@pytest.mark.parametrize("length", range(HORIZON))
def test_a_state_branches(name: str, length: int) -> None:
    """Two ways on from each of some states: what each says is what its own tokens say."""
    joint, tokens = random_joint(name, batch=2), random_tokens(2)
    rows, ways = torch.tensor([0, 0, 1, 1]), torch.tensor([1, 3, 0, 1])
    branched, states = joint.select(rows), select_state(joint.start(), rows)
    told = tokens[rows, :length]
    if length:
        state = joint.start()
        for position in range(length - 1):
            state = joint.advance(state, position, tokens[:, position])
        told[:, -1] = ways
        states = branched.advance(select_state(state, rows), length - 1, ways)
    found = branched.row(states, length)
    for i, row in enumerate(rows.tolist()):
        alone = joint.select(torch.tensor([row])).conditional(told[i : i + 1])
        assert_close(found[i : i + 1], alone)


@every_member
def test_after_a_token_and_routed(name: str) -> None:
    joint, first = random_joint(name, batch=4), torch.tensor([1, -1, 4, 0])
    tokens = random_tokens(4)[:, 1:]
    later = joint.after(first)
    assert_close(later.select(ROWS).log_prob(tokens[ROWS]), later.log_prob(tokens)[ROWS])
    if name in STEPWISE:
        return
    routed = routed_case(random_case(name, batch=4), 1)[0]
    assert_close(routed.select(ROWS).log_prob(tokens[ROWS]), routed.log_prob(tokens)[ROWS])


def test_states_of_any_form() -> None:
    nested = (torch.arange(3), (torch.eye(3), ()))
    first, (second, nothing) = select_state(nested, torch.tensor([2, 2]))
    assert first.tolist() == [2, 2]
    assert second.tolist() == [[0, 0, 1], [0, 0, 1]]
    assert nothing == ()

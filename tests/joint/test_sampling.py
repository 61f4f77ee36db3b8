"""Chains under processing, and where their randomness comes from: the same for every member."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from polydraft.joint import JointDistribution
from tests.joint.enumeration import chi_square_p_value, conditional, count_sequences
from tests.joint.members import (
    FALSE_ALARM_RATE,
    HORIZON,
    NAMES,
    TOLERANCE,
    VOCAB_SIZE,
    every_member,
    random_case,
    random_joint,
)


@every_member
class TestWarp:
    def test_rows_are_the_processed_ones_and_the_posterior_is_untouched(self, name: str) -> None:
        joint = random_joint(name, batch=4)
        tokens, rows, _ = joint.sample(
            generator=torch.Generator().manual_seed(3), warp=lambda _, row: row / 0.5
        )
        assert rows is not None
        for position in range(HORIZON):
            expected = (joint.conditional(tokens[:, :position]) / 0.5).log_softmax(-1)
            assert torch.allclose(rows[:, position], expected, rtol=0, atol=TOLERANCE)

    def test_sampling_follows_the_processed_rows(self, name: str) -> None:
        draws, temperature = 100_000, 0.6
        case = random_case(name, horizon=2)
        many = case.repeated(draws).joint()
        chain = many.sample(generator=torch.Generator().manual_seed(4), warp=lambda _, row: row / temperature)
        whole = case.reference()
        expected = np.zeros((VOCAB_SIZE, VOCAB_SIZE))
        first = conditional(whole, ()) ** (1 / temperature)
        for token in range(VOCAB_SIZE):
            second = conditional(whole, (token,)) ** (1 / temperature)
            expected[token] = first[token] / first.sum() * second / second.sum()
        counts = count_sequences(chain.tokens.numpy(), VOCAB_SIZE)
        assert chi_square_p_value(counts.ravel(), expected.ravel() * draws) > FALSE_ALARM_RATE

    def test_is_given_the_tokens_so_far(self, name: str) -> None:
        seen: list[Tensor] = []

        def warp(tokens: Tensor, row: Tensor) -> Tensor:
            seen.append(tokens)
            return row

        tokens = random_joint(name, batch=3).argmax(warp=warp).tokens
        assert [part.shape for part in seen] == [(3, s) for s in range(HORIZON)]
        assert all(torch.equal(part, tokens[:, :s]) for s, part in enumerate(seen))

    def test_a_banned_token_is_never_drafted(self, name: str) -> None:
        def ban(_: Tensor, row: Tensor) -> Tensor:
            return row.index_fill(-1, torch.tensor([2]), float("-inf"))

        joint = random_case(name).repeated(2000).joint()
        chain = joint.sample(generator=torch.Generator().manual_seed(5), warp=ban)
        assert not (chain.tokens == 2).any()
        assert not (joint.argmax(warp=ban).tokens == 2).any()
        assert chain.log_rows is not None
        assert torch.allclose(chain.log_rows.exp().sum(-1), torch.ones(2000, HORIZON, dtype=torch.float64))

    @pytest.mark.parametrize("stop", [0, 2])
    def test_a_row_with_nothing_left_ends_the_chain(self, name: str, stop: int) -> None:
        def warp(tokens: Tensor, row: Tensor) -> Tensor:
            return torch.full_like(row, float("-inf")) if tokens.shape[1] == stop else row

        joint = random_joint(name, batch=3)
        chain = joint.sample(warp=warp)
        assert chain.tokens.shape == (3, stop)
        assert chain.log_rows is not None
        assert chain.log_rows.shape == (3, stop, VOCAB_SIZE)
        assert joint.argmax(warp=warp).tokens.shape == (3, stop)


@every_member
def test_a_generator_fixes_the_draws(name: str) -> None:
    joint = random_joint(name, batch=64)
    first, again, other = (joint.sample(generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert torch.equal(first.tokens, again.tokens)
    assert not torch.equal(first.tokens, other.tokens)


@every_member
def test_a_generator_leaves_the_global_one_alone(name: str) -> None:
    joint, before = random_joint(name), torch.random.get_rng_state()
    joint.sample(generator=torch.Generator().manual_seed(1))
    assert torch.equal(torch.random.get_rng_state(), before)


sizes = st.fixed_dictionaries(
    {
        "name": st.sampled_from(NAMES),
        "rank": st.integers(1, 5),
        "horizon": st.integers(1, 5),
        "vocab_size": st.integers(1, 9),
        "batch": st.integers(1, 4),
        "seed": st.integers(0, 2**31),
        "scale": st.sampled_from([0.0, 1.0, 10.0]),
    }
)


@given(sizes=sizes)
def test_shapes_and_invariants(sizes: dict[str, float]) -> None:
    joint = random_joint(**sizes)  # type: ignore[arg-type]
    batch, horizon, vocab_size = joint.batch_size, joint.horizon, joint.vocab_size
    assert isinstance(joint, JointDistribution)
    assert (batch, horizon, vocab_size) == (sizes["batch"], sizes["horizon"], sizes["vocab_size"])
    tokens, rows, _ = joint.sample(generator=torch.Generator().manual_seed(0))
    assert rows is not None
    assert tokens.shape == joint.argmax().tokens.shape == (batch, horizon)
    assert rows.shape == (batch, horizon, vocab_size)
    assert torch.allclose(rows.exp().sum(-1), torch.ones(batch, horizon, dtype=rows.dtype))
    assert joint.log_prob(tokens).shape == (batch,)
    for length in range(horizon):
        row = joint.conditional(tokens[:, :length])
        extended = [
            joint.log_prob(torch.cat([tokens[:, :length], torch.full((batch, 1), token)], dim=-1))
            for token in range(vocab_size)
        ]
        summed = torch.stack(extended).logsumexp(0)
        known = joint.log_prob(tokens[:, :length]) if length else torch.zeros_like(summed)
        assert torch.allclose(summed, known)  # the marginal is the sum of the joint
        assert torch.allclose(torch.stack(extended, dim=-1), known[:, None] + row)  # the chain rule

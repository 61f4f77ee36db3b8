"""What every member of the family promises: all its answers, against enumeration of all tokens."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from polydraft.joint import JointDistribution
from tests.joint.enumeration import (
    chi_square_p_value,
    conditional,
    count_sequences,
    enumerate_tokens,
    marginal,
)
from tests.joint.members import (
    FALSE_ALARM_RATE,
    HORIZON,
    STEPWISE,
    TOLERANCE,
    VOCAB_SIZE,
    as_table,
    every_member,
    random_case,
    random_joint,
    table,
)

"""Members whose rows do not see the token before."""


@every_member
class TestAgainstEnumeration:
    @pytest.mark.parametrize("rank", [1, 3])
    def test_joint_equals_the_formula_and_sums_to_one(self, name: str, rank: int) -> None:
        case = random_case(name, rank=rank, horizon=5, batch=2)
        for row in range(2):
            found = table(case, 5, row=row)
            assert abs(found.sum() - 1) < TOLERANCE
            assert np.abs(found - case.reference(row)).max() < TOLERANCE

    @pytest.mark.parametrize("length", [1, 2, 4])
    def test_shorter_prefixes_are_marginals(self, name: str, length: int) -> None:
        case = random_case(name, horizon=5)
        assert np.abs(table(case, length) - marginal(case.reference(), length)).max() < TOLERANCE

    @pytest.mark.parametrize("length", [0, 1, 2, 3, 4])
    def test_conditional_row_of_every_prefix(self, name: str, length: int) -> None:
        case = random_case(name, horizon=5)
        prefixes = enumerate_tokens(VOCAB_SIZE, length)
        tokens = torch.tensor(prefixes, dtype=torch.long).reshape(len(prefixes), length)
        rows = case.repeated(len(prefixes)).joint().conditional(tokens).exp().numpy()
        whole = case.reference()
        expected = np.stack([conditional(whole, prefix) for prefix in prefixes])
        assert np.abs(rows - expected).max() < TOLERANCE

    def test_after_a_known_token_is_the_conditional_joint(self, name: str) -> None:
        case, whole = random_case(name), random_case(name).reference()
        tokens = torch.tensor(enumerate_tokens(VOCAB_SIZE, HORIZON - 1))
        for first in range(VOCAB_SIZE):
            joint = case.repeated(len(tokens)).joint().after(torch.full((len(tokens),), first))
            assert isinstance(joint, JointDistribution)
            assert (joint.horizon, joint.vocab_size) == (HORIZON - 1, VOCAB_SIZE)
            assert (joint.batch_size, joint.device) == (len(tokens), torch.device("cpu"))
            expected = whole[first] / whole[first].sum()
            assert np.abs(as_table(joint, tokens) - expected).max() < TOLERANCE

    @pytest.mark.parametrize("gaps", [(0,), (1,), (2,), (0, 1), (0, 2), (0, 1, 2)], ids=str)
    def test_an_unknown_token_tells_nothing(self, name: str, gaps: tuple[int, ...]) -> None:
        """It is summed out, and leaves no bias on the row after it."""
        if name in STEPWISE:
            pytest.skip("a token that a module does not see is not summed out: see test_stepwise")
        case = random_case(name)
        if case.biases is not None:
            case.biases[:, [s + 1 for s in gaps]] = 0
        whole = case.reference().sum(axis=gaps, keepdims=True)
        if case.biases is not None:
            case.biases[:, [s + 1 for s in gaps]] = 7.0 * torch.randn(case.biases[:, :1].shape).double()
        for prefix in enumerate_tokens(VOCAB_SIZE, 3):
            if any(prefix[s] for s in gaps):
                continue
            tokens = torch.tensor([[-1 if s in gaps else token for s, token in enumerate(prefix)]])
            row = case.joint().conditional(tokens)[0].exp().numpy()
            assert np.abs(row - conditional(whole, prefix)).max() < TOLERANCE

    def test_after_takes_unknown_tokens_row_by_row(self, name: str) -> None:
        joint = random_case(name).repeated(2).joint()
        given = joint.after(torch.tensor([-1, 3]))
        for length in range(HORIZON - 1):
            prefix = torch.randint(VOCAB_SIZE, (2, length))
            expected = joint.conditional(torch.cat([torch.tensor([[-1], [3]]), prefix], dim=-1))
            assert torch.allclose(given.conditional(prefix), expected, rtol=0, atol=TOLERANCE)

    def test_greedy_chain_takes_the_best_token_of_each_row(self, name: str) -> None:
        for seed in range(20):
            case = random_case(name, seed=seed)
            whole = case.reference()
            chain: tuple[int, ...] = ()
            while len(chain) < HORIZON:
                chain += (int(conditional(whole, chain).argmax()),)
            found = case.joint().argmax()
            assert found.log_rows is None
            assert found.tokens.tolist() == [list(chain)]

    def test_sampled_sequences_follow_the_joint(self, name: str) -> None:
        draws = 100_000
        case = random_case(name)
        tokens = case.repeated(draws).joint().sample(generator=torch.Generator().manual_seed(1)).tokens
        counts = count_sequences(tokens.numpy(), VOCAB_SIZE)
        assert chi_square_p_value(counts.ravel(), case.reference().ravel() * draws) > FALSE_ALARM_RATE

    def test_returned_rows_are_the_rows_of_the_prefix(self, name: str) -> None:
        joint = random_joint(name, batch=6)
        tokens, rows, _ = joint.sample(generator=torch.Generator().manual_seed(2))
        assert rows is not None
        for position in range(HORIZON):
            expected = joint.conditional(tokens[:, :position])
            assert torch.allclose(rows[:, position], expected, rtol=0, atol=TOLERANCE)
        drawn = rows.gather(-1, tokens[..., None]).sum((1, 2))
        assert torch.allclose(drawn, joint.log_prob(tokens), rtol=0, atol=TOLERANCE)


@every_member
@pytest.mark.parametrize("horizon", range(1, 17))
def test_any_horizon_is_normalised(name: str, horizon: int) -> None:
    joint = random_joint(name, horizon=horizon, vocab_size=7, batch=3, seed=horizon)
    tokens = torch.randint(7, (3, horizon))
    total = torch.zeros(3, dtype=torch.float64)
    for length in range(horizon):
        row = joint.conditional(tokens[:, :length])
        assert (row.exp().sum(-1) - 1).abs().max() < TOLERANCE
        total = total + row.gather(-1, tokens[:, length : length + 1]).squeeze(-1)
    assert (total - joint.log_prob(tokens)).abs().max() < TOLERANCE
    assert joint.argmax().tokens.shape == joint.sample().tokens.shape == (3, horizon)


@every_member
def test_a_row_of_a_batch_equals_the_row_alone(name: str) -> None:
    case = random_case(name, batch=4)
    joint = case.joint()
    tokens = torch.randint(VOCAB_SIZE, (4, HORIZON))
    rows = joint.conditional(tokens[:, :-1])
    greedy = joint.argmax().tokens
    for i, one in enumerate(case.split()):
        alone, own = one.joint(), tokens[i : i + 1]
        assert torch.allclose(alone.log_prob(own)[0], joint.log_prob(tokens)[i], rtol=0, atol=TOLERANCE)
        assert torch.allclose(alone.conditional(own[:, :-1])[0], rows[i], rtol=0, atol=TOLERANCE)
        assert torch.equal(alone.argmax().tokens[0], greedy[i])


@every_member
def test_bad_lengths(name: str) -> None:
    joint = random_joint(name)
    for length in (0, HORIZON + 1):
        with pytest.raises(ValueError, match="expected 1 to 4 tokens"):
            joint.log_prob(torch.zeros(1, length, dtype=torch.long))
    with pytest.raises(ValueError, match="the horizon 4 leaves none"):
        joint.conditional(torch.zeros(1, HORIZON, dtype=torch.long))


def test_chi_square_notices_another_joint() -> None:
    draws = 100_000
    case = random_case("cp")
    tokens = case.repeated(draws).joint().sample(generator=torch.Generator().manual_seed(1)).tokens
    counts = count_sequences(tokens.numpy(), VOCAB_SIZE)
    whole = case.reference()
    axes = [marginal(np.moveaxis(whole, s, 0), 1) for s in range(HORIZON)]
    independent = np.einsum("a,b,c,d->abcd", *axes)
    assert chi_square_p_value(counts.ravel(), independent.ravel() * draws) < FALSE_ALARM_RATE

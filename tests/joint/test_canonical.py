"""The CP joint against enumeration of all V^n sequences, and what it must keep to in general."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chi2
from torch import Tensor

from polydraft.joint import Canonical, JointDistribution
from tests.joint.enumeration import (
    Array,
    conditional,
    enumerate_tokens,
    marginal,
    random_canonical,
    reference,
)

VOCAB_SIZE, HORIZON = 5, 4
RANKS = (1, 2, 3, 4)
TOLERANCE = 1e-10
FALSE_ALARM_RATE = 1e-4
"""Chance that a sampling test fails on a correct sampler; the seeds are fixed, so it never changes."""


def expanded(joint: Canonical, batch: int) -> Canonical:
    """The first row of `joint`, `batch` times."""
    return Canonical(joint.log_weights[:1].repeat(batch, 1), joint.log_factors[:1].repeat(batch, 1, 1, 1))


def table(joint: Canonical, length: int, *, row: int = 0) -> Array:
    """exp(log_prob) of every sequence of `length` tokens, as an array with that many axes."""
    tokens = torch.tensor(enumerate_tokens(joint.vocab_size, length))
    one = Canonical(joint.log_weights[row : row + 1], joint.log_factors[row : row + 1])
    probabilities = expanded(one, len(tokens)).log_prob(tokens).exp().numpy()
    return np.asarray(probabilities.reshape((joint.vocab_size,) * length))


def chi_square_p_value(counts: Array, expected: Array) -> float:
    """P(a correct sampler is at least this far off); cells that expect fewer than 5 are pooled."""
    rare = expected < 5
    counts = np.append(counts[~rare], counts[rare].sum())
    expected = np.append(expected[~rare], expected[rare].sum())
    keep = expected > 0
    statistic = ((counts[keep] - expected[keep]) ** 2 / expected[keep]).sum()
    return float(chi2.sf(statistic, keep.sum() - 1))


@pytest.mark.parametrize("rank", RANKS)
class TestAgainstEnumeration:
    def test_joint_equals_the_mixture_formula_and_sums_to_one(self, rank: int) -> None:
        joint = random_canonical(rank=rank, batch=2)
        for row in range(2):
            found = table(joint, HORIZON, row=row)
            assert abs(found.sum() - 1) < TOLERANCE
            assert np.abs(found - reference(joint, row=row)).max() < TOLERANCE

    @pytest.mark.parametrize("length", [1, 2, 3])
    def test_shorter_prefixes_are_marginals(self, rank: int, length: int) -> None:
        joint = random_canonical(rank=rank)
        assert np.abs(table(joint, length) - marginal(reference(joint), length)).max() < TOLERANCE

    @pytest.mark.parametrize("length", [0, 1, 2, 3])
    def test_conditional_row_of_every_prefix(self, rank: int, length: int) -> None:
        joint = random_canonical(rank=rank)
        prefixes = enumerate_tokens(VOCAB_SIZE, length)
        tokens = torch.tensor(prefixes, dtype=torch.long).reshape(len(prefixes), length)
        rows = expanded(joint, len(prefixes)).conditional(tokens).exp().numpy()
        whole = reference(joint)
        expected = np.stack([conditional(whole, prefix) for prefix in prefixes])
        assert np.abs(rows - expected).max() < TOLERANCE

    def test_after_a_known_token_is_the_conditional_joint(self, rank: int) -> None:
        joint = expanded(random_canonical(rank=rank), VOCAB_SIZE).after(torch.arange(VOCAB_SIZE))
        whole = reference(random_canonical(rank=rank))
        assert (joint.horizon, joint.batch_size) == (HORIZON - 1, VOCAB_SIZE)
        for token in range(VOCAB_SIZE):
            expected = whole[token] / whole[token].sum()
            assert np.abs(table(joint, HORIZON - 1, row=token) - expected).max() < TOLERANCE

    def test_after_an_unknown_token_sums_the_position_out(self, rank: int) -> None:
        joint = expanded(random_canonical(rank=rank), 2).after(torch.tensor([-1, 3]))
        whole = reference(random_canonical(rank=rank))
        assert np.abs(table(joint, HORIZON - 1, row=0) - whole.sum(axis=0)).max() < TOLERANCE
        assert np.abs(table(joint, HORIZON - 1, row=1) - whole[3] / whole[3].sum()).max() < TOLERANCE

    def test_greedy_chain_takes_the_best_token_of_each_row(self, rank: int) -> None:
        for seed in range(20):
            joint = random_canonical(rank=rank, seed=seed)
            whole = reference(joint)
            chain: tuple[int, ...] = ()
            while len(chain) < HORIZON:
                chain += (int(conditional(whole, chain).argmax()),)
            found = joint.argmax()
            assert found.log_rows is None
            assert found.tokens.tolist() == [list(chain)]

    def test_sampled_sequences_follow_the_joint(self, rank: int) -> None:
        draws = 100_000
        joint = random_canonical(rank=rank)
        tokens = expanded(joint, draws).sample(generator=torch.Generator().manual_seed(1)).tokens
        flat = (tokens * torch.tensor([VOCAB_SIZE**k for k in reversed(range(HORIZON))])).sum(-1)
        counts = np.bincount(flat.numpy(), minlength=VOCAB_SIZE**HORIZON).astype(np.float64)
        assert chi_square_p_value(counts, reference(joint).ravel() * draws) > FALSE_ALARM_RATE

    def test_returned_rows_are_the_rows_of_the_prefix(self, rank: int) -> None:
        joint = random_canonical(rank=rank, batch=6)
        tokens, rows = joint.sample(generator=torch.Generator().manual_seed(2))
        assert rows is not None
        for position in range(HORIZON):
            expected = joint.conditional(tokens[:, :position])
            assert torch.allclose(rows[:, position], expected, rtol=0, atol=TOLERANCE)
        drawn = rows.gather(-1, tokens[..., None]).sum((1, 2))
        assert torch.allclose(drawn, joint.log_prob(tokens), rtol=0, atol=TOLERANCE)


def test_chi_square_notices_another_joint() -> None:
    draws = 100_000
    joint = random_canonical(rank=3)
    tokens = expanded(joint, draws).sample(generator=torch.Generator().manual_seed(1)).tokens
    flat = (tokens * torch.tensor([125, 25, 5, 1])).sum(-1)
    counts = np.bincount(flat.numpy(), minlength=625).astype(np.float64)
    whole = reference(joint)
    axes = [marginal(np.moveaxis(whole, s, 0), 1) for s in range(HORIZON)]
    independent = np.einsum("a,b,c,d->abcd", *axes)
    assert chi_square_p_value(counts, independent.ravel() * draws) < FALSE_ALARM_RATE


def test_rank_one_is_the_independent_product() -> None:
    joint = random_canonical(rank=1)
    rows = joint.log_factors[0, :, 0].exp().numpy()
    assert np.abs(table(joint, HORIZON) - np.einsum("a,b,c,d->abcd", *rows)).max() < TOLERANCE
    for prefix in ([0, 1], [4, 2]):
        assert np.abs(joint.conditional(torch.tensor([prefix])).exp().numpy()[0] - rows[2]).max() < TOLERANCE


def test_rank_two_is_not_a_product() -> None:
    joint = expanded(random_canonical(rank=2, seed=1), VOCAB_SIZE)
    rows = joint.conditional(torch.arange(VOCAB_SIZE)[:, None]).exp()
    assert (rows.amax(0) - rows.amin(0)).max() > 0.05


class TestWarp:
    def test_rows_are_the_processed_ones_and_the_posterior_is_untouched(self) -> None:
        joint = random_canonical(rank=3, batch=4)
        tokens, rows = joint.sample(generator=torch.Generator().manual_seed(3), warp=lambda _, row: row / 0.5)
        assert rows is not None
        for position in range(HORIZON):
            expected = (joint.conditional(tokens[:, :position]) / 0.5).log_softmax(-1)
            assert torch.allclose(rows[:, position], expected, rtol=0, atol=TOLERANCE)

    def test_sampling_follows_the_processed_rows(self) -> None:
        draws, temperature = 100_000, 0.6
        joint = random_canonical(rank=2, horizon=2)
        many = expanded(joint, draws)
        chain = many.sample(generator=torch.Generator().manual_seed(4), warp=lambda _, row: row / temperature)
        whole = reference(joint)
        expected = np.zeros((VOCAB_SIZE, VOCAB_SIZE))
        first = conditional(whole, ()) ** (1 / temperature)
        for token in range(VOCAB_SIZE):
            second = conditional(whole, (token,)) ** (1 / temperature)
            expected[token] = first[token] / first.sum() * second / second.sum()
        counts = np.bincount((chain.tokens @ torch.tensor([VOCAB_SIZE, 1])).numpy(), minlength=VOCAB_SIZE**2)
        assert chi_square_p_value(counts.astype(np.float64), expected.ravel() * draws) > FALSE_ALARM_RATE

    def test_is_given_the_tokens_so_far(self) -> None:
        seen: list[Tensor] = []

        def warp(tokens: Tensor, row: Tensor) -> Tensor:
            seen.append(tokens)
            return row

        joint = random_canonical(rank=2, batch=3)
        tokens = joint.argmax(warp=warp).tokens
        assert [part.shape for part in seen] == [(3, s) for s in range(HORIZON)]
        assert all(torch.equal(part, tokens[:, :s]) for s, part in enumerate(seen))

    def test_a_banned_token_is_never_drafted(self) -> None:
        def ban(_: Tensor, row: Tensor) -> Tensor:
            return row.index_fill(-1, torch.tensor([2]), float("-inf"))

        joint = expanded(random_canonical(rank=3), 2000)
        chain = joint.sample(generator=torch.Generator().manual_seed(5), warp=ban)
        assert not (chain.tokens == 2).any()
        assert not (joint.argmax(warp=ban).tokens == 2).any()
        assert chain.log_rows is not None
        assert torch.allclose(chain.log_rows.exp().sum(-1), torch.ones(2000, HORIZON, dtype=torch.float64))

    @pytest.mark.parametrize("stop", [0, 2])
    def test_a_row_with_nothing_left_ends_the_chain(self, stop: int) -> None:
        def warp(tokens: Tensor, row: Tensor) -> Tensor:
            return torch.full_like(row, float("-inf")) if tokens.shape[1] == stop else row

        joint = random_canonical(rank=2, batch=3)
        chain = joint.sample(warp=warp)
        assert chain.tokens.shape == (3, stop)
        assert chain.log_rows is not None
        assert chain.log_rows.shape == (3, stop, VOCAB_SIZE)
        assert joint.argmax(warp=warp).tokens.shape == (3, stop)


def test_a_generator_fixes_the_draws() -> None:
    joint = random_canonical(rank=3, batch=64)
    first, again, other = (joint.sample(generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert torch.equal(first.tokens, again.tokens)
    assert not torch.equal(first.tokens, other.tokens)


def test_a_generator_leaves_the_global_one_alone() -> None:
    before = torch.random.get_rng_state()
    random_canonical(rank=2).sample(generator=torch.Generator().manual_seed(1))
    assert torch.equal(torch.random.get_rng_state(), before)


sizes = st.fixed_dictionaries(
    {
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
    joint = random_canonical(**sizes)  # type: ignore[arg-type]
    batch, horizon, vocab_size = joint.batch_size, joint.horizon, joint.vocab_size
    assert isinstance(joint, JointDistribution)
    assert (batch, horizon, vocab_size) == (sizes["batch"], sizes["horizon"], sizes["vocab_size"])
    tokens, rows = joint.sample(generator=torch.Generator().manual_seed(0))
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


def test_rows_of_a_batch_do_not_mix() -> None:
    joint = random_canonical(rank=3, batch=3)
    tokens = torch.randint(VOCAB_SIZE, (3, HORIZON))
    for row in range(3):
        one = Canonical(joint.log_weights[row : row + 1], joint.log_factors[row : row + 1])
        assert torch.allclose(one.log_prob(tokens[row : row + 1]), joint.log_prob(tokens)[row])


class TestGradients:
    @pytest.mark.parametrize("rank", [1, 3])
    def test_of_log_prob_and_conditional_rows(self, rank: int) -> None:
        gate = torch.randn(2, rank, dtype=torch.float64, requires_grad=True)
        logits = torch.randn(2, 3, rank, VOCAB_SIZE, dtype=torch.float64, requires_grad=True)
        tokens = torch.tensor([[0, 3, 1], [4, 4, 2]])

        def log_prob(gate: Tensor, logits: Tensor) -> Tensor:
            return Canonical.from_logits(gate, logits).log_prob(tokens)

        def row(gate: Tensor, logits: Tensor) -> Tensor:
            return Canonical.from_logits(gate, logits).conditional(tokens[:, :2])

        assert torch.autograd.gradcheck(log_prob, (gate, logits))
        assert torch.autograd.gradcheck(row, (gate, logits))

    def test_are_finite_where_a_component_is_almost_impossible(self) -> None:
        gate = torch.tensor([[80.0, -80.0]], requires_grad=True)
        logits = (torch.randn(1, 3, 2, 7).sign() * 80).requires_grad_()
        Canonical.from_logits(gate, logits).log_prob(torch.tensor([[0, 1, 2]])).sum().backward()
        assert gate.grad is not None
        assert logits.grad is not None
        assert gate.grad.isfinite().all()
        assert logits.grad.isfinite().all()


def test_extreme_bfloat16_logits_stay_exact_in_float32() -> None:
    gate = torch.tensor([[80.0, -80.0, 0.0]], dtype=torch.bfloat16)
    logits = (torch.randn(1, 4, 3, 50).sign() * 80).bfloat16()
    joint = Canonical.from_logits(gate, logits)
    exact = Canonical.from_logits(gate.double(), logits.double())
    assert joint.log_weights.dtype == joint.log_factors.dtype == torch.float32
    for token in range(50):
        tokens = torch.tensor([[token, 49 - token, token, 7]])
        assert torch.allclose(joint.log_prob(tokens).double(), exact.log_prob(tokens), rtol=1e-5, atol=1e-4)
        row = joint.conditional(tokens[:, :3])
        assert row.isfinite().all()
        assert abs(row.exp().sum().item() - 1) < 1e-5
        assert torch.allclose(row.double(), exact.conditional(tokens[:, :3]), rtol=1e-5, atol=1e-4)


def test_float64_is_kept() -> None:
    assert random_canonical(rank=2).log_prob(torch.tensor([[0, 1]])).dtype == torch.float64


class TestBadShapes:
    @pytest.mark.parametrize(
        ("weights", "factors"),
        [((2, 3), (2, 4, 2, 5)), ((1, 3), (2, 4, 3, 5)), ((2, 3), (2, 4, 3)), ((3,), (2, 4, 3, 5))],
    )
    def test_of_weights_and_factors(self, weights: tuple[int, ...], factors: tuple[int, ...]) -> None:
        with pytest.raises(ValueError, match="log_weights must be"):
            Canonical(torch.zeros(weights), torch.zeros(factors))

    @pytest.mark.parametrize("length", [0, HORIZON + 1])
    def test_of_log_prob(self, length: int) -> None:
        with pytest.raises(ValueError, match="expected 1 to 4 tokens"):
            random_canonical(rank=2).log_prob(torch.zeros(1, length, dtype=torch.long))

    def test_of_a_prefix_that_leaves_nothing(self) -> None:
        with pytest.raises(ValueError, match="the horizon 4 leaves none"):
            random_canonical(rank=2).conditional(torch.zeros(1, HORIZON, dtype=torch.long))

"""What is special to CP: its closed formula, and the posterior that carries the tokens so far."""

from __future__ import annotations

import numpy as np
import torch

from tests.joint.enumeration import Array
from tests.joint.members import HORIZON, TOLERANCE, VOCAB_SIZE, random_case, table


def weights_and_factors(rank: int) -> tuple[Array, Array]:
    """w (r,) and P (n, r, V) of `random_case("cp", rank=rank)`."""
    joint = random_case("cp", rank=rank).joint()
    return joint.latent.prior[0].exp().numpy(), joint.log_factors[0].exp().numpy()


def test_is_a_sum_of_products() -> None:
    weights, factors = weights_and_factors(3)
    expected = np.einsum("r,ra,rb,rc,rd->abcd", weights, *factors)
    assert np.abs(table(random_case("cp"), HORIZON) - expected).max() < TOLERANCE


def test_rank_one_is_the_independent_product() -> None:
    case = random_case("cp", rank=1)
    rows = weights_and_factors(1)[1][:, 0]
    assert np.abs(table(case, HORIZON) - np.einsum("a,b,c,d->abcd", *rows)).max() < TOLERANCE
    for prefix in ([0, 1], [4, 2]):
        row = case.joint().conditional(torch.tensor([prefix])).exp().numpy()[0]
        assert np.abs(row - rows[2]).max() < TOLERANCE


def test_rank_two_is_not_a_product() -> None:
    joint = random_case("cp", rank=2, seed=1).repeated(VOCAB_SIZE).joint()
    rows = joint.conditional(torch.arange(VOCAB_SIZE)[:, None]).exp()
    assert (rows.amax(0) - rows.amin(0)).max() > 0.05


def test_the_state_is_the_posterior_over_components() -> None:
    weights, factors = weights_and_factors(3)
    joint = random_case("cp").joint()
    state, tokens = joint.start(), (4, 0, 2)
    for s, token in enumerate(tokens):
        weights = weights * factors[s, :, token]
        state = joint.advance(state, s, torch.tensor([token]))
        posterior = weights / weights.sum()
        assert np.abs(state.latent[0].exp().numpy() - posterior).max() < TOLERANCE
        assert np.abs(joint.row(state, s + 1)[0].exp().numpy() - posterior @ factors[s + 1]).max() < TOLERANCE

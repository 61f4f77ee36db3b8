"""From the options of a run to the weights of its loss."""

from __future__ import annotations

from typing import Any

import pytest

from polydraft.errors import InputError
from polydraft.training.options import TrainOptions


def terms(**options: Any) -> tuple[float, float, float]:
    """nll, kl and tv."""
    weights = TrainOptions(**options).weights
    return weights.nll, weights.kl, weights.tv


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, (0.1, 0.9, 0.0)),
        ({"loss": "joint"}, (1.0, 0.0, 0.0)),
        ({"loss": "tv"}, (0.1, 0.0, 0.9)),
        ({"loss": "tv", "kl": 0.5}, (0.1, 0.5, 0.9)),
        ({"loss": "distill", "nll": 0.0}, (0.0, 0.9, 0.0)),
        ({"nll": 0.0, "kl": 0.0, "tv": 1.0}, (0.0, 0.0, 1.0)),
    ],
    ids=str,
)
def test_a_preset_and_what_is_given_instead(
    options: dict[str, Any], expected: tuple[float, float, float]
) -> None:
    assert terms(**options) == expected


def test_the_rest_comes_from_its_own_options() -> None:
    weights = TrainOptions(loss="tv", balance=0.2, z_loss=0.3, discount=0.4, gate_noise=0.5).weights
    assert (weights.balance, weights.z_loss, weights.discount, weights.gate_noise) == (0.2, 0.3, 0.4, 0.5)
    assert TrainOptions(loss="tv").weights.needs_teacher
    assert not TrainOptions(loss="joint").weights.needs_teacher


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tv": -0.1}, "tv must be a number of 0 or more, got -0.1"),
        ({"kl": float("nan")}, "kl must be a number of 0 or more, got nan"),
        ({"nll": float("inf")}, "nll must be a number of 0 or more, got inf"),
        ({"nll": 0.0, "kl": 0.0}, "there is nothing to learn: give one of nll, kl and tv a weight above 0"),
        ({"loss": "other"}, "loss must be one of joint, distill, tv, got 'other'"),
    ],
    ids=str,
)
def test_one_line_about_what_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as error:
        TrainOptions(**options)
    assert str(error.value) == message

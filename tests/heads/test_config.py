"""What a head configuration refuses, and what it writes down."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from polydraft.errors import InputError
from polydraft.heads import DraftConfig
from polydraft.heads.config import FORMAT_VERSION


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rank": 0}, "rank must be a whole number from 1, got 0"),
        ({"horizon": 0}, "horizon must be a whole number from 1, got 0"),
        ({"hidden_size": -1}, "hidden_size must be"),
        ({"draft_vocab_size": 0}, "draft_vocab_size must be"),
        ({"feature_size": 0}, "feature_size must be"),
        ({"rank": "4"}, "rank must be a whole number from 1, got '4'"),
        ({"horizon": 2.5}, "horizon must be"),
        ({"vocab_size": None}, "vocab_size must be"),
        ({"map_rank": -1}, "map_rank must be 0"),
        ({"vocab_size": 100, "draft_vocab_size": 101}, "101 exceeds the vocabulary of 100"),
        ({"features": "blocks"}, "features must be one of hidden, fused, block, got 'blocks'"),
        ({"joint": "tt"}, "joint must be one of .*cp, .*tree, .*got 'tt'"),
        ({"joint": "independent", "rank": 2}, "joint 'independent' has one component: rank must be 1, got 2"),
        ({"joint": "markov", "rank": 4}, "joint 'markov' has one component: rank must be 1, got 4"),
        ({"markov_rank": 0}, "markov_rank must be a whole number from 1, got 0"),
        ({"rank": 2, "components": 3}, "components must be 0 .all. or at most the rank 2, got 3"),
        ({"components": -1}, "components must be 0 .all. or at most the rank 4, got -1"),
        ({"components": 2, "features": "hidden"}, "components must be 0 with features 'hidden'"),
        ({"format_version": FORMAT_VERSION + 1}, "newer than this polydraft reads"),
    ],
)
def test_refused_values(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        DraftConfig(**values)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(("features", "positions"), [("fused", 3), ("hidden", 4)])
def test_the_posterior_needs_one_more_position(features: str, positions: int) -> None:
    assert DraftConfig(horizon=3, features=features).positions == positions


def test_round_trip(tmp_path: Path) -> None:
    config = DraftConfig(
        hidden_size=24,
        vocab_size=90,
        draft_vocab_size=30,
        horizon=5,
        rank=2,
        features="hidden",
        map_rank=0,
        own_unembedding=True,
        base_model={"id": "some/model", "weights": "00"},
        provenance={"command": "polydraft train", "versions": {"torch": "1"}},
    )
    config.save_pretrained(tmp_path)
    again = DraftConfig.from_pretrained(tmp_path)
    assert again.to_dict() == config.to_dict()
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["model_type"] == "polydraft"
    assert written["format_version"] == FORMAT_VERSION


def test_a_folder_of_a_newer_format_is_refused(tmp_path: Path) -> None:
    DraftConfig().save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"format_version": FORMAT_VERSION + 1}))
    with pytest.raises(InputError, match="upgrade polydraft"):
        DraftConfig.from_pretrained(tmp_path)

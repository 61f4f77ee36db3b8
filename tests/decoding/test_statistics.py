"""The figures of a generation, against numbers worked out by hand."""

from __future__ import annotations

import json

import pytest

from polydraft.decoding import DecodingStatistics


def counted(*steps: tuple[int, int]) -> DecodingStatistics:
    """Statistics over steps of (drafted, accepted)."""
    statistics = DecodingStatistics()
    for drafted, accepted in steps:
        statistics.count(drafted=drafted, accepted=accepted)
    return statistics


def test_by_hand() -> None:
    found = counted((3, 3), (3, 0), (3, 1), (1, 1))
    assert (found.steps, found.drafted_tokens, found.accepted_tokens) == (4, 10, 5)
    assert found.acceptance_histogram == [1, 2, 0, 1]
    assert found.mean_acceptance_length == pytest.approx(1 + 5 / 4)
    assert found.draft_acceptance_rate == pytest.approx(0.5)
    assert found.acceptance_per_position == pytest.approx([3 / 4, 1 / 4, 1 / 4])


def test_histogram_reaches_to_what_was_drafted() -> None:
    assert counted((4, 0)).acceptance_histogram == [1, 0, 0, 0, 0]
    assert counted((0, 0)).acceptance_histogram == [1]
    assert counted((2, 1), (4, 0)).acceptance_histogram == [1, 1, 0, 0, 0]


def test_before_the_first_step() -> None:
    empty = DecodingStatistics()
    assert empty.mean_acceptance_length == 1.0
    assert empty.draft_acceptance_rate == empty.drafting_share == 0.0
    assert empty.acceptance_per_position == []


def test_nothing_drafted_in_a_step() -> None:
    found = counted((0, 0), (0, 0))
    assert (found.mean_acceptance_length, found.draft_acceptance_rate) == (1.0, 0.0)
    assert found.acceptance_per_position == []


def test_drafting_share() -> None:
    assert DecodingStatistics(drafting_seconds=0.5, seconds=4.0).drafting_share == 0.125


def test_merged_is_what_one_long_generation_counts() -> None:
    first, second = counted((2, 2), (2, 0)), counted((4, 3), (4, 4), (1, 0))
    first.seconds, second.seconds = 2.0, 3.0
    first.drafting_seconds, second.drafting_seconds = 0.5, 0.5
    merged = DecodingStatistics.merged([first, second])
    whole = counted((2, 2), (2, 0), (4, 3), (4, 4), (1, 0))
    whole.seconds, whole.drafting_seconds = 5.0, 1.0
    assert merged == whole
    assert merged == DecodingStatistics.merged(iter([second, first]))
    assert first == DecodingStatistics.merged([first])
    assert first.acceptance_histogram == [1, 0, 1]  # left as it was


def test_merged_of_none() -> None:
    assert DecodingStatistics.merged([]) == DecodingStatistics()


def test_to_dict_is_json_with_the_names_of_vllm() -> None:
    found = json.loads(json.dumps(counted((3, 3), (3, 0)).to_dict()))
    assert found == {
        "steps": 2,
        "drafted_tokens": 6,
        "accepted_tokens": 3,
        "mean_acceptance_length": 2.5,
        "draft_acceptance_rate": 0.5,
        "acceptance_histogram": [1, 0, 0, 1],
        "acceptance_per_position": [0.5, 0.5, 0.5],
        "drafting_share": 0.0,
    }


def test_the_histogram_reaches_as_far_as_a_tree_is_deep() -> None:
    statistics = DecodingStatistics()
    statistics.count(drafted=12, accepted=1, depth=3)
    assert statistics.acceptance_histogram == [0, 1, 0, 0]
    assert statistics.acceptance_per_position == [1.0, 0.0, 0.0]
    assert statistics.draft_acceptance_rate == pytest.approx(1 / 12)

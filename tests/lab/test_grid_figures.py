"""Figures, tables and pictures of a grid, against values worked out by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lab.grid.figures import Bootstrap, Counts, conditional, interval, lengths, speeds
from lab.grid.plots import plot_results
from lab.grid.report import step_ratio
from lab.grid.store import difference
from lab.grid.tables import markdown
from polydraft.bench.prompts import spread
from polydraft.training.curves import can_plot

KINDS = ["a", "a", "b", None]
ROWS = [
    {"prompt": 0, "tokens": 10, "cycles": 5.0, "tried": [5.0, 2.0], "accepted": [2.0, 1.0]},
    {"prompt": 0, "tokens": 10, "cycles": 3.0, "tried": [3.0, 3.0], "accepted": [3.0, 2.0]},
    {"prompt": 1, "tokens": 12, "cycles": 8.0, "tried": [8.0, 0.0], "accepted": [0.0, 0.0]},
    {"prompt": 2, "tokens": 9, "cycles": 3.0, "tried": [2.0, 0.0], "accepted": [1.0, 0.0]},
    {"prompt": 3, "tokens": 4, "cycles": 4.0, "tried": [2.0, 0.0], "accepted": [0.0, 0.0]},
]


def test_lengths_by_hand() -> None:
    counts = Counts.of(ROWS, 4)
    assert counts.tokens.tolist() == [20, 12, 9, 4] and counts.cycles.tolist() == [8, 8, 3, 4]
    bootstrap = Bootstrap.draw(KINDS, draws=500, seed=0)
    half = Counts(counts.tokens, 2 * counts.cycles)
    found = lengths(counts, bootstrap, half)
    assert {name: group["length"] for name, group in found.items()} == {"all": 45 / 23, "a": 2.0, "b": 3.0}
    assert found["a"]["interval"] == (1.5, 2.5)  # either prompt alone, at the ends
    assert found["b"]["interval"] == (3.0, 3.0)  # one prompt
    assert [group["ratio"] for group in found.values()] == pytest.approx([2.0] * 3)
    assert found["all"]["ratio_interval"] == pytest.approx((2.0, 2.0))  # paired: every draw gives it


def test_bootstrap_stays_within_kinds() -> None:
    picks = Bootstrap.draw(KINDS, draws=200, seed=1).picks
    assert set(picks[:, 0].tolist()) == {0, 1} == set(picks[:, 1].tolist())
    assert set(picks[:, 2].tolist()) == {2} and set(picks[:, 3].tolist()) == {3}
    assert torch.equal(picks, Bootstrap.draw(KINDS, draws=200, seed=1).picks)


def test_conditional_acceptance() -> None:
    assert conditional(ROWS) == pytest.approx([6 / 20, 3 / 5])
    assert conditional([ROWS[2]]) == [0.0, 0.0]


def test_interval() -> None:
    assert interval(torch.arange(1001, dtype=torch.float64)) == (25.0, 975.0)


def timed(prompt: int, tokens: int, seconds: float, steps: int) -> dict[str, Any]:
    times = {"seconds": seconds, "drafting_seconds": seconds / 4, "plain_seconds": 2.0, "plain_tokens": 8}
    return {"prompt": prompt, "kind": None, "tokens": tokens, "steps": steps} | times


def test_speeds_by_hand() -> None:
    rows = [timed(0, 8, 1.0, 3), timed(1, 8, 2.0, 7), timed(2, 9, 1.0, 4)]  # 8, 4, 9 tokens/s; plain 4
    found = speeds(rows, draws=100, seed=0)
    assert found["median_ratio"] == 2.0
    assert found["interval"] == (1.0, 2.25)
    assert found["drafting_share"] == 0.25
    assert found["cycle_cost"] == 1.0  # of 1/4 s, 2/8 s, 1/5 s the median, in plain tokens of 1/4 s
    assert found["length"] == (7 + 7 + 8) / 14


def test_steps_are_compared_on_the_prompts_both_have() -> None:
    found = step_ratio([timed(0, 9, 1.0, 2), timed(5, 5, 1.0, 4)], [timed(0, 9, 1.0, 4)], draws=9, seed=0)
    assert found is not None and found["ratio"] == 2.0 and found["length"] == 4.0
    assert step_ratio([timed(0, 9, 1.0, 2)], [], draws=9, seed=0) is None


def test_spread_takes_the_kinds_in_turn() -> None:
    assert spread(["a", "a", "a", "b", "b", None]) == [0, 3, 5, 1, 4, 2]


def test_difference_names_the_place() -> None:
    old = {"model": "m", "options": {"rank": 2, "gone": 1}, "init_from": None}
    assert difference(old, {"model": "m", "options": {"rank": 2, "new": 3}, "init_from": None}) is None
    assert difference(old, old | {"options": {"rank": 4}}) == ("options.rank", 2, 4)
    assert difference(old, old | {"init_from": {"model": "m"}}) == ("init_from", None, {"model": "m"})


def cell(name: str, *, rank: int, horizon: int, complete: bool = True) -> dict[str, Any]:
    group = {"length": 1.5 + rank / 10, "interval": (1.4, 1.9)}
    compared = group if rank == 1 else group | {"ratio": 1.2, "ratio_interval": (1.1, 1.3)}
    speed = speeds([timed(0, 8, 1.0, 3)], draws=5, seed=0)
    return {
        "name": name,
        "cell": name,
        "joint": "cp",
        "rank": rank,
        "horizon": horizon,
        "reference": "one",
        "parameters": 7_800_000,
        "training_minutes": 3.25,
        "positions_per_second": 1234.5 if complete else None,
        "acceptance": {m: {"all": compared, "a": compared} for m in ("greedy", "sampled")}
        if complete
        else {},
        "conditional": {m: [0.5] * horizon for m in ("greedy", "sampled")} if complete else {},
        "speed": {"greedy": speed, "sampled": speed | {"against_token": compared}} if complete else {},
        "projected": {"greedy": 1.234, "sampled": 1.1} if complete else {},
    }


def content() -> dict[str, Any]:
    cells = [cell("one", rank=1, horizon=2), cell("two", rank=2, horizon=3)]
    settings = {"model": "m", "dtype": "float32", "kinds": ["all", "a"], "command": "polydraft", "samples": 2}
    rest: dict[str, Any] = {"prompts": "heldout", "max_new_tokens": 9, "draws": 5, "tables": {}, "asked": 4}
    rest["title"] = "Heads"
    del cells[0]["speed"]["sampled"]["against_token"]
    return {"cells": [*cells, cell("three", rank=3, horizon=2, complete=False)]} | settings | rest


def test_markdown_has_a_row_for_all_that_is_known() -> None:
    lines = markdown(content()).splitlines()
    assert "3 of 4 cells are done." in lines
    assert "| one | 2 | 1.600 [1.400, 1.900] | 1.60 | - |" in lines
    assert "| two | 3 | 1.700 [1.400, 1.900] | 1.70 | 1.200 [1.100, 1.300] |" in lines
    assert "| one | 50% | 50% |  |" in lines
    assert "| three | 7.8M | 3.2 | - | - | - | - / - | - / - | - / - |" in lines
    assert sum(line.endswith("| 1.23 / 1.10 |") for line in lines) == 2
    assert "| two | 1.700 [1.400, 1.900] | 1.200 [1.100, 1.300] |" in lines  # block against token-wise
    widths = {line.count("|") for line in lines if line.startswith("|")}
    assert all(width > 2 for width in widths)


@pytest.mark.skipif(not can_plot(), reason="the extra `plots` is not installed")
def test_pictures_are_png_files(tmp_path: Path) -> None:
    paths = [path for path, alt in plot_results(content(), tmp_path) if alt]
    assert [path.name for path in paths] == ["acceptance.png", "rank.png", "speed.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n") for path in paths)
    nothing = content() | {"cells": [cell("three", rank=3, horizon=2, complete=False)]}
    assert plot_results(nothing, tmp_path) == []

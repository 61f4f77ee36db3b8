"""Tables and pictures that a grid's file asks for, against values worked out by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lab.grid.config import PictureSpec, TableSpec
from lab.grid.figures import window_figures
from lab.grid.metrics import METRICS
from lab.grid.pictures import plot_spec
from lab.grid.pivot import pivot
from lab.grid.report import component_use
from polydraft.errors import InputError
from polydraft.training.curves import can_plot


def row(name: str, *, rank: int, horizon: int, seed: int = 0, length: float = 1.5) -> dict[str, Any]:
    groups = {"all": {"length": length, "interval": (length - 0.25, length + 0.25)}}
    return {
        "name": name,
        "rank": rank,
        "horizon": horizon,
        "seed": seed,
        "parameters": 1_500_000,
        "acceptance": {"greedy": groups},
        "loss": None,
    }


ROWS = [
    row("a", rank=1, horizon=2),
    row("b", rank=2, horizon=2, length=2.0),
    row("c", rank=2, horizon=2, seed=1, length=3.0),
    row("d", rank=2, horizon=4, length=2.5),
]
CONTENT = {"cells": ROWS}


def spec(**options: Any) -> TableSpec:
    return TableSpec(**{"name": "t", "title": "T", "rows": ("rank",), "columns": ("greedy",)} | options)


def test_seeds_are_put_together() -> None:
    found = pivot(CONTENT, spec(where={"horizon": (2,)}, columns=("greedy", "parameters", "joint_loss")))
    assert found["headings"] == ["rank", *(METRICS[n].title for n in ("greedy", "parameters", "joint_loss"))]
    assert found["rows"] == [
        ["1", "1.500 [1.250, 1.750]", "1.50", "-"],
        ["2", "2.500 [2.000, 3.000]", "1.50", "-"],
    ]
    assert "mean" in found["note"]


def test_numbers_ascend_and_names_stand_as_they_came() -> None:
    rows = [row("z", rank=8, horizon=2), row("a", rank=2, horizon=2), row("m", rank=2, horizon=4)]
    found = pivot({"cells": rows}, spec(rows=("rank", "name")))
    assert [line[:2] for line in found["rows"]] == [["2", "a"], ["2", "m"], ["8", "z"]]


def test_a_field_has_columns_of_its_own() -> None:
    found = pivot(CONTENT, spec(across="horizon", where={"seed": (0,)}))
    assert found["headings"][1:] == ["tokens/step, greedy, horizon 2", "tokens/step, greedy, horizon 4"]
    assert found["rows"] == [
        ["1", "1.500 [1.250, 1.750]", "-"],
        ["2", "2.000 [1.750, 2.250]", "2.500 [2.250, 2.750]"],
    ]
    assert "bootstrap" in found["note"]


def test_what_a_table_cannot_tell_apart_is_refused() -> None:
    with pytest.raises(InputError, match="puts b, d together: add the field in which they differ"):
        pivot(CONTENT, spec(where={"seed": (0,)}))
    with pytest.raises(InputError, match="unknown column 'greedi': choose from greedy"):
        pivot(CONTENT, spec(columns=("greedi",)))
    with pytest.raises(InputError, match="no field 'ranks': choose from name, rank"):
        pivot(CONTENT, spec(rows=("ranks",)))


@pytest.mark.skipif(not can_plot(), reason="the extra `plots` is not installed")
def test_a_picture(tmp_path: Path) -> None:
    asked = PictureSpec(
        name="p", title="P", x="rank", y=("greedy", "joint_loss"), lines="horizon", panels="seed"
    )
    assert plot_spec(asked, ROWS).startswith(b"\x89PNG\r\n\x1a\n")


def window(nll: list[float], counts: int, language: float, tokens: int) -> dict[str, Any]:
    return {"nll": nll, "counts": counts, "language": language, "tokens": tokens}


def test_losses_over_windows_by_hand() -> None:
    rows = [window([4.0, 6.0], 2, 9.0, 3), window([1.0, 3.0], 2, 3.0, 3)]
    base = [window([5.0, 7.0], 2, 9.0, 3), window([2.0, 4.0], 2, 3.0, 3)]
    found = window_figures(rows, base, draws=400, seed=0)
    assert found["joint"] == (10 + 4) / 4 and found["joint_interval"] == (2.0, 5.0)
    assert found["first_draft"] == 5 / 4
    assert found["language"] == 2.0 and found["language_interval"] == (1.0, 3.0)
    assert found["difference"] == -1.0 and found["difference_interval"] == (-1.0, -1.0)
    assert "difference" not in window_figures(rows, [], draws=9, seed=0)


def test_component_use_is_the_perplexity_of_the_last_mean_weights() -> None:
    history = [{"load_1": 1.0, "load_2": 0.0}, {"load_1": 0.5, "load_2": 0.5}, {"eval_nll": 1.0}]
    found = component_use(history)
    assert found is not None and found["effective"] == pytest.approx(2.0) and found["largest"] == 0.5
    assert component_use([{"loss": 1.0}]) is None

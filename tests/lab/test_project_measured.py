"""Predictions from measured costs: interpolation by hand, errors that must be nought, the command."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from lab.cli import app
from lab.project.compare import compare
from lab.project.machine import Machine
from lab.project.measured import MeasuredCosts
from lab.project.roofline import Load, draft_ops, forward_ops
from lab.project.shapes import HeadShape, ModelShape
from lab.project.validate import validate
from polydraft.errors import InputError
from polydraft.training.curves import can_plot

SHAPE = {
    "name": "toy",
    "layers": 2,
    "hidden_size": 64,
    "ffn": 128,
    "heads": 4,
    "kv_heads": 2,
    "head_dim": 16,
    "vocab_size": 1000,
}
SIZES = {"draft_vocab_size": 100, "feature_size": 128, "map_rank": 8, "markov_rank": 8}


def figure(value: float) -> dict[str, Any]:
    """An entry without spread."""
    return {"median": value, "interval": [value, value]}


def head(joint: str, rank: int, horizon: int, draft: float, *, features: str = "fused") -> dict[str, Any]:
    """A measured head: drafting seconds, a forward of 0.9 (10 + n), 0.5 s of verification with cache."""
    forward = 0.9 * (10 + horizon)
    parts = {"draft": draft, "forward": forward, "verify": 0.4, "keep": 0.1, "cost": 2.0}
    mode = {name: figure(value) for name, value in parts.items()}
    found = {"joint": joint, "rank": rank, "horizon": horizon, "features": features}
    return {"name": f"{joint}{rank}", **found, "greedy": mode, "sampled": copy.deepcopy(mode)}


def overhead() -> dict[str, Any]:
    """Drafting takes rank + horizon / 2 seconds, a bias 3 more, a block 5; a step 10, forward(k) 9 + k."""
    cells = [head("cp", rank, n, rank + n / 2) for rank in (1, 5) for n in (2, 6)]
    cells += [head("markov", 1, n, 1 + n / 2 + 3) for n in (2, 6)]
    cells += [head("independent", 1, n, 1 + n / 2 + 5, features="block") for n in (2, 6)]
    plain = {name: figure(value) for name, value in {"step": 10.0, "forward": 9.0, "prompt": 20.0}.items()}
    return {
        "model": "toy",
        "context": 40,
        "sizes": SIZES,
        "machine": {"device": "x", "bandwidth": 1e3, "flops": 1e6, "shape": SHAPE},
        "trunk": {
            "forward": {str(k): figure(9.0 + k) for k in (1, 3, 9)},
            "greedy": plain,
            "sampled": plain,
        },
        "cells": cells,
    }


def grid(costs: MeasuredCosts, *, factor: float = 1.0) -> dict[str, Any]:
    """Timed cells that cost what is measured, times a factor."""
    cells = []
    for name, joint, rank in (("a", "cp", 1), ("b", "cp", 3), ("c", "cp-markov", 5)):
        cost = factor * costs.cost(joint, rank, 4, mode="greedy")
        ratio, cycle = costs.run_ratio(tokens=2.0, cost=cost, new_tokens=33, prompt_tokens=40, mode="greedy")
        speed = {"median_ratio": ratio, "interval": [ratio - 0.01, ratio + 0.01], "cycle_cost": cycle}
        cells.append(
            {
                "name": name,
                "cell": name,
                "joint": joint,
                "rank": rank,
                "horizon": 4,
                "components": None,
                "speed": {"greedy": speed | {"length": 2.0}},
                "acceptance": {"greedy": {"all": {"length": 2.0}}},
            }
        )
    return {"cells": cells, "speed_tokens": 33}


def test_costs_between_those_measured() -> None:
    costs = MeasuredCosts(overhead())
    drafting = {"mode": "greedy", "features": "fused"}
    assert costs.drafting("cp", 3, 4, **drafting) == pytest.approx(3 + 2)
    assert costs.drafting("hmm", 3, 4, **drafting) == pytest.approx(3 + 2)
    assert costs.drafting("cp-markov", 3, 4, **drafting) == pytest.approx(3 + 2 + 3)
    assert costs.drafting("markov", 1, 6, mode="sampled", features="block") == pytest.approx(1 + 3 + 3 + 5)
    assert costs.drafting("cp", 9, 2, **drafting) == pytest.approx(5 + 1)  # beyond them the nearest
    assert costs.forward(6, "greedy") == pytest.approx(9 * 15 / 10)  # within a plain step a forward takes 9
    assert costs.forward(9, "greedy") == pytest.approx(14.4 * 18 / 16)  # beyond 1 + 6 by the curve
    assert costs.rest(4, "greedy") == pytest.approx(0.5)
    assert costs.cost("cp", 3, 4, mode="greedy") == pytest.approx((5 + 9 * 14 / 10 + 0.5) / 10)


def test_heads_of_unknown_cost_are_left_out(tmp_path: Path) -> None:
    costs = MeasuredCosts(overhead())
    content = grid(costs)
    content["cells"][1]["joint"] = "recurrent"
    found = compare(costs, content, tmp_path / "results.json", prompt_tokens=40)
    assert found["left_out"] == ["b"] and {row["name"] for row in found["rows"]} == {"a", "c"}
    for cell in content["cells"]:
        cell["joint"] = "sequential"
    with pytest.raises(InputError, match="of no head whose costs are predicted"):
        compare(costs, content, tmp_path / "results.json", prompt_tokens=40)


def test_a_whole_run_by_hand() -> None:
    ratio, cycle = MeasuredCosts(overhead()).run_ratio(
        tokens=2.0, cost=1.5, new_tokens=21, prompt_tokens=20, mode="greedy"
    )
    # plain 10 + 20 * 10 = 210; drafted 10 + 10 cycles of 15 = 160; 11 steps; a plain token 10
    assert ratio == pytest.approx(210 / 160)
    assert cycle == pytest.approx(160 / 11 / 10)


def test_parts_that_were_not_measured() -> None:
    content = overhead()
    content["cells"] = [cell for cell in content["cells"] if cell["joint"] == "cp"]
    with pytest.raises(InputError, match="--extra markov"):
        MeasuredCosts(content).cost("markov", 1, 4, mode="greedy")
    content["cells"] = [cell for cell in content["cells"] if cell["rank"] > 1]
    with pytest.raises(InputError, match="--rank 1"):
        MeasuredCosts(content)


def test_a_grid_of_these_costs_is_foretold(tmp_path: Path) -> None:
    costs = MeasuredCosts(overhead())
    found = compare(costs, grid(costs), tmp_path / "results.json", prompt_tokens=40)
    assert len(found["rows"]) == 3
    for errors in found["errors"].values():
        assert errors["worst"] == pytest.approx(0)
        assert errors["within"] == 1
    assert found["errors"]["given ratio"]["in_interval"] == 3


def test_one_cell_corrects_a_constant_factor_of_the_others(tmp_path: Path) -> None:
    costs = MeasuredCosts(overhead())
    options: dict[str, Any] = {"grid": tmp_path / "results.json", "prompt_tokens": 40}
    raw = compare(costs, grid(costs, factor=1.3), **options)
    assert raw["errors"]["given cost"]["bias"] < -0.15
    assert raw["errors"]["given ratio"]["bias"] > 0.15
    found = compare(costs, grid(costs, factor=1.3), calibrate="a", **options)
    assert [row["name"] for row in found["rows"]] == ["b", "c"]
    assert abs(found["errors"]["given cost"]["worst"]) < 0.02  # the prompt's forward has another share
    with pytest.raises(InputError, match="no timed cell 'z'"):
        compare(costs, grid(costs), calibrate="z", **options)


def test_heads_are_read_beside_the_results(tmp_path: Path) -> None:
    costs = MeasuredCosts(overhead())
    content, folder = grid(costs), tmp_path / "cells/c/head"
    folder.mkdir(parents=True)
    record = {"components": 2, "draft_vocab_size": 100, "features": "fused"}
    (folder / "config.json").write_text(json.dumps(record))
    found = compare(costs, content, tmp_path / "results.json", prompt_tokens=40)
    assert {row["name"]: row["components"] for row in found["rows"]} == {"a": 1, "b": 3, "c": 2}
    found = compare(costs, content, tmp_path / "elsewhere/results.json", prompt_tokens=40, components=4)
    assert {row["name"]: row["components"] for row in found["rows"]} == {"a": 1, "b": 3, "c": 4}
    (folder / "config.json").write_text(json.dumps(record | {"draft_vocab_size": 50}))
    with pytest.raises(InputError, match="--draft-vocab-size 50"):
        compare(costs, content, tmp_path / "results.json", prompt_tokens=40)


def test_the_overhead_of_an_operation_is_found_again() -> None:
    machine = Machine(name="x", bandwidth=1e9, flops=1e12, launch=7e-5)
    model, load, content = ModelShape(**SHAPE), Load(context=40), overhead()
    content["machine"] |= {"bandwidth": 1e9, "flops": 1e12}
    for k in (1, 3, 9):
        content["trunk"]["forward"][str(k)] = figure(machine.total(forward_ops(model, k, load)))
    for cell in content["cells"]:
        names = ("joint", "rank", "horizon", "features")
        shape = HeadShape(**{name: cell[name] for name in names}, **SIZES)
        cell["greedy"]["draft"] = figure(machine.total(draft_ops(model, shape, load)))
    found = validate(content)
    assert found["launch"] == pytest.approx(7e-5)
    assert found["worst_forward"] == pytest.approx(0)
    assert found["worst_draft"] == pytest.approx(0)


def command(*arguments: object) -> Result:
    """`python -m lab project`."""
    return CliRunner().invoke(app, ["project", *map(str, arguments)])


def test_the_command_foretells_a_grid(tmp_path: Path) -> None:
    costs = overhead()
    (tmp_path / "overhead.json").write_text(json.dumps(costs))
    (tmp_path / "grid.json").write_text(json.dumps(grid(MeasuredCosts(costs))))
    out = tmp_path / "out"
    result = command("--costs", tmp_path / "overhead.json", "--grid", tmp_path / "grid.json", "--out", out)
    assert result.exit_code == 0, result.output
    content = json.loads((out / "results.json").read_text())
    assert content["measured"]["grids"][0]["errors"]["given ratio"]["mean"] == pytest.approx(0)
    assert content["roofline"] is None
    assert "predicted from measured costs" in (out / "results.md").read_text()
    assert (out / "predicted.png").exists() == can_plot()


def test_the_command_projects_shapes(tmp_path: Path) -> None:
    out = tmp_path / "out"
    sweep = ["--rank", 1, "--rank", 8, "--horizon", 4, "--batch", 1, "--acceptance", "0.8,0.7", "--out", out]
    result = command("--shape", "llama-3.1-70b", "--gpus", 4, *sweep)
    assert result.exit_code == 0, result.output
    rows = json.loads((out / "results.json").read_text())["roofline"]["rows"]
    assert [(row["rank"], len(row["speedups"])) for row in rows] == [(1, 1), (8, 1)]
    assert "### llama-3.1-70b, 2 bytes a weight, batch 1" in (out / "results.md").read_text()
    assert (out / "speedup.png").exists() == can_plot()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--grid", "x.json"], "give --costs"),
        (["--costs", "missing.json"], "cannot read missing.json"),
        (["--costs", __file__], "is no JSON"),
        (["--shape", "llama-9"], "unknown shape 'llama-9'"),
        (["--shape", "llama-3.1-70b"], "give more --gpus"),
        (["--acceptance", "high"], "--acceptance high"),
        (["--mode", "hot"], "mode must be one of"),
        (["--rank", "0"], "ranks must be whole numbers from 1"),
        (["--weights", "int3"], "weights must be one of"),
        (["--machine", "abacus"], "unknown machine"),
        (["--bandwidth", "0"], "bandwidth must be above 0"),
        (["--joint", "markov"], "one component"),
    ],
)
def test_one_line_errors(arguments: list[str], message: str, tmp_path: Path) -> None:
    result = command(*arguments, "--out", tmp_path / "out")
    assert result.exit_code == 2
    (line,) = [line for line in result.output.splitlines() if line.startswith("error: ")]
    assert message in line
    assert not (tmp_path / "out").exists()

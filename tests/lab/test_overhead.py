"""What heads cost, on a tiny model: parts that add up, steps that train, rounds that are not done twice."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel
from typer.testing import CliRunner, Result

from lab.cli import app
from lab.grid.progress import Silent
from lab.overhead import cycle, memory, run
from lab.overhead.cells import Cell, Sizes, make_cells, make_head, parameters
from lab.overhead.machine import matmul_flops
from lab.overhead.results import Estimator
from lab.overhead.rounds import WIDTHS, Benches, Settings
from lab.overhead.step import Step, training_batch, trunk_forward
from polydraft.errors import InputError, PolydraftError
from polydraft.training.curves import can_plot
from tests.tiny import tiny_folder, tiny_model

SIZES = Sizes(draft_vocab_size=32, feature_size=16, map_rank=4, markov_rank=4)
CELL = Cell(name="cp2-n3", joint="cp", rank=2, horizon=3)
SETTINGS = Settings(
    cells=(CELL, Cell(name="block-n2", joint="markov", rank=1, horizon=2, features="block")),
    sizes=SIZES,
    cycles=2,
    positions=16,
    rounds=2,
)


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    """Its caller asks for no gradients of it."""
    return tiny_model().requires_grad_(False)


def test_cells_are_named_by_what_they_are() -> None:
    found = make_cells(
        joint="cp", ranks=(1, 4), horizons=(2, 8), extra=("markov", "hmm:8", "block", "cp:4+block", "cp:4")
    )
    names = [cell.name for cell in found]
    assert names[:4] == ["cp1-n2", "cp4-n2", "cp1-n8", "cp4-n8"]
    assert names[4:] == [
        f"{name}-n{n}" for name in ("markov", "hmm8", "block", "cp4-block") for n in (2, 8)
    ]  # cp:4 is there already
    by = {cell.name: cell for cell in found}
    assert by["block-n8"] == Cell(name="block-n8", joint="independent", rank=1, horizon=8, features="block")
    assert (by["cp4-block-n2"].joint, by["cp4-block-n2"].rank) == ("cp", 4)


@pytest.mark.parametrize("extra", ["other", "markov:2", "cp:0", "cp:x", "block+fused", "cp+hmm"])
def test_heads_that_are_none(extra: str) -> None:
    with pytest.raises(InputError):
        make_cells(joint="cp", ranks=(1,), horizons=(2,), extra=(extra,))


@pytest.mark.parametrize("do_sample", [False, True])
def test_the_parts_of_a_cycle_are_all_of_it(
    model: PreTrainedModel, do_sample: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    widths: list[int] = []
    forward = cycle.EagerTrunk.forward

    def noted(self: Any, tokens: Tensor, *, parents: Sequence[Sequence[int]] | None = None) -> Tensor:
        widths.append(tokens.shape[1])
        return forward(self, tokens, parents=parents)

    monkeypatch.setattr(cycle.EagerTrunk, "forward", noted)
    head = make_head(model, CELL, SIZES).eval()
    found = cycle.drafted_cycle(model, head, torch.arange(9), cycles=4, do_sample=do_sample)
    assert widths == [1 + 3] * 5  # the first is not counted
    assert found["cycle"] == pytest.approx(sum(found[name] for name in cycle.PARTS))
    assert all(found[name] > 0 for name in cycle.PARTS)
    assert 0 <= found["kept"] <= 3


def test_a_plain_step_is_one_forward_over_one_token(model: PreTrainedModel) -> None:
    widths: list[int] = []
    hook = model.register_forward_hook(
        lambda _module, _args, inputs, _out: widths.append(inputs["input_ids"].shape[1]), with_kwargs=True
    )
    found = cycle.plain_step(model, torch.arange(9), steps=5, do_sample=True)
    hook.remove()
    assert widths == [9, 1, 1, 1, 1, 1]
    assert 0 < found["forward"] < found["step"]
    assert not model._forward_hooks and not model._forward_pre_hooks


def test_a_training_step_trains_on_every_position(model: PreTrainedModel) -> None:
    batch = training_batch(positions=16, tokens=32, device=model.device)
    head = make_head(model, CELL, SIZES)
    seconds, anchors = trunk_forward(model, head, batch)
    assert seconds > 0
    assert anchors.hidden.shape == (16, 32)
    reach = torch.arange(2, 5) + torch.arange(16)[:, None]
    assert torch.equal(anchors.valid, reach < 18)  # the text ends; all else can be drafted
    before = {name: value.clone() for name, value in head.named_parameters()}
    found = Step(head, anchors)()
    assert found["step"] == pytest.approx(found["loss"] + found["optimizer"])
    assert any(not torch.equal(before[name], value) for name, value in head.named_parameters())
    assert all(parameter.grad is None for parameter in head.parameters())


def test_peak_memory_counts_weights_gradients_and_the_state_of_adamw(model: PreTrainedModel) -> None:
    wide = replace(SIZES, feature_size=20_000)
    weights = 4 * parameters(make_head(model, CELL, wide))
    assert weights > 12e6
    found = memory.measure_memory(model, CELL, wide, context=16, positions=16)
    assert 4 * weights <= found["training"] <= 8 * weights
    assert weights <= found["drafted"] <= 3 * weights
    assert found["drafting"] == found["drafted"] - found["plain"]


def test_a_failed_measurement_of_memory_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    class Failed:
        returncode, stdout, stderr = 1, "", "Traceback\nOSError: no such model"

    monkeypatch.setattr(memory.subprocess, "run", lambda *_args, **_more: Failed)
    with pytest.raises(PolydraftError, match=r"memory of cp2-n3 failed: OSError: no such model"):
        memory.measured_apart("x", CELL, SIZES, dtype="float32", threads=1, context=16, positions=16)


def test_medians_and_intervals() -> None:
    estimate = Estimator(5)
    found = estimate([1.0, 2.0, 3.0, 4.0, 100.0])
    assert found["median"] == 3
    assert found["interval"][0] in (1, 2) and found["interval"][1] in (4, 100)
    assert estimate.ratio([2.0, 4.0, 6.0, 8.0, 10.0], [1.0, 2.0, 3.0, 4.0, 5.0]) == {
        "median": 2.0,
        "interval": [2.0, 2.0],
    }


def test_matmul_flops_count_two_for_each_product() -> None:
    assert matmul_flops(torch.device("cpu"), torch.float32, side=64) > 1e7


def measure(out: Path, model: PreTrainedModel, **changed: Any) -> dict[str, Any]:
    """Run without memory."""
    options = {name: changed.pop(name) for name in ("budget_seconds",) if name in changed}
    settings = replace(SETTINGS, **changed)
    return run.run_overhead(settings, out, model, name="tiny", memory=False, progress=Silent(), **options)


@pytest.fixture(autouse=True)
def _quick_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "describe_machine", lambda _model: MACHINE)


MACHINE = {"device": "x", "threads": 1, "dtype": "float32", "bandwidth": 1e9, "flops": 1e9, "shape": None}


def test_a_killed_run_goes_on_where_it_was(
    model: PreTrainedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    real, asked = Benches.round, []

    def killed(self: Benches, number: int) -> dict[str, Any]:
        if number == 1:
            raise KeyboardInterrupt
        return real(self, number)

    monkeypatch.setattr(Benches, "round", killed)
    with pytest.raises(KeyboardInterrupt):
        measure(out, model)
    first = (out / "rounds/000.json").read_bytes()
    assert not (out / "rounds/001.json").exists() and not (out / "results.json").exists()

    def counted(self: Benches, number: int) -> dict[str, Any]:
        asked.append(number)
        return real(self, number)

    monkeypatch.setattr(Benches, "round", counted)
    found = measure(out, model)
    assert asked == [1]
    assert (out / "rounds/000.json").read_bytes() == first
    assert found["rounds"] == 2
    again = measure(out, model)
    assert asked == [1] and again == found
    with pytest.raises(InputError, match="was made with cycles 2, not 3"):
        measure(out, model, cycles=3)


def test_a_report_of_one_round(model: PreTrainedModel, tmp_path: Path) -> None:
    out = tmp_path / "out"
    content = measure(out, model, rounds=3, budget_seconds=0)  # one is measured whatever the budget is
    assert content["rounds"] == 1
    assert content == json.loads((out / "results.json").read_text())
    assert list(content["trunk"]["forward"]) == [str(width) for width in WIDTHS]
    cell = content["cells"][0]
    raw = json.loads((out / "rounds/000.json").read_text())["cells"]["cp2-n3"]
    assert cell["greedy"]["cost"]["median"] == pytest.approx(
        raw["greedy"]["cycle"] / raw["greedy"]["plain"]["step"]
    )
    assert cell["training"]["positions_per_second"]["median"] == pytest.approx(16 / raw["training"]["step"])
    assert cell["parameters"] == parameters(make_head(model, CELL, SIZES))
    assert list(cell["drafting"]) == ["1", "2", "3"]
    assert "| cp2-n3 |" in (out / "results.md").read_text()
    assert (out / "cycle.png").exists() == (out / "rank.png").exists() == can_plot()


def command(*arguments: object) -> Result:
    """`python -m lab overhead`."""
    return CliRunner().invoke(app, ["overhead", *map(str, arguments)])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rank", "0"], "rank must be at least 1"),
        (["--joint", "other"], "unknown head 'other'"),
        (["--joint", "markov"], "give --rank 1 alone"),
        (["--extra", "best"], "unknown head 'best'"),
        (["--rounds", "0"], "rounds must be at least 1"),
    ],
)
def test_one_line_errors(arguments: list[str], message: str, tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "model")
    result = command(*arguments, "--model", folder, "--dtype", "float32", "--out", tmp_path / "out")
    assert result.exit_code == 2
    (line,) = [line for line in result.output.splitlines() if line.startswith("error: ")]
    assert message in line


@pytest.mark.slow
def test_the_command_with_memory_in_processes_of_their_own(tmp_path: Path) -> None:
    folder, out = tiny_folder(tmp_path / "model"), tmp_path / "out"
    sizes = ["--draft-vocab-size", 32, "--feature-size", 16, "--map-rank", 4, "--markov-rank", 4]
    small = [
        "--positions",
        16,
        "--cycles",
        1,
        "--rounds",
        1,
        "--rank",
        1,
        "--horizon",
        2,
        "--extra",
        "markov",
    ]
    result = command("--model", folder, "--dtype", "float32", *sizes, *small, "--out", out)
    assert result.exit_code == 0, result.output
    content = json.loads((out / "results.json").read_text())
    assert [cell["name"] for cell in content["cells"]] == ["cp1-n2", "markov-n2"]
    assert all(cell["memory"]["training"] > 0 for cell in content["cells"])

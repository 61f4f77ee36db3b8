"""A whole grid on a tiny model: run, broken off, gone on with, refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback
from typer.testing import CliRunner, Result

from lab.cli import app
from lab.grid.config import GridConfig
from lab.grid.parse import read_config
from lab.grid.progress import Silent
from lab.grid.run import run_grid
from polydraft.errors import InputError
from polydraft.loading import load_model
from polydraft.training.curves import can_plot
from tests.tiny import tiny_folder
from tests.training.runs import StopAt, Stopped, same_weights, write_corpus

GRID = """
model = "{root}/model"
dtype = "float32"
data = ["{root}/corpus.jsonl"]
[defaults]
joint = "cp"
horizon = 2
feature_size = 16
map_rank = 4
draft_vocab_size = 32
batch_size = 4
steps = 6
every = 3
max_length = 24
held_out = 0.2
[start]
joint = "independent"
steps = 3
[[cells]]
name = "ind"
joint = "independent"
[[cells]]
name = "cp2"
rank = 2
[evaluation]
prompts = "{root}/prompts.jsonl"
max_new_tokens = 10
samples = 2
speed_prompts = 2
speed_tokens = 6
draws = 20
[[evaluation.variants]]
name = "cp2-top1"
cell = "cp2"
components = 1
[[evaluation.variants]]
name = "cp2-block"
cell = "cp2"
verification = "block"
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, a corpus, prompts, and the finished grid in `out`."""
    root = tmp_path_factory.mktemp("grid")
    tiny_folder(root / "model")
    write_corpus(root / "corpus.jsonl")
    prompts = [{"prompt": text, "kind": kind} for text, kind in (("abc", "x"), ("hi abc", "x"), ("de", "y"))]
    (root / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in prompts))
    (root / "grid.toml").write_text(GRID.format(root=root))
    result = command(root / "grid.toml", "--out", root / "out")
    assert result.exit_code == 0, result.output
    return root


def command(*args: str | Path) -> Result:
    runner = CliRunner(env={"COLUMNS": "200"})
    return runner.invoke(app, ["grid", *map(str, args), "--threads", "1"])


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of the cells and the texts, with when it was written."""
    paths = [*(folder / "cells").rglob("*"), *(folder / "texts").rglob("*")]
    return {f"{p} {p.stat().st_mtime_ns}": p.read_bytes() for p in paths if p.is_file()}


class Breaking(Silent):
    """Breaks off in the training run after `runs` whole ones, or at a count's first step called `count`."""

    def __init__(self, *, runs: int | None = None, count: str | None = None) -> None:
        self.runs, self.count = runs, count

    @contextmanager
    def training(self, steps: int) -> Iterator[TrainerCallback]:
        if self.runs is None:
            yield TrainerCallback()
            return
        self.runs -= 1
        yield TrainerCallback() if self.runs >= 0 else StopAt(5)

    @contextmanager
    def counting(self, what: str, total: int) -> Iterator[Callable[[str], None]]:
        def advance(line: str) -> None:
            if what == self.count:
                raise Stopped

        yield advance


def trained(root: Path, out: Path) -> Path:
    """`out` with the heads of the finished grid, and nothing made with them."""
    shutil.copytree(
        root / "out", out, ignore=shutil.ignore_patterns("texts", "*.replay.json", "*.speed.json")
    )
    return out


def run(config: GridConfig, out: Path, **options: Any) -> dict[str, Any]:
    return run_grid(config, out, partial(load_model, dtype=torch.float32), **options)


@pytest.mark.parametrize("lost", ["cell.json", "seconds.json", "head/training.json"])
def test_a_head_that_does_not_say_how_it_was_made(root: Path, tmp_path: Path, lost: str) -> None:
    shutil.copytree(root / "out", tmp_path / "out")
    (tmp_path / "out" / "cells" / "cp2" / lost).unlink()
    for stage in ("report", "train"):
        result = command(root / "grid.toml", "--out", tmp_path / "out", "--stage", stage)
        assert result.exit_code == 2
        assert f"cp2 holds a head but no {lost}" in result.stderr
        assert result.stderr.count("\n") == 2  # the threads, the error


def test_damaged_records_are_named(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root / "out", tmp_path / "out")
    (tmp_path / "out" / "cells" / "cp2" / "cell.json").write_text('{"model": ')
    result = command(root / "grid.toml", "--out", tmp_path / "out", "--stage", "report")
    assert result.exit_code == 2
    assert "cell.json is damaged, it is no JSON: remove it" in result.stderr


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("corpus.jsonl", "gone.jsonl", "gone.jsonl: no such file or folder"),
        ("/prompts.jsonl", "/none.jsonl", "none.jsonl: no such file"),
        ("{root}/model", "{root}/nomodel", "no model folder at"),
    ],
)
def test_sources_are_checked_before_a_model_is_loaded(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: str, new: str, says: str
) -> None:
    monkeypatch.setattr("polydraft.loading.load_model", lambda *args, **rest: pytest.fail("loaded"))
    (tmp_path / "grid.toml").write_text(GRID.replace(old, new).format(root=root))
    result = command(tmp_path / "grid.toml", "--out", tmp_path / "out")
    assert result.exit_code == 2, result.output
    assert says in result.stderr
    assert not (tmp_path / "out").exists()


def test_report(root: Path) -> None:
    found = json.loads((root / "out" / "results.json").read_text())
    rows = {row["name"]: row for row in found["cells"]}
    assert list(rows) == ["ind", "cp2", "cp2-top1", "cp2-block"]
    assert set(rows["ind"]["acceptance"]) == {"greedy", "sampled"}
    assert set(rows["cp2"]["acceptance"]) == {"greedy", "sampled"}
    for row in (rows["ind"], rows["cp2"], rows["cp2-top1"]):
        assert set(row["speed"]) == {"greedy", "sampled"}
        assert row["speed"]["greedy"]["prompts"] == 2
        for groups in row["acceptance"].values():
            assert set(groups) == {"all", "x", "y"}
            assert all(1 <= group["length"] <= 3 for group in groups.values())
        assert row["training_minutes"] > 0 and row["positions_per_second"] > 0
        assert [len(shares) for shares in row["conditional"].values()] == [2] * len(row["conditional"])
    assert rows["cp2-block"]["acceptance"] == {} and set(rows["cp2-block"]["speed"]) == {"sampled"}
    assert rows["cp2-block"]["speed"]["sampled"]["against_token"]["ratio"] > 0
    assert "ratio" not in rows["ind"]["acceptance"]["greedy"]["all"]
    assert rows["cp2"]["parameters"] > rows["ind"]["parameters"]
    assert found["command"].startswith("python -m lab ")
    text = (root / "out" / "results.md").read_text()
    assert "| cp2-top1 | 2 |" in text
    if can_plot():
        names = {path.name for path in (root / "out").glob("*.png")}
        assert names == {"acceptance.png", "rank.png", "speed.png"}


def test_greedy_replay_agrees_with_the_timed_runs(root: Path, tmp_path: Path) -> None:
    """In float32, over as many tokens, both take the same steps."""
    config = read_config(root / "grid.toml")
    same = replace(config, evaluation=replace(config.evaluation, max_new_tokens=6, speed_prompts=3))
    out = trained(root, tmp_path / "out")
    run(same, out, stages=["replay", "speed"])
    for name in ("ind", "cp2"):
        replayed = json.loads((out / f"cells/{name}/{name}.replay.json").read_text())["modes"]["greedy"]
        timed = json.loads((out / f"cells/{name}/{name}.speed.json").read_text())
        steps = {row["prompt"]: row["steps"] for row in timed if row["temperature"] == 0}
        assert {row["prompt"]: row["cycles"] for row in replayed} == steps


def test_a_second_call_does_nothing(root: Path) -> None:
    before = contents(root / "out")
    result = command(root / "grid.toml", "--out", root / "out")
    assert result.exit_code == 0, result.output
    assert contents(root / "out") == before


def test_a_broken_off_grid_goes_on_to_the_same_end(root: Path, tmp_path: Path) -> None:
    config = read_config(root / "grid.toml")
    with pytest.raises(Stopped):
        run(config, tmp_path, progress=Breaking(runs=2))
    finished = contents(tmp_path)
    assert (tmp_path / "cells/ind/head/config.json").exists()
    assert (tmp_path / "cells/cp2/head/checkpoints").exists()
    with pytest.raises(Stopped):
        run(config, tmp_path, progress=Breaking(count="wall clock"))
    timed = json.loads((tmp_path / "cells/cp2/cp2.speed.json").read_text())
    run(config, tmp_path)
    after = contents(tmp_path)
    assert {k: v for k, v in finished.items() if "/ind/" in k}.items() <= after.items()
    assert json.loads((tmp_path / "cells/cp2/cp2.speed.json").read_text())[: len(timed)] == timed
    for name in ("start", "ind", "cp2"):
        assert same_weights(tmp_path / "cells" / name / "head", root / "out/cells" / name / "head")
    for path in ("cells/cp2/cp2.replay.json", "cells/cp2/cp2-top1.replay.json", "texts/sampled-2.jsonl"):
        assert (tmp_path / path).read_bytes() == (root / "out" / path).read_bytes()


def test_heads_that_are_not_trained_yet_are_left_out(root: Path, tmp_path: Path) -> None:
    config = read_config(root / "grid.toml")
    out = trained(root, tmp_path / "out")
    (out / "cells/cp2/head/config.json").unlink()
    found = run(config, out, stages=["replay", "report"])
    assert [row["name"] for row in found["cells"]] == ["ind"]
    assert found["cells"][0]["acceptance"] and not found["cells"][0]["speed"]


def test_no_prompt_is_timed_beyond_the_budget(root: Path, tmp_path: Path) -> None:
    config = read_config(root / "grid.toml")
    found = run(config, trained(root, tmp_path / "out"), stages=["speed"], budget_minutes=0)
    assert all(not row["speed"] and not row["acceptance"] for row in found["cells"])


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "rank = 2",
            "rank = 2\nlearning_rate = 0.01",
            "cell 'cp2' was made with options.learning_rate 0.001",
        ),
        ("steps = 3\n", "steps = 4\n", "cell 'start' was made with options.steps 3, not 4: remove"),
        ("samples = 2", "samples = 3", "texts was made with samples 2, not 3: remove"),
        ("rank = 2", "rank = 2\nhorizon = 0", "cell 'cp2': horizon must be"),
    ],
)
def test_what_was_made_otherwise_is_refused(
    root: Path, tmp_path: Path, old: str, new: str, message: str
) -> None:
    (tmp_path / "grid.toml").write_text(GRID.format(root=root).replace(old, new))
    before = contents(root / "out")
    result = command(tmp_path / "grid.toml", "--out", root / "out")
    assert result.exit_code == 2
    (line,) = [line for line in result.output.splitlines() if line.startswith("error: ")]
    assert message in line
    assert contents(root / "out") == before


def test_a_changed_start_concerns_the_cells_made_from_it(root: Path, tmp_path: Path) -> None:
    out = trained(root, tmp_path / "out")
    shutil.rmtree(out / "cells/start")
    (tmp_path / "grid.toml").write_text(GRID.format(root=root).replace("steps = 3\n", "steps = 4\n"))
    with pytest.raises(InputError, match=r"cell 'ind' was made with init_from\.options\.steps 3, not 4"):
        run(read_config(tmp_path / "grid.toml"), out)


def test_a_variant_that_drafts_otherwise_is_replayed_anew(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(root / "out", out)
    config = read_config(root / "grid.toml")
    (top, block) = config.evaluation.variants
    changed = (replace(top, components=2), block)
    found = run(
        replace(config, evaluation=replace(config.evaluation, variants=changed)), out, stages=["report"]
    )
    rows = {row["name"]: row for row in found["cells"]}
    assert not rows["cp2-top1"]["acceptance"] and not rows["cp2-top1"]["speed"]
    assert rows["cp2"]["acceptance"] and rows["cp2"]["speed"]
    found = run(
        replace(config, evaluation=replace(config.evaluation, variants=changed)), out, stages=["replay"]
    )
    rows = {row["name"]: row for row in found["cells"]}
    assert rows["cp2-top1"]["acceptance"] == rows["cp2"]["acceptance"]  # all components of two


def test_nothing_is_trained_beyond_the_budget(root: Path, tmp_path: Path) -> None:
    found = run(read_config(root / "grid.toml"), tmp_path, budget_minutes=0)
    assert found["cells"] == [] and found["asked"] == 4
    assert not (tmp_path / "cells").exists()
    assert "0 of 4 cells are done" in (tmp_path / "results.md").read_text()


def test_unknown_stage(root: Path) -> None:
    result = command(root / "grid.toml", "--stage", "trainn")
    assert result.exit_code == 2
    assert "unknown stage 'trainn': choose from train, replay, speed, report" in result.output


def kept_from(root: Path, path: Path, *names: str) -> Path:
    """The finished grid's results with rows of these names alone."""
    content = json.loads((root / "out/results.json").read_text())
    content["cells"] = [row for row in content["cells"] if row["name"] in names]
    path.write_text(json.dumps(content))
    return path


def test_rows_of_an_earlier_run_are_kept(root: Path, tmp_path: Path) -> None:
    """They stand as they are, in the file's order, and their cells are not trained."""
    path = kept_from(root, tmp_path / "earlier.json", "cp2", "cp2-top1")
    result = command(root / "grid.toml", "--out", tmp_path / "out", "--keep", path)
    assert result.exit_code == 0, result.output
    assert {folder.name for folder in (tmp_path / "out/cells").iterdir()} == {"start", "ind"}
    found = json.loads((tmp_path / "out/results.json").read_text())
    before = {row["name"]: row for row in json.loads(path.read_text())["cells"]}
    assert [row["name"] for row in found["cells"]] == ["ind", "cp2", "cp2-top1"]
    assert found["kept"] == ["cp2", "cp2-top1"]
    assert found["cells"][1:] == [before["cp2"], before["cp2-top1"]]
    assert same_weights(tmp_path / "out/cells/ind/head", root / "out/cells/ind/head")


def test_what_is_trained_here_stands_before_what_is_kept(root: Path, tmp_path: Path) -> None:
    path = kept_from(root, tmp_path / "earlier.json", "ind")
    content = json.loads(path.read_text())
    content["cells"][0]["parameters"] = -1
    path.write_text(json.dumps(content))
    found = run(
        read_config(root / "grid.toml"), trained(root, tmp_path / "out"), stages=["report"], keep=path
    )
    assert found["kept"] == [] and all(row["parameters"] > 0 for row in found["cells"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"options": {"rank": 3}}, "'cp2' was made with options.rank 3, not 2: it has no place in this grid"),
        ({"options": {"learning_rate": 0.5}}, "'cp2' was made with options.learning_rate 0.5, not "),
        ({"options": None}, "'cp2' does not say what it was trained with: train it again"),
        ({"data": "another"}, "'cp2' was kept from training on other text"),
    ],
)
def test_rows_of_another_grid_are_refused(
    root: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    path = kept_from(root, tmp_path / "earlier.json", "cp2")
    content = json.loads(path.read_text())
    row = content["cells"][0]
    if "options" in change and change["options"] is None:
        del row["options"]
    else:
        row |= change | ({"options": row["options"] | change["options"]} if "options" in change else {})
    path.write_text(json.dumps(content))
    result = command(root / "grid.toml", "--out", tmp_path / "out", "--keep", path, "--stage", "train")
    assert result.exit_code == 2 and message in result.output


@pytest.mark.parametrize("content", [None, "{", "[]", '{"cells": []}'])
def test_only_results_of_a_grid_can_be_kept(root: Path, tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "earlier.json"
    if content is not None:
        path.write_text(content)
    result = command(root / "grid.toml", "--out", tmp_path / "out", "--keep", path)
    assert result.exit_code == 2
    assert "give the results.json of `python -m lab grid`" in result.output
    assert not (tmp_path / "out").exists()

"""The release script: its configurations speak the commands' language, and what is done is not redone."""

from __future__ import annotations

import importlib.util
import json
import sys
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from typer.main import get_command

from polydraft.cli import app
from polydraft.training.options import TrainOptions

ROOT = Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "lab/configs/release").glob("*.toml"))


@pytest.fixture
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("release", ROOT / "scripts/train_release_heads.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def flags(command: str) -> set[str]:
    whole: Any = get_command(app)
    return {flag for parameter in whole.commands[command].params for flag in parameter.opts}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_configurations_name_options_of_the_commands(path: Path) -> None:
    config = tomllib.loads(path.read_text())
    for command, table in (("collect", config.get("collect", {})), ("bench", config["bench"])):
        assert {"--" + key.replace("_", "-") for key in table if key != "workers"} <= flags(command)
    earlier: set[str] = {config["model"]}  # the head that ships, to train on
    for stage in config["stages"]:
        options = config["train"] | stage
        name = f"{config['folder']}/{options.pop('name')}"
        assert {"--" + key.replace("_", "-") for key in options} <= flags("train")
        assert options.get("init_from", name) in {*earlier, name}
        earlier.add(name)
        rest = {"data", "cache_hidden", "threads", "init_from", "rank"}
        TrainOptions(**{key: value for key, value in options.items() if key not in rest})


def test_words_of_a_command(script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("b.jsonl", "a.jsonl"):
        (tmp_path / name).touch()
    options = {"batch_size": 8, "data": ["*.jsonl"], "packing": True, "fsdp": False, "temperature": [0, 1]}
    assert script.words(options) == (
        "--batch-size 8 --data a.jsonl --data b.jsonl --packing --temperature 0 --temperature 1".split()
    )
    with pytest.raises(SystemExit, match="no file like"):
        script.words({"data": "none-*.jsonl"})


def test_stages_in_order_and_none_twice(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    given: list[tuple[str, ...]] = []

    def run(*arguments: str) -> None:
        given.append(arguments)
        if arguments[0] == "train":
            out = Path(arguments[arguments.index("--out") + 1])
            out.mkdir(parents=True)
            (out / "config.json").touch()
        else:
            lengths = {"all": {"mean_acceptance_length": 2.0}}
            Path(arguments[arguments.index("--json") + 1]).write_text(json.dumps(lengths))

    monkeypatch.setattr(script, "run", run)
    (tmp_path / "config.toml").write_text(
        'model = "m"\nfolder = "runs"\n[train]\nhorizon = 2\n[[stages]]\nname = "one"\n'
        '[[stages]]\nname = "two"\ninit_from = "runs/one"\n[bench]\nprompts = "validation"\n'
    )
    monkeypatch.setattr(sys, "argv", ["script", "config.toml"])
    script.main()
    assert [call[0] for call in given] == ["train", "train", "bench", "bench"]
    assert given[1] == tuple("train --model m --out runs/two --horizon 2 --init-from runs/one".split())
    given.clear()
    script.main()
    assert given == []

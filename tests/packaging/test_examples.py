"""The examples run: by day in this process with a tiny model, at night as they stand with less to do."""

from __future__ import annotations

import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from polydraft.loading import load_model
from tests.packaging.conftest import ROOT
from tests.tiny import tiny_head

Example = Callable[..., str]
"""Runs one with the words of a command, and gives what it says."""
AT_NIGHT = [pytest.mark.nightly, pytest.mark.slow, pytest.mark.real_model]


@pytest.fixture
def tiny(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Example:
    model, tokenizer = load_model(str(model_folder), dtype=torch.float32)
    tiny_head(model, tokenizer=tokenizer).save_pretrained(tmp_path / "tiny-head")
    monkeypatch.setenv("POLYDRAFT_CACHE", str(tmp_path / "cache"))

    def run(name: str, *words: str | Path, head: bool = True) -> str:
        given = ["--model", model_folder, *(["--head", tmp_path / "tiny-head"] if head else [])]
        monkeypatch.setattr(sys, "argv", [name, *map(str, [*words, *given])])
        runpy.run_path(str(ROOT / "examples" / name), run_name="__main__")
        return capsys.readouterr().out

    return run


@pytest.fixture
def embedded() -> Example:
    def run(name: str, *words: str | Path, head: bool = True) -> str:
        command = [sys.executable, str(ROOT / "examples" / name), *map(str, words)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.fixture(params=["tiny", pytest.param("embedded", marks=AT_NIGHT)])
def example(request: pytest.FixtureRequest) -> Example:
    found: Example = request.getfixturevalue(request.param)
    return found


@pytest.mark.parametrize("temperature", [0, 1])
def test_generate_faster(example: Example, temperature: float) -> None:
    said = example("generate_faster.py", "Hi!", "--max-new-tokens", "8", "--temperature", str(temperature))
    assert "tokens a step" in said
    assert "the same text: " in said


def test_train_a_head(example: Example, tmp_path: Path) -> None:
    text, out = tmp_path / "text", tmp_path / "head"
    text.mkdir()
    for number in range(6):
        lines = [f"{i} and {number} are {i + number}." for i in range(40)]
        (text / f"{number}.txt").write_text("\n".join(lines))
    said = example("train_a_head.py", text, "--out", out, "--steps", "2", head=False)
    assert "tokens a step while generating" in said
    assert {"config.json", "model.safetensors", "README.md"} <= {path.name for path in out.iterdir()}


def test_chat(example: Example) -> None:
    words = ("chat.py", "Name three primes.", "Why?", "--max-new-tokens", "8")
    said = example(*words)
    assert said.count("tokens a step") == 2
    assert example(*words) == said

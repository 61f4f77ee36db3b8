"""The examples run as they stand, with less to do."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.packaging.conftest import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.real_model]


def example(name: str, *args: str | Path) -> str:
    command = [sys.executable, str(ROOT / "examples" / name), *map(str, args)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("temperature", [0, 1])
def test_generate_faster(temperature: float) -> None:
    said = example("generate_faster.py", "Hi!", "--max-new-tokens", "8", "--temperature", str(temperature))
    assert "tokens a step" in said
    assert "the same text: " in said


def test_train_a_head(tmp_path: Path) -> None:
    for number in range(6):
        (tmp_path / f"{number}.txt").write_text(
            "\n".join(f"{i} and {number} are {i + number}." for i in range(40))
        )
    said = example("train_a_head.py", tmp_path, "--out", tmp_path / "head", "--steps", "2")
    assert "tokens a step while generating" in said
    assert {"config.json", "model.safetensors", "README.md"} <= {
        p.name for p in (tmp_path / "head").iterdir()
    }


def test_chat() -> None:
    said = example("chat.py", "Name three primes.", "Why?", "--max-new-tokens", "8")
    assert said.count("tokens a step") == 2
    assert example("chat.py", "Name three primes.", "Why?", "--max-new-tokens", "8") == said

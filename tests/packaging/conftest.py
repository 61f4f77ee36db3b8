"""Heads in folders, and a hub on this machine."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
import torch
from transformers.utils import hub as transformers_hub

from polydraft.loading import load_model
from tests.packaging.fake_hub import TOKEN, FakeHub, running_hub
from tests.tiny import tiny_folder, tiny_head

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("packaging") / "model")


@pytest.fixture
def head(model_folder: Path, tmp_path: Path) -> Path:
    """Folder of a head with provenance, as training leaves it, and what it leaves beside."""
    model, tokenizer = load_model(str(model_folder), dtype=torch.float32)
    made = tiny_head(
        model,
        tokenizer=tokenizer,
        draft_vocab_size=100,
        provenance={
            "command": "polydraft train --steps 30",
            "data": "0123abc",
            "versions": {"torch": "2.13.0"},
            "training_tokens": 12345,
            "held_out": {"greedy_acceptance_length": 1.75, "coverage": 0.5, "nll_1": 2.5, "nll_3": 4.25},
        },
    )
    folder = tmp_path / "head"
    made.save_pretrained(folder)
    (folder / "run.json").write_text("{}")
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "config.json").write_text("{}")
    return folder


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A hub that huggingface_hub and transformers use in this process, with an empty cache and a token."""
    constants = huggingface_hub.constants
    with running_hub() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.address)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.address + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(transformers_hub, "_hf_api", None, raising=False)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield hub


@pytest.fixture(scope="session")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the source distribution, and the wheel built from it."""
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    return out

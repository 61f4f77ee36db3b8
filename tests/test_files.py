"""A full disk and damaged records are one line each, whoever wrote or reads them."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors import SafetensorError

from polydraft.errors import InputError, PolydraftError
from polydraft.files import saving
from polydraft.hub.history import training
from polydraft.training.folder import check_folder
from polydraft.training.shards import record_recipe

FULL = [
    SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 12160 vs 12048"),
    RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed\nFrame #0"),
]


@pytest.mark.parametrize("error", FULL)
def test_a_full_disk_is_one_line(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(PolydraftError) as found, saving(tmp_path / "out"):
        raise error
    assert "make room on the disk and run the same again" in str(found.value)
    assert "\n" not in str(found.value)


def test_other_errors_keep_their_traceback(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="shapes differ"), saving(tmp_path):
        raise RuntimeError("shapes differ")


def test_damaged_records_are_named(tmp_path: Path) -> None:
    for name in ("run.json", "recipe.json", "training.json"):
        (tmp_path / name).write_text('{"options": ')
    with pytest.raises(InputError, match=r"run\.json: not JSON"):
        check_folder(tmp_path, {"options": {}}, resume=True)
    with pytest.raises(InputError, match=r"recipe\.json: not JSON"):
        record_recipe(tmp_path, {}, {})
    with pytest.raises(InputError, match=r"training\.json: not JSON"):
        training(tmp_path, {"provenance": None, "horizon": 1})

"""The pictures of docs/maths.md; its numbers are run by `test_run`."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pytest

from tests.docs.pages import ROOT


@pytest.fixture
def drawing() -> Any:
    mpl.use("svg")
    spec = importlib.util.spec_from_file_location("draw_maths", ROOT / "scripts" / "draw_maths.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_script_draws_all_that_the_page_shows(drawing: Any, tmp_path: Path) -> None:
    shown = set(re.findall(r"!\[[^\]]+\]\(maths/([\w-]+\.svg)\)", (ROOT / "docs" / "maths.md").read_text()))
    assert (
        shown
        == {path.name for path in drawing.draw(tmp_path)}
        == {p.name for p in (ROOT / "docs" / "maths").iterdir()}
    )


def test_equal_numbers_give_equal_files(drawing: Any, tmp_path: Path) -> None:
    drawing.PICTURES = {"hull": drawing.hull}
    for first, second in zip(drawing.draw(tmp_path / "a"), drawing.draw(tmp_path / "b"), strict=True):
        assert first.read_bytes() == second.read_bytes()

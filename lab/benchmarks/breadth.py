"""Tokens per step of heads by kind of prompt, at fixed sizes, by replay along texts the base model wrote.

    python -m lab.benchmarks.breadth smollm2-135m-instruct --texts runs/breadth \
        --out docs/results/breadth.json

Nothing is timed and no policy chooses a size: chains of the head's horizon and trees of `--nodes` nodes,
greedy and at T = 1 (there the drawn forms, whose law is that of decoding). `--texts` is the folder of a grid:
its continuations are taken, or written first. Intervals are 95%, bootstrap over prompts within their kinds;
ratios are to the first head, paired.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

from lab.benchmarks.common import continuations, save, table
from lab.benchmarks.tree_acceptance import Survive, chain, chosen, drawn, sampled_chain, walks
from lab.grid.figures import ALL, Bootstrap, Counts, lengths
from lab.grid.targets import Target
from polydraft.bench.prompts import prompts_path, read_prompts
from polydraft.loading import load_head, load_model, set_threads


def ways(nodes: int) -> dict[str, tuple[bool, Survive]]:
    """By name: whether the texts are sampled, and how drafts survive along them."""
    return {
        "trees, greedy": (False, chosen(nodes)),
        "chains, greedy": (False, chain),
        "trees, T = 1": (True, drawn(nodes)),
        "chains, T = 1": (True, sampled_chain),
    }


def main() -> None:
    """Replay all heads, print and save the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("heads", nargs="+", help="folders or names; the first is what the others are held to")
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--prompts", default="breadth-heldout", help="a file, or the name of a shipped one")
    parser.add_argument("--texts", type=Path, required=True)
    parser.add_argument("--nodes", type=int, default=12, help="of a tree")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="a JSON file for the figures")
    given = parser.parse_args()
    set_threads(given.threads)
    model, tokenizer = load_model(given.model, dtype=torch.bfloat16)
    texts_of = continuations(given.model, given.texts, Target(model, tokenizer), prompts=given.prompts)
    kinds = [prompt.kind for prompt in read_prompts(prompts_path(given.prompts))]
    bootstrap = Bootstrap.draw(kinds, draws=2000, seed=0)
    rows: list[dict[str, Any]] = []
    first: dict[str, Counts] = {}
    for name in given.heads:
        head = load_head(name, model=model, tokenizer=tokenizer)
        every = texts_of(head.config.layers)
        for way, (sampled, survive) in ways(given.nodes).items():
            torch.manual_seed(0)
            texts = [item for item in every if item.sampled == sampled]
            found = walks(head, [item.text for item in texts], survive)
            walked = [{"prompt": item.prompt} | vars(w) for item, w in zip(texts, found, strict=True)]
            counts = Counts.of(walked, len(kinds))
            groups = lengths(counts, bootstrap, first.setdefault(way, counts))
            rows.append({"head": name, "way": way, "groups": groups})
    if given.out is not None:
        save(given.out, settings=vars(given), rows=rows)
    print(by_kind(rows, many=len(given.heads) > 1))


def by_kind(rows: list[dict[str, Any]], *, many: bool) -> str:
    """A Markdown table: a line per kind, all first, a column per head and way."""
    names = {row["head"]: Path(row["head"]).name for row in rows}

    def cell(found: dict[str, Any], *, whole: bool) -> str:
        low, high = found["interval"]
        return f"{found['length']:.2f} [{low:.2f}, {high:.2f}]" if whole else f"{found['length']:.2f}"

    def heading(row: dict[str, Any]) -> str:
        return f"{names[row['head']]}: {row['way']}" if many else row["way"]

    return table(
        [
            {"kind": kind}
            | {
                heading(row): cell(row["groups"][kind], whole=kind == ALL)
                for row in rows
                if kind in row["groups"]
            }
            for kind in rows[0]["groups"]
        ]
    )


if __name__ == "__main__":
    main()

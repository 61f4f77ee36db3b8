"""Trained heads judged on the same continuations, without decoding, and held to the first of them.

    python -m lab.benchmarks.replay_heads --model smollm2-135m-instruct --texts runs/family \
        --out docs/results/heads.json \
        runs/release/block-independent-longer runs/release/block-markov

`--texts` is the folder of a grid (`python -m lab grid`): its continuations are taken, or written first.
Tokens and drafts accepted per step come from the walk of `evaluation.replay`, at T = 1 token by token;
intervals are 95%, bootstrap over prompts, paired for ratios.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

from lab.benchmarks.common import continuations, save, table
from lab.grid.acceptance import walk_rows
from lab.grid.figures import ALL, Bootstrap, Counts, conditional, interval, lengths
from lab.grid.targets import Target
from polydraft.bench.prompts import prompts_path, read_prompts
from polydraft.loading import load_head, load_model, set_threads


def drafts_ratio(counts: Counts, reference: Counts, bootstrap: Bootstrap) -> dict[str, Any]:
    """Drafts accepted per step, tokens / cycles - 1, over the reference's, with a paired interval."""
    mask = torch.ones(len(bootstrap.kinds), dtype=torch.bool)
    drawn = [bootstrap.sums(c.tokens, mask) / bootstrap.sums(c.cycles, mask) - 1 for c in (counts, reference)]
    whole = [float(c.tokens.sum() / c.cycles.sum()) - 1 for c in (counts, reference)]
    return {"drafts_ratio": whole[0] / whole[1], "drafts_ratio_interval": interval(drawn[0] / drawn[1])}


def main() -> None:
    """Replay all heads, print and save the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("heads", nargs="+", help="folders or names; the first is what the others are held to")
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--texts", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    set_threads(given.threads)
    model, tokenizer = load_model(given.model, dtype=torch.bfloat16)
    texts_of = continuations(given.model, given.texts, Target(model, tokenizer))
    prompts = read_prompts(prompts_path("heldout"))
    bootstrap = Bootstrap.draw([prompt.kind for prompt in prompts], draws=2000, seed=0)
    rows: list[dict[str, Any]] = []
    first: dict[str, Counts] = {}
    for name in given.heads:
        head = load_head(name, model=model, tokenizer=tokenizer)
        texts = texts_of(head.config.layers)
        for mode in ("greedy", "sampled"):
            found = walk_rows(head, texts, mode=mode)
            counts = Counts.of(found, len(prompts))
            reference = first.setdefault(mode, counts)
            rows.append(
                {"head": name, "mode": mode, "conditional": conditional(found)}
                | {"groups": lengths(counts, bootstrap, reference)}
                | drafts_ratio(counts, reference, bootstrap)
            )
    save(given.out, settings=vars(given), rows=rows)
    print(table([summary(row) for row in rows]))


def summary(row: dict[str, Any]) -> dict[str, str]:
    """The row as the table shows it."""
    low, high = row["drafts_ratio_interval"]
    kinds = {kind: f"{found['length']:.3f}" for kind, found in row["groups"].items()}
    return {
        "head": Path(row["head"]).name,
        "mode": row["mode"],
        "tokens per step": kinds.pop(ALL),
        **kinds,
        "accepted in turn": " ".join(f"{p:.2f}" for p in row["conditional"]),
        "drafts accepted, ratio": f"{row['drafts_ratio']:.3f} [{low:.3f}, {high:.3f}]",
    }


if __name__ == "__main__":
    main()

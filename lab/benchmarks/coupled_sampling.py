"""Draws coupled by noise of a place in the text, against drafts that are drawn and verified token by token.

    python -m lab.benchmarks.coupled_sampling --model smollm2-135m-instruct --head smollm2-135m-instruct \
        --prompts validation --samples 2 --tokens 96 --json out.json

Each prompt is continued at T = 1 in turn: plainly, with drawn drafts, and with coupled ones (`GumbelNoise`),
as chains of the head's horizon and as trees; the order of the ways turns from prompt to prompt. Tokens a step
are over all texts, with bootstrap intervals over prompts; times are of whole texts, as ratios to the plain
one beside it, their median over the texts.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

import polydraft
from lab.benchmarks.common import quartiles, save, table
from polydraft.bench.prompts import prompts_path, read_prompts
from polydraft.decoding import DecodingStatistics
from polydraft.heads import DraftHead
from polydraft.loading import load_head, load_model

RESAMPLES = 2000


def ways(nodes: int, horizon: int) -> dict[str, dict[str, Any]]:
    """Options of `polydraft.generate` by name."""
    chain, tree = {"drafting": "chain", "draft_length": horizon}, {"drafting": "tree", "draft_length": nodes}
    return {
        "plain": {"draft_length": 0, "coupled": False},
        "chain, drawn": chain | {"coupled": False},
        "chain, coupled": chain | {"coupled": True},
        "tree, drawn": tree | {"coupled": False},
        "tree, coupled": tree | {"coupled": True},
    }


def write(
    model: PreTrainedModel,
    head: DraftHead,
    ids: torch.Tensor,
    *,
    tokens: int,
    seed: int,
    coupled: bool,
    **given: Any,
) -> DecodingStatistics:
    """One text."""
    random = {"seed": seed} if coupled else {"generator": torch.Generator().manual_seed(seed)}
    out = polydraft.generate(
        model,
        head,
        ids,
        max_new_tokens=tokens,
        do_sample=True,
        top_k=0,
        top_p=1.0,
        temperature=1.0,
        **random,
        **given,
    )
    assert out.statistics is not None
    return out.statistics


def interval(texts: list[list[DecodingStatistics]]) -> tuple[float, float, float]:
    """Tokens a step over the texts of all prompts, and a 95% bootstrap interval over prompts."""
    counts = torch.tensor(
        [[sum(s.steps for s in some), sum(s.accepted_tokens for s in some)] for some in texts],
        dtype=torch.float64,
    )
    picks = torch.randint(len(counts), (RESAMPLES, len(counts)), generator=torch.Generator().manual_seed(0))
    steps, accepted = counts[picks].sum(1).T
    low, high = (1 + accepted / steps).quantile(torch.tensor([0.025, 0.975]).double()).tolist()
    total = counts.sum(0)
    return 1 + float(total[1] / total[0]), low, high


def main() -> None:
    """Run and write the figures."""
    parser = argparse.ArgumentParser(description="Coupled draws against drawn drafts.")
    parser.add_argument("--model", required=True)
    parser.add_argument("--head", required=True)
    parser.add_argument("--prompts", default="validation")
    parser.add_argument("--samples", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--nodes", type=int, default=16)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    model, tokenizer = load_model(given.model, dtype=torch.bfloat16)
    head = load_head(given.head, model=model, tokenizer=tokenizer)
    every = ways(given.nodes, head.config.horizon)
    texts: dict[str, list[list[DecodingStatistics]]] = {name: [] for name in every}
    ratios: dict[str, list[float]] = {name: [] for name in every}
    names = list(every)
    for number, prompt in enumerate(read_prompts(prompts_path(given.prompts))):
        ids = torch.tensor([prompt.encode(tokenizer)])
        for name in names:
            texts[name].append([])
        for sample in range(given.samples):
            turn = (number + sample) % len(names)
            seconds = {}
            for name in names[turn:] + names[:turn]:
                seed = 1000 * sample + number
                found = write(model, head, ids, tokens=given.tokens, seed=seed, **every[name])
                texts[name][-1].append(found)
                seconds[name] = found.seconds / (found.steps + found.accepted_tokens + 1)
            for name in names:
                ratios[name].append(seconds["plain"] / seconds[name])
        print(number, {name: round(interval(texts[name])[0], 3) for name in names}, flush=True)
    rows = []
    for name in names:
        mean, low, high = interval(texts[name])
        rows.append(
            {
                "way": name,
                "tokens_a_step": round(mean, 3),
                "low": round(low, 3),
                "high": round(high, 3),
                "times_plain": round(quartiles(ratios[name])["median"], 3),
            }
        )
    print(table(rows))
    if given.json is not None:
        save(given.json, settings={k: v for k, v in vars(given).items() if k != "json"}, rows=rows)


if __name__ == "__main__":
    main()

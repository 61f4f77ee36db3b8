"""What a head that knows nothing costs: plain decoding and the shipped head with shuffled weights, in turn.

    python -m lab.benchmarks.useless_head --tokens 128 --prompts-count 12 --out docs/results/useless-head.json

Every weight of the head is shuffled, so that drafting takes as long as ever and hardly a draft is kept. Run
`polydraft doctor` first on a quiet machine: generation goes by the costs it leaves.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import median

import torch

from lab.benchmarks.common import save, table
from polydraft.bench.prompts import prompts_path, read_prompts
from polydraft.bench.runs import Run, Sampling, run_drafted, run_plain
from polydraft.heads import DraftHead
from polydraft.loading import load_head, load_model, set_threads


@torch.no_grad()
def shuffle(head: DraftHead) -> None:
    """Put the numbers of each weight in a random order."""
    for parameter in head.parameters():
        parameter.copy_(parameter.flatten()[torch.randperm(parameter.numel())].view_as(parameter))


def main() -> None:
    """Time both, print and save the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--head", default="smollm2-135m-instruct")
    parser.add_argument("--prompts", default="heldout")
    parser.add_argument("--prompts-count", type=int, default=12)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    set_threads(given.threads)
    torch.manual_seed(0)
    model, tokenizer = load_model(given.model, dtype=torch.bfloat16)
    head = load_head(given.head, model=model, tokenizer=tokenizer)
    shuffle(head)
    every = read_prompts(prompts_path(given.prompts))
    prompts = [prompt.encode(tokenizer) for prompt in every[:: max(1, len(every) // given.prompts_count)]]
    rows = []
    for temperature in (0.0, 1.0):
        sampling = Sampling(max_new_tokens=given.tokens, temperature=temperature)
        run_plain(model, tokenizer, prompts[0], sampling)
        run_drafted(model, head, tokenizer, prompts[0], sampling)
        pairs: list[tuple[Run, Run]] = []
        for turn, ids in enumerate(prompts[: given.prompts_count]):
            if turn % 2:
                drafted = run_drafted(model, head, tokenizer, ids, sampling)
                pairs.append((run_plain(model, tokenizer, ids, sampling), drafted))
            else:
                plain = run_plain(model, tokenizer, ids, sampling)
                pairs.append((plain, run_drafted(model, head, tokenizer, ids, sampling)))
        seconds = [(p.seconds / len(p.tokens), d.seconds / len(d.tokens)) for p, d in pairs]
        rows.append(
            {
                "temperature": temperature,
                "plain_ms": round(1000 * median(p for p, _ in seconds), 2),
                "drafted_ms": round(1000 * median(d for _, d in seconds), 2),
                "drafted_over_plain": round(median(d / p for p, d in seconds), 3),
                "drafts_per_token": round(
                    sum(d.statistics.drafted_tokens for _, d in pairs if d.statistics is not None)
                    / sum(len(d.tokens) for _, d in pairs),
                    3,
                ),
            }
        )
    save(given.out, settings=vars(given), rows=rows)
    print(table(rows))


if __name__ == "__main__":
    main()

"""Block against token-wise verification on the same drafts of the same head.

    python -m lab.benchmarks.block_verification --model smollm2-135m-instruct --head smollm2-135m-instruct \
        --prompts heldout --tokens 64 --json out.json

Drafted decoding runs at T = 1, prompts alternating between the two verifications. Every step is judged
both ways without drawing: with path_i = prod_{j<=i} min(1, p/q) and p_i of `decoding.block`, the expected
number of drafts kept is sum_i path_i token by token, and sum_i p_i as a block (p_i >= path_i always).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from polydraft.bench.prompts import prompts_path, read_prompts
from polydraft.bench.runs import Sampling, run_drafted
from polydraft.decoding import engine
from polydraft.decoding.verify import Verified
from polydraft.files import write_atomic
from polydraft.loading import load_head, load_model
from polydraft.modes import VERIFICATIONS


class Judge:
    """A verification that also notes what either would keep of each step, in expectation."""

    def __init__(self, verify: Callable[..., Verified]) -> None:
        self.verify = verify
        self.steps: list[tuple[float, float]] = []

    def __call__(
        self,
        target_row: Callable[[int], Tensor],
        drafts: Sequence[int],
        draft_index: Tensor,
        draft_log_rows: Tensor,
        draft_ids: Tensor,
        **options: Any,
    ) -> Verified:
        """As `verify_sampled` and `verify_block`."""
        path = block = 1.0
        kept = [0.0, 0.0]
        for i, draft in enumerate(drafts):
            ratio = float(target_row(i)[draft]) / float(draft_log_rows[i, draft_index[i]].exp())
            path, block = path * min(1.0, ratio), min(1.0, block * ratio)
            kept = [kept[0] + path, kept[1] + block]
        self.steps.append((kept[0], kept[1]))
        return self.verify(target_row, drafts, draft_index, draft_log_rows, draft_ids, **options)


def main() -> None:
    """Run and write the figures."""
    parser = argparse.ArgumentParser(description="Block against token-wise verification.")
    parser.add_argument("--model", required=True)
    parser.add_argument("--head", required=True)
    parser.add_argument("--prompts", default="heldout")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    model, tokenizer = load_model(given.model, dtype=torch.bfloat16)
    head = load_head(given.head, model=model, tokenizer=tokenizer)
    judges = {name: Judge(engine.SAMPLED[name]) for name in VERIFICATIONS}
    engine.SAMPLED.update(judges)
    for number, prompt in enumerate(read_prompts(prompts_path(given.prompts))):
        for name in VERIFICATIONS:
            sampling = Sampling(
                max_new_tokens=given.tokens,
                temperature=1.0,
                torch_seed=given.seed + number,
                verification=name,
                drafting="chain",
                draft_length=head.config.horizon,
            )
            run_drafted(model, head, tokenizer, prompt.encode(tokenizer), sampling)
    steps = torch.tensor([step for judge in judges.values() for step in judge.steps], dtype=torch.float64)
    gain = steps[:, 1] - steps[:, 0]
    figures = {
        "steps": len(steps),
        "token": 1 + float(steps[:, 0].mean()),
        "block": 1 + float(steps[:, 1].mean()),
        "gain": float(gain.mean()),
        "gain_standard_error": float(gain.std() / len(gain) ** 0.5),
        "smallest_gain": float(gain.min()),
        "share_of_steps_that_gain": float((gain > 1e-6).double().mean()),
    }
    print(json.dumps(figures, indent=1))
    if given.json is not None:
        write_atomic(
            given.json,
            json.dumps(figures | {k: v for k, v in vars(given).items() if k != "json"}, indent=1) + "\n",
        )


if __name__ == "__main__":
    main()

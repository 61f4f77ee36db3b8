"""Everything once on a real GPU: exactness, speeds eager and compiled, one training. Under eight minutes.

    python scripts/check_gpu.py --out DIR [--model NAME --head NAME] [--quick]

It needs no network. Without a GPU it refuses; `--device cpu --quick` tries out the script itself (four
minutes). Each part prints a line that begins with ok or FAILED, the figures lie in DIR, and the exit code is
1 if any part failed. `tests/elsewhere.py` checks without a GPU that devices do not mix.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import polydraft
from polydraft.bench.prompts import read_prompts
from polydraft.bench.runs import Sampling, run_drafted, run_plain
from polydraft.loading import default_device, load_head, load_model

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from tests.joint.enumeration import chi_square_p_value, count_sequences, enumerate_tokens  # noqa: E402
from tests.tiny import tiny_head, tiny_model  # noqa: E402

PROMPTS = ROOT / "prompts" / "validation.jsonl"
WAYS: dict[str, dict[str, Any]] = {
    "chain of four": {"drafting": "chain", "draft_length": 4},
    "tree of twelve": {"drafting": "tree", "draft_length": 12},
    "copied drafts": {"prompt_lookup_num_tokens": 5},
    "compiled tree": {"drafting": "tree", "draft_length": 12, "compiled": True},
}
FALSE_ALARM_RATE = 1e-4
"""Of one chi-square test."""


def greedy_texts(args: argparse.Namespace) -> list[str]:
    """Texts in float32, plain and drafted; of each way the prompts whose texts differ."""
    model, tokenizer = load_model(args.model, dtype=torch.float32)
    head = load_head(args.head, model=model, tokenizer=tokenizer)
    prompts = read_prompts(PROMPTS)[:: 12 if args.quick else 3]
    tokens = 16 if args.quick else 96
    wrong = []
    for name, way in WAYS.items():
        greedy = Sampling(max_new_tokens=tokens, **way)
        seeded = Sampling(max_new_tokens=tokens, temperature=0.8, top_p=0.95, seed=1, **way)
        for prompt in prompts:
            ids = prompt.encode(tokenizer)
            drafted = run_drafted(model, head, tokenizer, ids, greedy)
            if drafted.tokens != run_plain(model, tokenizer, ids, greedy).tokens:
                wrong.append(f"{name}, greedily: {prompt.where}")
            without = replace(seeded, draft_length=0, prompt_lookup_num_tokens=None)
            sampled, undrafted = (run_drafted(model, head, tokenizer, ids, one) for one in (seeded, without))
            if sampled.tokens != undrafted.tokens:
                wrong.append(f"{name}, with a seed: {prompt.where}")
    return wrong


def sampled_texts(args: argparse.Namespace) -> list[str]:
    """Chi-square of three sampled tokens against their enumerated distribution, on a tiny model."""
    size, length, rows, rounds = 5, 3, 256, 2 if args.quick else 16
    model = tiny_model(vocab_size=size)
    texts = torch.tensor(enumerate_tokens(size, length))
    prompt = torch.tensor([[1, 3, 2]])
    with torch.no_grad():
        rows_of = model(torch.cat([prompt.expand(len(texts), -1), texts], 1)).logits.double().log_softmax(-1)
    expected = rows_of[:, 2:-1].gather(-1, texts[..., None])[..., 0].sum(-1).exp() * rows * rounds
    head = tiny_head(model, horizon=3, joint="cp")
    model.to(default_device())
    head.attach(model)
    wrong = []
    for name in ("chain", "tree"):
        torch.manual_seed(0)
        drawn = []
        for _ in range(rounds):
            given = {"do_sample": True, "max_new_tokens": length, "pad_token_id": 0, "drafting": name}
            ids = prompt.to(model.device).expand(rows, -1)
            out = polydraft.generate(model, head, ids, attention_mask=torch.ones_like(ids), **given)
            drawn.append(out.sequences[:, prompt.shape[1] :].cpu())
        counts = count_sequences(torch.cat(drawn).numpy(), size).ravel()
        chance = chi_square_p_value(counts, expected.numpy())
        if chance < FALSE_ALARM_RATE:
            wrong.append(f"{name}: chi-square test, p = {chance:.1e}")
    return wrong


def command(*words: str) -> list[str]:
    """Run `polydraft`; its failure as a line."""
    print("$", shlex.join(["polydraft", *words]), flush=True)
    code = subprocess.run([sys.executable, "-m", "polydraft", *words], check=False).returncode
    return [f"polydraft {words[0]} ended with exit code {code}"] if code else []


def speeds(args: argparse.Namespace, *more: str, name: str) -> list[str]:
    """`polydraft bench` in bfloat16; its ratio is printed."""
    prompts = args.out / "prompts.jsonl"
    lines = PROMPTS.read_text().splitlines()[:: 12 if args.quick else 3]
    prompts.write_text("\n".join(lines) + "\n")
    report = args.out / f"{name}.json"
    tokens = "16" if args.quick else "128"
    base = ["--model", args.model, "--head", args.head, "--prompts", str(prompts), "--max-new-tokens", tokens]
    failed = command("bench", *base, "--json", str(report), *more)
    if not failed:
        print(f"{name}: {json.loads(report.read_text())['all']['ratio']:.2f} times as fast as without drafts")
    return failed


def training(args: argparse.Namespace) -> list[str]:
    """The model writes text, and a fresh head learns from it: its loss must fall below its first."""
    text, head = args.out / "text", args.out / "head"
    tokens, steps = ("16", "4") if args.quick else ("96", "200")
    written = command(
        "collect", "--model", args.model, "--prompts", str(PROMPTS), "--out", str(text),
        "--max-new-tokens", tokens, "--batch-size", "24",
    )  # fmt: skip
    if written:
        return written
    failed = command(
        "train", "--model", args.model, "--data", str(text), "--out", str(head), "--steps", steps, "--every",
        str(int(steps) // 2), "--batch-size", "4", "--draft-vocab-size", "4096", "--horizon", "3",
    )  # fmt: skip
    return failed or command("inspect", str(head))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for figures, text and the trained head"
    )
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--head", default="smollm2-135m-instruct")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--quick", action="store_true", help="little of everything, to try out the script")
    args = parser.parse_args()
    if args.device != default_device().type:
        print(f"this machine decodes on {default_device().type}, not on {args.device}", file=sys.stderr)
        return 2
    args.out.mkdir(parents=True, exist_ok=True)
    parts: dict[str, Callable[[], list[str]]] = {
        "texts in float32, greedy and with a seed": lambda: greedy_texts(args),
        "sampled texts": lambda: sampled_texts(args),
        "speed, eager": lambda: speeds(args, name="eager"),
        "speed, sampled": lambda: speeds(args, "--temperature", "1", name="sampled"),
        "speed, compiled": lambda: speeds(args, "--compile", name="compiled"),
        "training": lambda: training(args),
    }
    code = 0
    for name, part in parts.items():
        began = time.perf_counter()
        wrong = part()
        code = 1 if wrong else code
        print(f"{'FAILED' if wrong else 'ok'} {name} ({time.perf_counter() - began:.0f} s)", flush=True)
        print(*(f"    {line}" for line in wrong), sep="\n", end="\n" if wrong else "")
    return code


if __name__ == "__main__":
    sys.exit(main())

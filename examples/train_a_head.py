"""From a folder of text to a small head of your own, and what it brings.

    python examples/train_a_head.py src --out runs/my-head

A minute of training shows the way, not what a head can do: docs/training.md has the recipe, and text
that the model wrote itself (`polydraft collect`) teaches more.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch

import polydraft
from polydraft.hub import write_card
from polydraft.loading import load_model, set_threads
from polydraft.training.options import TrainOptions
from polydraft.training.run import train

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("text", type=Path, nargs="?", default=Path("src"), help=".txt, .jsonl, or a folder")
parser.add_argument("--out", type=Path, help="new folder for the head; by default one that is thrown away")
parser.add_argument("--model", default="smollm2-135m-instruct")
parser.add_argument("--joint", default="markov", help="independent, cp, hmm, tree, markov or cp-markov")
parser.add_argument("--rank", type=int, default=1, help="components of the joint")
parser.add_argument("--steps", type=int, default=80)
given = parser.parse_args()
out = given.out or Path(tempfile.mkdtemp()) / "head"

print(set_threads(None))
model, tokenizer = load_model(given.model, dtype=torch.bfloat16)
options = TrainOptions(
    joint=given.joint,
    rank=given.rank,
    horizon=3,
    map_rank=64,  # small maps: enough for a few steps
    feature_size=1152,
    draft_vocab_size=min(8192, model.config.vocab_size),
    steps=given.steps,
    warmup=given.steps // 10,
    every=given.steps,
    batch_size=4,
    max_length=192,
    anchors_per_window=64,  # positions of a text that are learnt from
    validation_windows=8,
    learning_rate=3e-3,
)
head = train(model, tokenizer, [given.text], out, options=options, on_note=print)
figures = head.config.provenance["held_out"]
print(f"held out: {figures['greedy_acceptance_length']:.2f} tokens a step, -log P {figures['nll']:.2f} nats")

# The head is attached to the model; `draft_length` asks for drafts whether they pay or not.
inputs = tokenizer(
    "from __future__ import annotations\n\nimport json\n\n\ndef read(path", return_tensors="pt"
).to(model.device)
said = polydraft.generate(model, head, **inputs, max_new_tokens=48, do_sample=False, draft_length=3)
print(tokenizer.decode(said.sequences[0]))
print(f"{said.statistics.mean_acceptance_length:.2f} tokens a step while generating")
print(f"head in {out}, its card in {write_card(out)}")

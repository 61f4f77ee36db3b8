"""The same text twice, plain and drafted, and what drafting brought.

python examples/generate_faster.py "Why is the sky blue?"
"""

from __future__ import annotations

import argparse
import time

import torch

import polydraft
from polydraft.loading import set_threads

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("question", nargs="?", default="Why is the sky blue?")
parser.add_argument("--model", default="smollm2-135m-instruct", help="folder, hub id or embedded name")
parser.add_argument("--head", default="smollm2-135m-instruct", help="of that model; also a folder or hub id")
parser.add_argument("--max-new-tokens", type=int, default=96)
parser.add_argument("--temperature", type=float, default=0.0)
given = parser.parse_args()

print(set_threads(None))
model, tokenizer, head = polydraft.load(given.model, given.head)
messages = [{"role": "user", "content": given.question}]
inputs = tokenizer.apply_chat_template(
    messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
).to(model.device)
options = {"max_new_tokens": given.max_new_tokens, "do_sample": given.temperature > 0}
if given.temperature > 0:
    options |= {"temperature": given.temperature, "top_k": 0}

# The first drafted call measures this machine, to know how many drafts pay: not part of the comparison.
polydraft.generate(model, head, **inputs, max_new_tokens=2, do_sample=False)

torch.manual_seed(0)
began = time.perf_counter()
plain = model.generate(**inputs, **options)
plain_seconds = time.perf_counter() - began

torch.manual_seed(0)
began = time.perf_counter()
drafted = polydraft.generate(model, head, **inputs, **options)
drafted_seconds = time.perf_counter() - began

start = inputs["input_ids"].shape[1]
print(tokenizer.decode(drafted.sequences[0, start:], skip_special_tokens=True))
speeds = (plain.shape[1] - start) / plain_seconds, (drafted.sequences.shape[1] - start) / drafted_seconds
print(
    f"\nplain {speeds[0]:.1f} tokens/s, drafted {speeds[1]:.1f} tokens/s, ratio {speeds[1] / speeds[0]:.2f}"
)
print(f"{drafted.statistics.mean_acceptance_length:.2f} tokens a step")
print("steps by drafts kept:", drafted.statistics.acceptance_histogram)
# Greedy texts are equal in float32; in bfloat16, rounding can part them. Sampled texts share a distribution.
print("the same text:", torch.equal(plain, drafted.sequences))

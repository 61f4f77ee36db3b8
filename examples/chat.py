"""A chat that shows where each token came from while the answer streams.

python examples/chat.py                          # asks until an empty line
python examples/chat.py "Name three primes." "Why those?"
"""

from __future__ import annotations

import argparse
from collections import Counter

from rich.console import Console
from rich.text import Text

import polydraft
from polydraft.bench.runs import pieces
from polydraft.decoding import LiveBatch, new_row

STYLES = {"drafted": "green", "correction": "red", "bonus": "yellow"}

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("questions", nargs="*", help="asked in turn; by default you are asked for them")
parser.add_argument("--model", default="smollm2-135m-instruct", help="folder, hub id or embedded name")
parser.add_argument("--head", default="smollm2-135m-instruct", help="of that model; also a folder or hub id")
parser.add_argument("--max-new-tokens", type=int, default=96)
parser.add_argument("--temperature", type=float, default=0.7)
given = parser.parse_args()

console = Console(highlight=False)
model, tokenizer, head = polydraft.load(given.model, given.head)
batch = LiveBatch(model, head, rows=1)  # a server takes more rows, and admits new ones between steps
console.print("[green]drafted and kept[/], [red]instead of a draft[/], [yellow]after the last draft kept[/]")

messages: list[dict[str, str]] = []
for question in given.questions or iter(lambda: console.input("[bold]you:[/] "), ""):
    messages.append({"role": "user", "content": question})
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)
    row = new_row(
        prompt["input_ids"],
        device=model.device,
        max_new_tokens=given.max_new_tokens,
        end_tokens=[tokenizer.eos_token_id],
        temperature=given.temperature,
        seed=len(messages),  # the same questions get the same answers, drafted or not
        trace=0,
    )
    batch.admit([row])  # reads the prompt and gives the first token; each step gives 1 or more
    shown = 0
    while shown < len(row.trace):
        texts = pieces(tokenizer, row.generated)
        for token, text in zip(row.trace[shown:], texts[shown:], strict=True):
            console.print(Text(text, STYLES.get(token.kind, "")), end="")
        shown = len(row.trace)
        batch.step()
    kinds = dict(Counter(token.kind for token in row.trace))
    console.print(f"\n[dim]{row.statistics.mean_acceptance_length:.2f} tokens a step; {kinds}[/]")
    answer = tokenizer.decode(row.generated, skip_special_tokens=True)
    messages.append({"role": "assistant", "content": answer})

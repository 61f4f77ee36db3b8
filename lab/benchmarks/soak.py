"""Many drafted generations of random form in one process: whether memory stays flat and texts stay right.

    OMP_WAIT_POLICY=PASSIVE python -m lab.benchmarks.soak --generations 2000 --out soak.json

Every generation draws its own batch, lengths of prompts, number of new tokens, way to draft and to verify,
temperature, end tokens, chunks of the prompt; one in twenty is ended by an exception from a logits processor
in the middle. Of a share of the greedy ones, every row is held against plain decoding of that row alone.

Without `--model` the base model is a small random one with a sliding window, and two random heads take turns,
one of which remembers the context. `memory` is the anonymous memory of the process (Linux) after cycles have
been collected and free memory handed back, in MiB, or with a GPU what torch has allocated there; `tensors` is
how many of them are alive. The slope is that of a straight line through the second half of the samples.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import io
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
)

import polydraft
from lab.benchmarks.common import random_head, save, table
from polydraft.files import write_atomic
from polydraft.heads import DraftHead
from polydraft.loading import load_head, load_model, parse_dtype

FAULTS = 0.05
"""Share of the generations that end by an exception."""
PADDING = 0


class FaultError(Exception):
    """What ends a generation on purpose."""


class Faulty(LogitsProcessor):
    """Changes nothing, and fails at its call number `left`."""

    stateless = True  # of its scores: when it fails is no matter of theirs

    def __init__(self, left: int) -> None:
        self.left = left

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        self.left -= 1
        if self.left == 0:
            raise FaultError
        return scores


@dataclass(frozen=True)
class Form:
    """One generation: prompts (L_b,), options of `polydraft.generate`, the call at which it fails, if any."""

    prompts: list[Tensor]
    options: dict[str, Any]
    fails_at: int | None


@dataclass
class Counts:
    """What has been done."""

    generations: int = 0
    rows: int = 0
    tokens: int = 0
    faults: int = 0
    checked: int = 0
    wrong: int = 0
    samples: list[dict[str, float]] = field(default_factory=list)

    @property
    def slope(self) -> float:
        """MiB per 1000 generations, by least squares over the second half of the samples."""
        half = self.samples[len(self.samples) // 2 :]
        x = torch.tensor([sample["generations"] for sample in half], dtype=torch.float64)
        y = torch.tensor([sample["memory"] for sample in half], dtype=torch.float64)
        x = x - x.mean()
        return float((x * y).sum() / (x * x).sum()) * 1000


def small_model() -> PreTrainedModel:
    """A random model in float32, far from uniform, whose first layer has a sliding window."""
    config = AutoConfig.for_model(
        "gemma3_text",
        vocab_size=256,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        layer_types=["sliding_attention", "full_attention"],
        sliding_window=16,
        initializer_range=0.5,
        eos_token_id=None,
    )
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    return model


def small_heads(model: PreTrainedModel) -> list[DraftHead]:
    """Random heads: one reads a position, the other the whole context."""
    block = {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48, "rope_theta": 1e4}
    shared: dict[str, Any] = {"draft_vocab_size": 200, "horizon": 4, "map_rank": 4, "feature_size": 16}
    return [
        random_head(model, joint="cp-markov", rank=2, features="fused", markov_rank=4, **shared),
        random_head(model, joint="cp", rank=2, features="block", block=block, **shared),
    ]


def draw_form(choose: random.Random, *, vocab_size: int, longest: int, new: int, rows: int) -> Form:
    """A generation of random form, of at most `rows` prompts of `longest` tokens and `new` more."""
    count = choose.randint(1, rows)
    lengths = [choose.randint(1, longest) for _ in range(count)]
    prompts = [torch.tensor(choose.choices(range(vocab_size), k=length)) for length in lengths]
    verification = choose.choice(["token", "block"])
    drafting = choose.choice(["chain", "tree"] if verification == "token" else ["chain"])
    options: dict[str, Any] = {
        "max_new_tokens": choose.randint(1, new),
        "do_sample": choose.random() < 0.5,
        "verification": verification,
        "drafting": drafting,
        "draft_length": choose.randint(0, 8),
        "prefill_chunk_size": choose.choice([None, 7, 64]),
        "pad_token_id": PADDING,
    }
    if options["do_sample"]:
        options |= {"temperature": choose.uniform(0.3, 1.5), "top_k": choose.choice([0, 20])}
    if choose.random() < 0.5:
        options["eos_token_id"] = choose.sample(range(vocab_size), max(vocab_size // 64, 1))
    return Form(prompts, options, choose.randint(1, 12) if choose.random() < FAULTS else None)


def run_form(model: PreTrainedModel, head: DraftHead, form: Form) -> list[list[int]] | None:
    """The new tokens of every row, padding included; None where it failed on purpose."""
    longest = max(len(prompt) for prompt in form.prompts)
    ids = torch.full((len(form.prompts), longest), PADDING)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(form.prompts):
        ids[row, longest - len(prompt) :], mask[row, longest - len(prompt) :] = prompt, 1
    faulty = [] if form.fails_at is None else [Faulty(form.fails_at)]
    try:
        out = polydraft.generate(
            model,
            head,
            ids.to(model.device),
            attention_mask=mask.to(model.device),
            logits_processor=LogitsProcessorList(faulty),
            **form.options,
        )
    except FaultError:
        return None
    assert out.sequences is not None
    rows: list[list[int]] = out.sequences[:, longest:].tolist()
    return rows


def is_right(model: PreTrainedModel, form: Form, found: Sequence[Sequence[int]]) -> bool:
    """Whether every row of a greedy generation is what plain decoding says of that row alone."""
    options = {
        k: form.options[k] for k in ("max_new_tokens", "eos_token_id", "pad_token_id") if k in form.options
    }
    for prompt, row in zip(form.prompts, found, strict=True):
        ids = prompt[None].to(model.device)
        out = cast(Any, model).generate(ids, do_sample=False, **options)[0, len(prompt) :].tolist()
        if out + [PADDING] * (len(row) - len(out)) != list(row):
            return False
    return True


def measure(device: torch.device) -> dict[str, float]:
    """Memory in MiB and living tensors, without what is only waiting to be collected."""
    gc.collect()
    tensors = sum(issubclass(type(found), Tensor) for found in gc.get_objects())
    if device.type == "cuda":
        return {"memory": torch.cuda.memory_allocated(device) / 2**20, "tensors": tensors}
    ctypes.CDLL(None).malloc_trim(0)
    status = re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert status is not None
    return {"memory": int(status[1]) / 1024, "tensors": tensors}


def soak(
    model: PreTrainedModel,
    heads: Sequence[DraftHead],
    *,
    generations: int,
    seed: int,
    check: float,
    every: int,
    **sizes: int,
) -> Iterator[Counts]:
    """Run; yields the counts after every `every` generations, with one more sample.

    Args:
        check: share of the greedy generations that are held against plain decoding.
        sizes: of `draw_form`.
    """
    choose, counts = random.Random(seed), Counts()
    torch.manual_seed(seed)
    for number in range(1, generations + 1):
        one(model, heads[number % len(heads)], choose, counts, check=check, **sizes)
        if number % every == 0:
            counts.samples.append({"generations": number, **measure(model.device)})
            yield counts


def one(
    model: PreTrainedModel,
    head: DraftHead,
    choose: random.Random,
    counts: Counts,
    *,
    check: float,
    **sizes: int,
) -> None:
    """Draw a generation, run it, and count."""
    form = draw_form(choose, vocab_size=model.config.get_text_config().vocab_size, **sizes)
    found = run_form(model, head, form)
    counts.generations += 1
    counts.rows += len(form.prompts)
    if found is None:
        counts.faults += 1
        return
    counts.tokens += sum(len(row) for row in found)
    if not form.options["do_sample"] and choose.random() < check:
        counts.checked += 1
        counts.wrong += not is_right(model, form, found)


def picture(samples: Sequence[dict[str, float]]) -> bytes:
    """Memory by generations, as PNG."""
    figure = Figure(figsize=(7, 3.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.plot([s["generations"] for s in samples], [s["memory"] for s in samples])
    axes.set(xlabel="generations", ylabel="memory (MiB)", ylim=(0, 1.2 * max(s["memory"] for s in samples)))
    axes.grid(alpha=0.3)
    found = io.BytesIO()
    figure.savefig(found, format="png", dpi=150)
    return found.getvalue()


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--generations", type=int, default=2000)
    parser.add_argument("--model", help="name or folder; a small random model if left out")
    parser.add_argument("--head", help="name or folder; the model's name if left out")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--rows", type=int, default=8, help="most rows of a batch")
    parser.add_argument("--longest", type=int, default=48, help="most tokens of a prompt")
    parser.add_argument("--new", type=int, default=32, help="most new tokens")
    parser.add_argument("--check", type=float, default=0.1, help="share of greedy ones compared with plain")
    parser.add_argument("--samples", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="JSON; the picture lies beside it as PNG")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    if options.model is None:
        model = small_model()
        heads = small_heads(model)
    else:
        model, tokenizer = load_model(options.model, dtype=parse_dtype(options.dtype))
        heads = [load_head(options.head or options.model, model=model, tokenizer=tokenizer)]
    every = max(options.generations // options.samples, 1)
    counts = Counts()
    for counts in soak(
        model,
        heads,
        generations=options.generations,
        seed=options.seed,
        check=options.check,
        every=every,
        longest=options.longest,
        new=options.new,
        rows=options.rows,
    ):
        shown = counts.samples[-1]
        print(
            f"{counts.generations} generations: {shown['memory']:.1f} MiB, {shown['tensors']:.0f} tensors",
            flush=True,
        )
    row = {
        "generations": counts.generations,
        "rows": counts.rows,
        "tokens": counts.tokens,
        "ended by an exception": counts.faults,
        "checked": counts.checked,
        "wrong": counts.wrong,
        "MiB at the end": round(counts.samples[-1]["memory"], 1),
        "MiB per 1000": round(counts.slope, 2),
    }
    print(table([row]))
    save(options.out, settings=vars(options), rows=[row, *counts.samples])
    write_atomic(options.out.with_suffix(".png"), picture(counts.samples))


if __name__ == "__main__":
    main()

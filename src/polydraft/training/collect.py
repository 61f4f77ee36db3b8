"""Let the base model write its own training text: batched sampling, resumable, a shard per batch.

A row of a shard is `{"input_ids": [...], "prompt_length": k, "temperature": T, "kind": ...}`; `train`
reads a folder of such shards and learns only from what the model itself wrote (position k onwards).
A text that ends in a loop is cut (`shards.without_loop`). Beside the shards lie `recipe.json` and, when all
are there, `summary.json` (`training.shards`).
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from polydraft.errors import InputError
from polydraft.files import write_atomic
from polydraft.training.shards import (
    conclude,
    describe_summary,
    make_recipe,
    record_recipe,
    shard_path,
    without_loop,
)

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class CollectOptions:
    """How to write; recorded as `recipe.json` beside the shards.

    Attributes:
        temperatures: one per batch, in turn; 0 is greedy. Repeat a value to give it a larger share.
        max_new_tokens: tokens written after each prompt, at most.
        max_prompt_tokens: longer prompts keep their last tokens.
        batch_size: prompts per batch, and rows per shard.
        loop_passages: of a loop that a text ends in, how many times its passage is kept; 0 keeps all.
        seed: fixes the order of the prompts and what is sampled.
    """

    temperatures: tuple[float, ...] = (0.0, 1.0)
    max_new_tokens: int = 144
    max_prompt_tokens: int = 256
    batch_size: int = 96
    loop_passages: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "max_prompt_tokens", "batch_size"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.loop_passages < 0:
            raise InputError(f"loop_passages must be 0 or more, got {self.loop_passages}")
        if min(self.temperatures, default=-1) < 0:
            raise InputError(f"temperatures must be 0 or more, got {self.temperatures}")


def parse_worker(text: str) -> tuple[int, int]:
    """ "I/M" -> (I, M).

    Raises:
        InputError: not of this form, or I not below M.
    """
    parts = text.split("/")
    if len(parts) != 2 or not all(p.isdecimal() for p in parts) or int(parts[0]) >= int(parts[1]):
        raise InputError(f"worker must be I/M with I below M, such as 0/2, got {text!r}")
    return int(parts[0]), int(parts[1])


def encode_prompt(row: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Token ids of a prompt row: `prompt` as it is, or `messages` through the chat template.

    Raises:
        InputError: messages for a tokenizer without a chat template.
    """
    if "messages" in row:
        if not tokenizer.chat_template:
            raise InputError(
                "chat `messages`, but the model's tokenizer has no chat template: give raw prompts"
            )
        encoded: Any = tokenizer.apply_chat_template(
            row["messages"], add_generation_prompt=True, return_dict=True
        )
        return list(encoded["input_ids"])
    return list(tokenizer(row["prompt"])["input_ids"])


def distinct(
    prompts: Iterable[dict[str, Any]], tokenizer: PreTrainedTokenizerBase, *, most: int
) -> list[tuple[list[int], dict[str, Any]]]:
    """The last `most` tokens of every prompt, identical ones once.

    Raises:
        InputError: none is left, or chat messages without a template.
    """
    seen: dict[tuple[int, ...], dict[str, Any]] = {}
    for row in prompts:
        seen.setdefault(tuple(encode_prompt(row, tokenizer)[-most:]), row)
    rows = [(list(ids), row) for ids, row in seen.items() if ids]
    if not rows:
        raise InputError("all prompts are empty: give at least one token to continue")
    return rows


def cut(rows: Sequence[T], size: int, rng: random.Random, *, length: Callable[[T], int]) -> list[list[T]]:
    """All rows in batches of like length (little padding) and, but for one, of `size`, in random order."""
    rows = list(rows)
    rng.shuffle(rows)
    rows.sort(key=lambda row: length(row) // 8)
    out = [rows[i : i + size] for i in range(0, len(rows), size)]
    rng.shuffle(out)
    return out


def batches(
    prompts: Iterable[dict[str, Any]], tokenizer: PreTrainedTokenizerBase, options: CollectOptions
) -> list[list[tuple[list[int], dict[str, Any]]]]:
    """Distinct prompts in the batches that `options` ask for."""
    rows = distinct(prompts, tokenizer, most=options.max_prompt_tokens)
    return cut(rows, options.batch_size, random.Random(options.seed), length=lambda pair: len(pair[0]))


@torch.inference_mode()
def write_batch(
    model: PreTrainedModel,
    batch: Sequence[tuple[list[int], dict[str, Any]]],
    *,
    temperature: float,
    max_new_tokens: int,
    pad_token_id: int,
) -> list[dict[str, Any]]:
    """Continue every prompt of `batch` by plain `model.generate`; rows in the order given."""
    width = max(len(ids) for ids, _ in batch)
    padded = torch.tensor([[pad_token_id] * (width - len(ids)) + ids for ids, _ in batch])
    mask = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids, _ in batch])
    sampling: dict[str, Any] = {"do_sample": False}
    if temperature > 0:
        sampling = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
    generate: Any = model.generate
    out = generate(
        padded.to(model.device),
        attention_mask=mask.to(model.device),
        max_new_tokens=max_new_tokens,
        pad_token_id=pad_token_id,
        **sampling,
    )
    ends = model.generation_config.eos_token_id
    ends = set(ends if isinstance(ends, list) else [ends])
    rows = []
    for (ids, row), line in zip(batch, out[:, width:].tolist(), strict=True):
        stop = next((i + 1 for i, token in enumerate(line) if token in ends), len(line))
        rows.append(
            {"input_ids": ids + line[:stop], "prompt_length": len(ids), "temperature": temperature}
            | ({"kind": row["kind"]} if "kind" in row else {})
        )
    return rows


def pad_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """The id to pad prompts with; masked, so any will do where the tokenizer names none."""
    found = (tokenizer.pad_token_id, tokenizer.eos_token_id)
    return next((token for token in found if token is not None), 0)


def check_room(model: PreTrainedModel, longest: int) -> None:
    """Refuse texts longer than the model's positions.

    Raises:
        InputError: `longest` tokens do not fit.
    """
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if limit is not None and longest > limit:
        raise InputError(f"prompts and text come to {longest} tokens, the model takes {limit}: write fewer")


def collect(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Iterable[dict[str, Any]],
    out: Path,
    *,
    options: CollectOptions,
    worker: tuple[int, int] = (0, 1),
    run: dict[str, Any] | None = None,
    on_progress: Callable[[int, int, int], None] | None = None,
    on_note: Callable[[str], None] = lambda line: None,
) -> int:
    """Write all shards that `out` lacks; returns the number of tokens written in this call.

    Args:
        worker: (i, m): this process takes every m-th batch, beginning with the i-th.
        run: what to record of this call in `recipe.json` (prompts file, command).
        on_progress: called with (batches done, batches in all, tokens written so far).
        on_note: told what the folder holds, when all shards are there.

    Raises:
        InputError: `out` holds shards of another recipe, or no prompt is left, or one is too long.
    """
    rows = list(prompts)
    work = batches(rows, tokenizer, options)
    longest = max(len(ids) for batch in work for ids, _ in batch)
    check_room(model, longest + options.max_new_tokens)
    out.mkdir(parents=True, exist_ok=True)
    record_recipe(out, make_recipe(model, tokenizer, rows, asdict(options)), run or {})
    mine = range(worker[0], len(work), worker[1])
    written = 0
    for done, index in enumerate(mine, start=1):
        shard = shard_path(out, index)
        if not shard.exists():
            torch.manual_seed(options.seed * 1_000_003 + index)
            texts = write_batch(
                model,
                work[index],
                temperature=options.temperatures[index % len(options.temperatures)],
                max_new_tokens=options.max_new_tokens,
                pad_token_id=pad_token(tokenizer),
            )
            texts = [without_loop(row, passages=options.loop_passages) for row in texts]
            write_atomic(shard, "".join(json.dumps(row) + "\n" for row in texts))
            written += sum(len(row["input_ids"]) - row["prompt_length"] for row in texts)
        if on_progress is not None:
            on_progress(done, len(mine), written)
    summary = conclude(out, shards=len(work), documents=sum(map(len, work)))
    on_note("other workers are still writing" if summary is None else describe_summary(summary))
    return written

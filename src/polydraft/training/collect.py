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
from typing import Any, TypeVar, cast

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from polydraft.encoding import encode_chat, encode_text
from polydraft.errors import InputError
from polydraft.files import write_atomic
from polydraft.limits import check_ids, embedding_rows, position_rows
from polydraft.training.shards import (
    conclude,
    describe_summary,
    make_recipe,
    record_recipe,
    shard_path,
    without_loop,
)
from polydraft.training.temperatures import check_temperatures, in_turn, sampling_arguments
from polydraft.training.vllm_text import ENGINES, Batch, check_engine, check_settings, vllm_writer

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class CollectOptions:
    """How to write; recorded as `recipe.json` beside the shards.

    Attributes:
        temperatures: one per prompt, in turn; 0 is greedy. Repeat a value to give it a larger share.
        max_new_tokens: tokens written after each prompt, at most.
        max_prompt_tokens: longer prompts keep their last tokens.
        batch_size: prompts per batch, and rows per shard.
        engine: what writes, one of `vllm_text.ENGINES`.
        loop_passages: of a loop that a text ends in, how many times its passage is kept; 0 keeps all.
        seed: fixes the order of the prompts and what is sampled.
    """

    temperatures: tuple[float, ...] = (0.0, 1.0)
    max_new_tokens: int = 144
    max_prompt_tokens: int = 256
    batch_size: int = 96
    engine: str = ENGINES[0]
    loop_passages: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "max_prompt_tokens", "batch_size"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")
        check_engine(self.engine)
        if self.loop_passages < 0:
            raise InputError(f"loop_passages must be 0 or more, got {self.loop_passages}")
        check_temperatures(self.temperatures)


def parse_worker(text: str) -> tuple[int, int]:
    """ "I/M" -> (I, M).

    Raises:
        InputError: not of this form, or I not below M.
    """
    parts = text.split("/")
    if len(parts) != 2 or not all(p.isdecimal() for p in parts) or int(parts[0]) >= int(parts[1]):
        raise InputError(f"worker must be I/M with I below M, such as 0/2, got {text!r}")
    return int(parts[0]), int(parts[1])


def encode_prompt(
    row: dict[str, Any], tokenizer: PreTrainedTokenizerBase, *, where: str = "the prompt"
) -> list[int]:
    """Token ids of a prompt row: `prompt` as it is, or `messages`, with `tools`, through the chat template.

    Args:
        where: names the row in errors.

    Raises:
        InputError: a chat that the model's template refuses, or messages for a model without one.
    """
    if "messages" in row:
        return encode_chat(row, tokenizer, where=where, reply=True)
    return encode_text(row["prompt"], tokenizer, where=where)


def distinct(
    prompts: Iterable[dict[str, Any]],
    tokenizer: PreTrainedTokenizerBase,
    *,
    most: int,
    rows: int | None = None,
) -> list[tuple[list[int], dict[str, Any]]]:
    """The last `most` tokens of every prompt, identical ones once.

    Args:
        rows: token ids that the model reads (`limits.embedding_rows`); as many as the tokenizer has if None.

    Raises:
        InputError: none is left, a chat that the template refuses, or a token that the model does not read.
    """
    seen: dict[tuple[int, ...], dict[str, Any]] = {}
    for number, row in enumerate(prompts, start=1):
        where = f"prompt {number}"
        ids = encode_prompt(row, tokenizer, where=where)[-most:]
        check_ids(ids, len(tokenizer) if rows is None else rows, where=where, tokenizer=tokenizer)
        seen.setdefault(tuple(ids), row)
    found = [(list(ids), row) for ids, row in seen.items() if ids]
    if not found:
        raise InputError("all prompts are empty: give at least one token to continue")
    return found


def cut(rows: Sequence[T], size: int, rng: random.Random, *, length: Callable[[T], int]) -> list[list[T]]:
    """All rows in batches of like length (little padding) and, but for one, of `size`, in random order."""
    rows = list(rows)
    rng.shuffle(rows)
    rows.sort(key=lambda row: length(row) // 8)
    out = [rows[i : i + size] for i in range(0, len(rows), size)]
    rng.shuffle(out)
    return out


def batches(
    prompts: Iterable[dict[str, Any]],
    tokenizer: PreTrainedTokenizerBase,
    options: CollectOptions,
    *,
    rows: int | None = None,
) -> list[list[tuple[list[int], dict[str, Any]]]]:
    """Distinct prompts in the batches that `options` ask for; `rows` as of `distinct`."""
    found = distinct(prompts, tokenizer, most=options.max_prompt_tokens, rows=rows)
    return cut(found, options.batch_size, random.Random(options.seed), length=lambda pair: len(pair[0]))


@torch.inference_mode()
def write_batch(
    model: PreTrainedModel,
    batch: Batch,
    *,
    temperature: float | Sequence[float],
    max_new_tokens: int,
    pad_token_id: int,
) -> list[dict[str, Any]]:
    """Continue every prompt of `batch` by plain `model.generate`; rows in the order given.

    Args:
        temperature: of all prompts, or one for each.
    """
    temperatures = [temperature] * len(batch) if isinstance(temperature, int | float) else temperature
    width = max(len(ids) for ids, _ in batch)
    padded = torch.tensor([[pad_token_id] * (width - len(ids)) + ids for ids, _ in batch])
    mask = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids, _ in batch])
    generate: Any = model.generate
    out = generate(
        padded.to(model.device),
        attention_mask=mask.to(model.device),
        max_new_tokens=max_new_tokens,
        pad_token_id=pad_token_id,
        **sampling_arguments(temperatures, model.device),
    )
    return rows_of(batch, out[:, width:].tolist(), ends=end_tokens(model), temperatures=temperatures)


def end_tokens(model: PreTrainedModel) -> set[int]:
    """Ids of the tokens that end a text; empty for a model that knows none."""
    found = None if model.generation_config is None else model.generation_config.eos_token_id
    return set() if found is None else set(found if isinstance(found, list) else [found])


def rows_of(
    batch: Batch, texts: Sequence[Sequence[int]], *, ends: set[int], temperatures: Sequence[float]
) -> list[dict[str, Any]]:
    """Rows of a shard, in the order given: each prompt and what was written after it, up to an end token."""
    rows = []
    for (ids, row), line, own in zip(batch, texts, temperatures, strict=True):
        stop = next((i + 1 for i, token in enumerate(line) if token in ends), len(line))
        rows.append(
            {"input_ids": ids + list(line[:stop]), "prompt_length": len(ids), "temperature": own}
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
    limit = position_rows(model)
    if limit is None:
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
    source: str = "",
    worker: tuple[int, int] = (0, 1),
    run: dict[str, Any] | None = None,
    on_progress: Callable[[int, int, int], None] | None = None,
    on_note: Callable[[str], None] = lambda line: None,
) -> int:
    """Write all shards that `out` lacks; returns the number of tokens written in this call.

    Args:
        source: folder or hub id of `model`, for an engine that loads it itself.
        worker: (i, m): this process takes every m-th batch, beginning with the i-th.
        run: what to record of this call in `recipe.json` (prompts file, command).
        on_progress: called with (batches done, batches in all, tokens written so far).
        on_note: told what the folder holds, when all shards are there.

    Raises:
        InputError: `out` holds shards of another recipe, or no prompt is left, or one is too long; or the
            engine cannot write this model's text.
    """
    rows = list(prompts)
    work = batches(rows, tokenizer, options, rows=embedding_rows(model))
    turns = in_turn(options.temperatures, list(map(len, work)))
    longest = max(len(ids) for batch in work for ids, _ in batch)
    check_room(model, longest + options.max_new_tokens)
    out.mkdir(parents=True, exist_ok=True)
    record_recipe(out, make_recipe(model, tokenizer, rows, asdict(options)), run or {})
    mine = range(worker[0], len(work), worker[1])
    write = _writer(model, tokenizer, options, source=source, longest=longest + options.max_new_tokens)
    written = 0
    for done, index in enumerate(mine, start=1):
        shard = shard_path(out, index)
        if not shard.exists():
            texts = write(work[index], turns[index], options.seed * 1_000_003 + index)
            texts = [without_loop(row, passages=options.loop_passages) for row in texts]
            write_atomic(shard, "".join(json.dumps(row) + "\n" for row in texts))
            written += sum(len(row["input_ids"]) - row["prompt_length"] for row in texts)
        if on_progress is not None:
            on_progress(done, len(mine), written)
    summary = conclude(out, shards=len(work), documents=sum(map(len, work)))
    on_note("other workers are still writing" if summary is None else describe_summary(summary))
    return written


def _writer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    options: CollectOptions,
    *,
    source: str,
    longest: int,
) -> Callable[[Batch, Sequence[float], int], list[dict[str, Any]]]:
    """(a batch of prompts, the temperature of each, seed) -> its rows, by the engine of `options`."""
    if options.engine == "vllm":
        check_settings(model.generation_config)
        ends = end_tokens(cast(Any, model).cpu())  # an accelerator's memory is the engine's
        continued = vllm_writer(
            source,
            dtype=str(model.dtype).removeprefix("torch."),
            ends=ends,
            longest=longest,
            rows=options.batch_size,
            max_new_tokens=options.max_new_tokens,
        )
        return lambda batch, temperatures, seed: rows_of(
            batch, continued(batch, temperatures, seed), ends=ends, temperatures=temperatures
        )

    def write(batch: Batch, temperatures: Sequence[float], seed: int) -> list[dict[str, Any]]:
        torch.manual_seed(seed)
        return write_batch(
            model,
            batch,
            temperature=temperatures,
            max_new_tokens=options.max_new_tokens,
            pad_token_id=pad_token(tokenizer),
        )

    return write

"""The base model's own continuations of the prompts: written once, read by the replay of every head."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lab.grid.config import Cell, Evaluation, GridConfig
from lab.grid.progress import Progress
from lab.grid.store import Store, claim
from lab.grid.targets import Target
from lab.replay import Text
from polydraft.bench.prompts import Prompt, prompts_path, read_prompts
from polydraft.files import write_atomic
from polydraft.forwards import lean
from polydraft.hidden import HiddenTap
from polydraft.training.collect import write_batch
from polydraft.training.data import Document, collate


@dataclass(frozen=True, kw_only=True)
class Continuation:
    """A prompt's index with one text that continues it; `sampled` at temperature 1, else greedy."""

    prompt: int
    sampled: bool
    text: Text


def text_identity(
    config: GridConfig, cell: Cell, prompts: Sequence[Prompt], tokenizer: PreTrainedTokenizerBase
) -> dict[str, Any]:
    """What the continuations are determined by."""
    names = ("max_new_tokens", "samples", "batch_size", "seed")
    return {
        "model": f"{cell.base.model}, trained in {cell.name}" if cell.own_model else cell.base.model,
        "dtype": config.dtype,
        "prompts": [prompt.encode(tokenizer) for prompt in prompts],
        **{name: getattr(config.evaluation, name) for name in names},
    }


def write_texts(config: GridConfig, store: Store, cell: Cell, target: Target, *, progress: Progress) -> None:
    """Write every file of continuations that `cell` needs and lacks: `greedy.jsonl` and `sampled-K.jsonl`.

    Raises:
        InputError: those there were made with other settings.
    """
    model, tokenizer = target
    evaluation, folder = config.evaluation, store.texts(cell)
    prompts = read_prompts(prompts_path(cell.base.prompts))
    identity = text_identity(config, cell, prompts, tokenizer)
    claim(folder / "recipe.json", identity, what=str(folder), remove=str(folder))
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    names = text_names(evaluation)
    if all((folder / f"{name}.jsonl").exists() for name in names):
        return
    with progress.counting("texts", len(names)) as advance:
        for number, name in enumerate(names):
            path = folder / f"{name}.jsonl"
            if not path.exists():
                torch.manual_seed(evaluation.seed * 1_000_003 + number)
                rows: list[dict[str, Any]] = []
                for start in range(0, len(prompts), evaluation.batch_size):
                    part = identity["prompts"][start : start + evaluation.batch_size]
                    rows += write_batch(
                        model,
                        [(ids, {}) for ids in part],
                        temperature=float(number > 0),
                        max_new_tokens=evaluation.max_new_tokens,
                        pad_token_id=pad,
                    )
                write_atomic(path, "".join(json.dumps(row) + "\n" for row in rows))
            advance(name)


def text_names(evaluation: Evaluation) -> list[str]:
    """The files of continuations, the greedy one first."""
    return ["greedy", *(f"sampled-{k + 1}" for k in range(evaluation.samples))]


def read_texts(
    evaluation: Evaluation, folder: Path, model: PreTrainedModel, *, layers: Sequence[int] = ()
) -> list[Continuation]:
    """All continuations in `folder`, with the states and probabilities of `model`, which wrote them.

    Args:
        layers: as in `with_states`.
    """
    found = []
    for number, name in enumerate(text_names(evaluation)):
        rows = [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]
        documents = [Document(row["input_ids"], row["prompt_length"]) for row in rows]
        texts = with_states(model, documents, layers=layers)
        found += [Continuation(prompt=i, sampled=number > 0, text=text) for i, text in enumerate(texts)]
    return found


@torch.inference_mode()
def with_states(
    model: PreTrainedModel, documents: Sequence[Document], *, layers: Sequence[int] = (), batch_size: int = 8
) -> list[Text]:
    """The part of each document that is to be learnt from as a `Text`, by a forward over the whole of it.

    Args:
        layers: further ones whose states are kept, as heads read them.
    """
    out: dict[int, Text] = {}
    order = sorted(range(len(documents)), key=lambda i: -len(documents[i].input_ids))
    for start in range(0, len(order), batch_size):
        part = order[start : start + batch_size]
        batch = collate([vars(documents[i]) for i in part])
        ids, mask = batch["input_ids"].to(model.device), batch["attention_mask"].to(model.device)
        with HiddenTap(model, layers=layers) as tap:
            logits = model(input_ids=ids, attention_mask=mask, use_cache=False, **lean(model)).logits
            hidden = tap.hidden
        for row, i in enumerate(part):
            first, end = documents[i].learn_from, len(documents[i].input_ids)
            tokens, before = ids[row, first:end], slice(first - 1, end - 1)
            log_probs = logits[row, before].float().log_softmax(-1).gather(-1, tokens[:, None])[:, 0]
            out[i] = Text(
                tokens=tokens,
                hidden=hidden[row, before].clone(),
                log_probs=log_probs,
                told=ids[row, 1:first],
                told_hidden=hidden[row, : first - 1].clone(),
            )
    return [out[i] for i in range(len(documents))]

"""What the cost benchmarks share: base models and heads with random weights, tables, JSON."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from lab.grid.config import Base, Cell, GridConfig
from lab.grid.progress import Silent
from lab.grid.store import Store
from lab.grid.targets import Target
from lab.grid.texts import Continuation, read_texts, write_texts
from polydraft.files import write_atomic
from polydraft.heads import DraftConfig, DraftHead
from polydraft.joint import MEMBERS
from polydraft.training.losses import Anchors
from polydraft.training.options import TrainOptions
from polydraft.training.teacher import Teacher
from polydraft.versions import versions


def random_base(hidden_size: int, vocab_size: int) -> PreTrainedModel:
    """A frozen model with embeddings of this size, tied, in bfloat16, and next to no layers."""
    config = AutoConfig.for_model(
        "llama",
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        tie_word_embeddings=True,
    )
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    return model.requires_grad_(False)


def random_head(model: PreTrainedModel, *, joint: str, rank: int, **options: Any) -> DraftHead:
    """A head with random weights in float32, attached to `model`; members of one component have rank 1.

    The draft vocabulary is the first tokens of the model's. Gates are not even, and biases not zero.
    """
    text = model.config.get_text_config()
    config = DraftConfig(
        hidden_size=text.hidden_size,
        vocab_size=text.vocab_size,
        joint=joint,
        rank=1 if MEMBERS[joint].single else rank,
        **options,
    )
    head = DraftHead(config)
    with torch.no_grad():
        for parameter in (*head.gate.parameters(), *(head.previous or head.gate).parameters()):
            parameter.add_(torch.randn_like(parameter) * parameter.shape[-1] ** -0.5)
    head.draft_ids.copy_(torch.arange(config.draft_vocab_size))
    return head.attach(model)


def random_anchors(head: DraftHead, count: int) -> Anchors:
    """Anchors of `count` positions of random hidden states, all targets known, with the base model's rows."""
    config = head.config
    hidden = (2 * torch.randn(count + config.horizon + 1, config.hidden_size)).to(head.rows.dtype)
    steps = torch.arange(config.positions) + 2 - (config.positions - config.horizon)
    shape = (count, config.positions)
    return Anchors(
        hidden=hidden[:count],
        next_tokens=torch.randint(config.vocab_size, (count,)),
        targets=torch.randint(config.draft_vocab_size, shape),
        valid=torch.ones(shape, dtype=torch.bool),
        teacher=Teacher(
            torch.cat([(part @ head.rows.T).float().logsumexp(-1) for part in hidden.split(64)]),
            hidden=hidden,
            rows=head.rows,
        ),
        teacher_index=torch.arange(count)[:, None] + steps - 1,
    )


def quartiles(values: Sequence[float]) -> dict[str, float]:
    """q1, median and q3."""
    found = torch.tensor(values, dtype=torch.float64).quantile(torch.tensor([0.25, 0.5, 0.75]).double())
    return dict(zip(("q1", "median", "q3"), found.tolist(), strict=True))


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Rows of equal keys as a Markdown table; numbers as they are given, so round them first."""
    lines = [list(rows[0]), ["---"] * len(rows[0]), *([str(v) for v in row.values()] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def save(path: Path, *, settings: dict[str, Any], rows: Sequence[dict[str, Any]]) -> None:
    """Write a JSON file: what was run, with which versions on how many cores, and the figures."""
    content = {
        "settings": {k: str(v) if isinstance(v, Path) else v for k, v in settings.items()},
        "versions": versions(),
        "cores": os.cpu_count(),
        "rows": list(rows),
    }
    write_atomic(path, (json.dumps(content, indent=2) + "\n").encode())


def continuations(
    model: str, folder: Path, target: Target, *, prompts: str = "heldout"
) -> Callable[[Sequence[int]], list[Continuation]]:
    """The continuations of `prompts` in the folder of a grid, written first where there are none.

    Returns:
        what reads them, given the layers whose states are wanted.
    """
    cell = Cell(name="texts", base=Base(model=model, data=(), prompts=prompts), options=TrainOptions())
    config = GridConfig(dtype="bfloat16", cells=(cell,))
    store = Store(folder)
    write_texts(config, store, cell, target, progress=Silent())
    return lambda layers: read_texts(config.evaluation, store.texts(cell), target.model, layers=layers)

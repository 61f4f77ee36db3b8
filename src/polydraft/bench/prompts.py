"""Prompts from a JSON-lines file, checked line by line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from polydraft.encoding import check_chat
from polydraft.errors import InputError
from polydraft.limits import check_ids, embedding_rows
from polydraft.resources import shipped
from polydraft.textfiles import json_lines
from polydraft.training.collect import encode_prompt

SHIPPED = ("heldout", "validation", "edit", "breadth-heldout", "breadth-validation")


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """One prompt.

    Attributes:
        content: `{"prompt": text}`, continued as it stands, or `{"messages": [...]}`, perhaps with `tools`,
            which goes through the model's chat template.
        kind: groups the figures; None belongs to no group.
        where: names the prompt in reports, such as "FILE, line 3" or its own `id`.
        line: names it in errors, where it has an `id`.
    """

    content: dict[str, Any]
    kind: str | None = None
    where: str = "the prompt"
    line: str | None = None

    def encode(
        self, tokenizer: PreTrainedTokenizerBase, *, model: PreTrainedModel | None = None
    ) -> list[int]:
        """Token ids.

        Args:
            model: checked to read them, when given.

        Raises:
            InputError: a chat that the model has no template for, or whose template refuses it; no token at
                all; or one that the model does not read.
        """
        where = self.line or self.where
        ids = encode_prompt(self.content, tokenizer, where=where)
        if not ids:
            raise InputError(f"{where} is empty")
        if model is not None:
            check_ids(ids, embedding_rows(model), where=where, tokenizer=tokenizer)
        return ids


def prompts_path(name: str) -> Path:
    """The file called `name`: one of `SHIPPED` by its bare name, else a path."""
    return shipped("prompts", f"{name}.jsonl") if name in SHIPPED else Path(name)


def read_prompts(path: Path) -> list[Prompt]:
    """All prompts of a file; a line is an object with `prompt` or `messages`, perhaps `kind` and `id`.

    Raises:
        InputError: the file is missing, empty or malformed; names the file and the line.
    """
    prompts = [_parse(row, where=where) for where, row in json_lines(path)]
    if not prompts:
        raise InputError(f"{path}: no prompts in it")
    return prompts


def read_rows(name: str) -> list[dict[str, Any]]:
    """The prompts called `name`, `as_rows`; see `prompts_path`, `read_prompts`."""
    return as_rows(read_prompts(prompts_path(name)))


def as_rows(prompts: Sequence[Prompt]) -> list[dict[str, Any]]:
    """Prompts as plain rows, `content` with `kind`."""
    return [prompt.content | ({"kind": prompt.kind} if prompt.kind else {}) for prompt in prompts]


def _parse(row: Any, *, where: str) -> Prompt:
    if not isinstance(row, dict) or ("prompt" in row) == ("messages" in row):
        raise InputError(f"{where}: expected an object with either `prompt` or `messages`")
    if "prompt" in row and not (isinstance(row["prompt"], str) and row["prompt"]):
        raise InputError(f"{where}: `prompt` must be a text that is not empty")
    kind = row.get("kind")
    if kind is not None and not isinstance(kind, str):
        raise InputError(f"{where}: `kind` must be a text")
    content = {"prompt": row["prompt"]} if "prompt" in row else check_chat(row, where=where)
    return Prompt(content=content, kind=kind, where=str(row.get("id", where)), line=where)


def spread(kinds: Sequence[str | None]) -> list[int]:
    """Indices of prompts, one of each kind in turn, so that the first few are of all kinds."""
    seen: dict[str | None, int] = {}
    turns = []
    for index, kind in enumerate(kinds):
        turns.append((seen.get(kind, 0), index))
        seen[kind] = seen.get(kind, 0) + 1
    return [index for _, index in sorted(turns)]

"""Prompts from a JSON-lines file, checked line by line."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from polydraft.errors import InputError
from polydraft.resources import shipped
from polydraft.training.collect import encode_prompt

SHIPPED = ("heldout", "validation", "edit", "breadth-heldout", "breadth-validation")


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """One prompt.

    Attributes:
        content: `{"prompt": text}`, continued as it stands, or `{"messages": [...]}`, which goes through
            the model's chat template.
        kind: groups the figures; None belongs to no group.
        where: names the prompt in errors and reports, such as "FILE, line 3" or its own `id`.
    """

    content: dict[str, Any]
    kind: str | None = None
    where: str = "the prompt"

    def encode(self, tokenizer: PreTrainedTokenizerBase) -> list[int]:
        """Token ids.

        Raises:
            InputError: chat messages for a tokenizer without a chat template, or no token at all.
        """
        if "messages" in self.content and not tokenizer.chat_template:
            raise InputError(f"{self.where} is a chat, but this model has no chat template: give raw prompts")
        ids = encode_prompt(self.content, tokenizer)
        if not ids:
            raise InputError(f"{self.where} is empty")
        return ids


def prompts_path(name: str) -> Path:
    """The file called `name`: one of `SHIPPED` by its bare name, else a path."""
    return shipped("prompts", f"{name}.jsonl") if name in SHIPPED else Path(name)


def read_prompts(path: Path) -> list[Prompt]:
    """All prompts of a file; a line is an object with `prompt` or `messages`, perhaps `kind` and `id`.

    Raises:
        InputError: the file is missing, empty or malformed; names the file and the line.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (FileNotFoundError, IsADirectoryError) as error:
        raise InputError(f"{path}: no such file") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text") from error
    prompts = [
        _parse(line, where=f"{path}, line {number}")
        for number, line in enumerate(lines, start=1)
        if line.strip()
    ]
    if not prompts:
        raise InputError(f"{path}: no prompts in it")
    return prompts


def read_rows(name: str) -> list[dict[str, Any]]:
    """The prompts called `name` as plain rows, `content` with `kind`; see `prompts_path`, `read_prompts`."""
    prompts = read_prompts(prompts_path(name))
    return [prompt.content | ({"kind": prompt.kind} if prompt.kind else {}) for prompt in prompts]


def _parse(line: str, *, where: str) -> Prompt:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(f"{where}: not JSON ({error.msg})") from error
    if not isinstance(row, dict) or ("prompt" in row) == ("messages" in row):
        raise InputError(f"{where}: expected an object with either `prompt` or `messages`")
    if "prompt" in row and not (isinstance(row["prompt"], str) and row["prompt"]):
        raise InputError(f"{where}: `prompt` must be a text that is not empty")
    if "messages" in row and not _is_chat(row["messages"]):
        raise InputError(f"{where}: `messages` must be a list of objects with texts `role` and `content`")
    kind = row.get("kind")
    if kind is not None and not isinstance(kind, str):
        raise InputError(f"{where}: `kind` must be a text")
    name = "prompt" if "prompt" in row else "messages"
    return Prompt(content={name: row[name]}, kind=kind, where=str(row.get("id", where)))


def _is_chat(messages: Any) -> bool:
    return (
        isinstance(messages, list)
        and len(messages) > 0
        and all(
            isinstance(message, dict)
            and all(isinstance(message.get(key), str) for key in ("role", "content"))
            for message in messages
        )
    )


def spread(kinds: Sequence[str | None]) -> list[int]:
    """Indices of prompts, one of each kind in turn, so that the first few are of all kinds."""
    seen: dict[str | None, int] = {}
    turns = []
    for index, kind in enumerate(kinds):
        turns.append((seen.get(kind, 0), index))
        seen[kind] = seen.get(kind, 0) + 1
    return [index for _, index in sorted(turns)]

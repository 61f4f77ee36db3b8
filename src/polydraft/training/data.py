"""Text of any supported form -> documents of token ids -> a split, and batches of it.

Forms: `.txt`; `.jsonl` with `text`, chat `messages`, or `input_ids` (as `collect` writes them); folders
of these and of source files; folders written by `datasets.Dataset.save_to_disk`.
"""

from __future__ import annotations

import hashlib
import json
import random
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from polydraft.encoding import encode_chat, encode_text
from polydraft.errors import InputError
from polydraft.limits import check_ids, embedding_rows
from polydraft.textfiles import json_lines, read_text

SOURCE_SUFFIXES = frozenset(
    ".txt .md .rst .py .pyi .c .h .cc .cpp .hpp .cu .rs .go .java .js .ts .jsx .tsx .css .html .sh .sql "
    ".rb .php .swift .kt .scala .lua .r .jl .hs .ml .ex .pl .toml .yaml .yml".split()
)

READ_SUFFIXES = SOURCE_SUFFIXES | {".jsonl"}


@dataclass(frozen=True)
class Document:
    """One text.

    Attributes:
        input_ids: its tokens. learn_from: index of the first token that is a target; tokens before it
            (a prompt) are context only. temperature: that the base model wrote it at, if it did.
        hidden: (T, d) cached hidden states of the base model; log_normaliser: (T,) logsumexp of its
            logits. Both None unless `training.cache` has filled them in.
    """

    input_ids: list[int]
    learn_from: int = 0
    temperature: float | None = None
    hidden: Tensor | None = None
    log_normaliser: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class _Reader:
    """How text becomes documents. `rows`: token ids that the model reads, those below."""

    tokenizer: PreTrainedTokenizerBase
    rows: int

    def row(self, row: Any, where: str) -> Document:
        """The document of a row of JSON lines or of a saved dataset."""
        if isinstance(row, dict):
            if "input_ids" in row:
                return self._ids(row, where)
            if "messages" in row:
                return self._text(encode_chat(row, self.tokenizer, where=where, reply=False), where)
            if isinstance(row.get("text"), str):
                return self.text(row["text"], where)
        raise InputError(f"{where}: expected an object with `text`, `messages` or `input_ids`")

    def text(self, text: str, where: str) -> Document:
        """The document of a plain text."""
        return self._text(encode_text(text, self.tokenizer, where=where), where)

    def _text(self, ids: list[int], where: str) -> Document:
        check_ids(ids, self.rows, where=where, tokenizer=self.tokenizer)
        return Document(ids)

    def _ids(self, row: dict[str, Any], where: str) -> Document:
        ids, start, temperature = row["input_ids"], row.get("prompt_length", 0), row.get("temperature")
        if not isinstance(ids, list) or not all(type(token) is int for token in ids):
            raise InputError(f"{where}: `input_ids` must be a list of whole numbers")
        check_ids(ids, self.rows, where=where)
        if type(start) is not int or start < 0:
            raise InputError(f"{where}: `prompt_length` must be a whole number from 0, got {start!r}")
        if temperature is not None and not _is_temperature(temperature):
            raise InputError(f"{where}: `temperature` must be a number of 0 or more, got {temperature!r}")
        return Document(ids, start, None if temperature is None else float(temperature))


def _is_temperature(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value < float("inf")


def _read_file(path: Path, reader: _Reader) -> Iterator[Document]:
    if path.suffix == ".jsonl":
        for where, row in json_lines(path):
            yield reader.row(row, where)
    else:
        yield reader.text(read_text(path), str(path))


def _read_saved_dataset(path: Path, reader: _Reader) -> Iterator[Document]:
    import datasets

    loaded = datasets.load_from_disk(str(path))
    parts = loaded.values() if isinstance(loaded, datasets.DatasetDict) else [loaded]
    for part in parts:
        for number, row in enumerate(part):
            yield reader.row(_as_given(row), f"{path}, row {number}")


def _as_given(row: Any) -> Any:
    """A row of a saved dataset without the nulls that Arrow fills into `tools` and calls of them.

    Arrow gives all objects of a column the same fields.
    """
    if not isinstance(row, dict) or not isinstance(messages := row.get("messages"), list):
        return row
    called = [
        message | {"tool_calls": _without_nulls(message["tool_calls"])}
        if isinstance(message, dict) and message.get("tool_calls")
        else message
        for message in messages
    ]
    return row | {"messages": called, "tools": _without_nulls(row.get("tools"))}


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nulls(one) for name, one in value.items() if one is not None}
    return [_without_nulls(one) for one in value] if isinstance(value, list) else value


def check_paths(paths: Sequence[Path]) -> None:
    """Refuse what `read_documents` does not read, without reading it.

    Raises:
        InputError: names the first path that is missing, or of no supported form.
    """
    for path in paths:
        if not path.exists():
            raise InputError(f"{path}: no such file or folder")
        if not path.is_dir() and path.suffix not in READ_SUFFIXES:
            raise InputError(f"{path}: unknown kind of file; give .txt, .jsonl or source code")


def read_documents(
    paths: Sequence[Path], tokenizer: PreTrainedTokenizerBase, *, rows: int | None = None
) -> list[Document]:
    """All documents below `paths`, in a fixed order, duplicates dropped.

    Args:
        rows: token ids that the model reads, those below (`limits.embedding_rows`); as many as the tokenizer
            has if None.

    Raises:
        InputError: a path that is missing, of no supported form, or malformed; names it.
    """
    check_paths(paths)
    reader = _Reader(tokenizer=tokenizer, rows=len(tokenizer) if rows is None else rows)
    found: dict[tuple[int, ...], Document] = {}
    for path in paths:
        for document in _read_path(path, reader):
            found.setdefault(tuple(document.input_ids), document)
    documents = [d for d in found.values() if len(d.input_ids) >= 3]
    if not documents:
        names = ", ".join(map(str, paths))
        raise InputError(f"no text in {names}: give .txt, .jsonl, source folders or a saved dataset")
    return documents


def check_first(path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Read the first document of a path, to see before a model is loaded whether its form will do.

    Raises:
        InputError: as of `read_documents`.
    """
    next(_read_path(path, _Reader(tokenizer=tokenizer, rows=sys.maxsize)), None)


def take_documents(
    data: Sequence[Path] | Sequence[Document], model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> list[Document]:
    """The documents of paths, as `read_documents`, or those that were read before, ready for `model`.

    Raises:
        InputError: as of `read_documents`; or a token that the model does not read.
    """
    rows = embedding_rows(model)
    paths = [item for item in data if isinstance(item, Path)]
    if len(paths) == len(data):
        return read_documents(paths, tokenizer, rows=rows)
    documents = [item for item in data if isinstance(item, Document)]
    for document in documents:
        check_ids(document.input_ids, rows, where="the text", tokenizer=tokenizer)
    return documents


def _read_path(path: Path, reader: _Reader) -> Iterator[Document]:
    if not path.is_dir():
        yield from _read_file(path, reader)
    elif (path / "dataset_info.json").exists() or (path / "dataset_dict.json").exists():
        yield from _read_saved_dataset(path, reader)
    else:
        for file in sorted(path.rglob("*")):
            if file.is_file() and file.suffix in READ_SUFFIXES:
                yield from _read_file(file, reader)


def windows(documents: Iterable[Document], *, max_length: int) -> list[Document]:
    """Cut long documents into windows of `max_length` tokens; short tails (< 3 tokens) are dropped."""
    out = []
    for document in documents:
        for start in range(0, len(document.input_ids), max_length):
            ids = document.input_ids[start : start + max_length]
            learn_from = max(document.learn_from - start, 0)
            if len(ids) >= 3 and learn_from < len(ids) - 1:
                out.append(Document(ids, learn_from, document.temperature))
    return out


def split(
    documents: Sequence[Document], *, held_out: float, seed: int
) -> tuple[list[Document], list[Document]]:
    """(training, held-out) by whole documents, seeded; at least one document on each side.

    The share is that of every temperature by itself, and at least one document of it, as long as one is left
    to learn from: held-out figures are told by temperature.

    Raises:
        InputError: fewer than two documents, or a share outside (0, 1).
    """
    if not 0 < held_out < 1:
        raise InputError(f"the held-out share must lie between 0 and 1, got {held_out}")
    if len(documents) < 2:
        raise InputError("the data is one single document: give at least two, so that one can be held out")
    order = list(range(len(documents)))
    random.Random(seed).shuffle(order)
    groups: dict[float | None, list[int]] = {}
    for place in order:
        groups.setdefault(documents[place].temperature, []).append(place)
    chosen: list[int] = []
    for group in groups.values():
        chosen += group[: min(max(round(held_out * len(group)), 1), len(group) - 1)]
    held = set(chosen or order[:1])  # one of each temperature: any of them
    return (
        [document for place, document in enumerate(documents) if place not in held],
        [document for place, document in enumerate(documents) if place in held],
    )


def frequent_tokens(documents: Iterable[Document], *, size: int, vocab_size: int) -> list[int]:
    """Ids of the `size` most frequent target tokens, ascending; unseen ids fill up from the lowest."""
    counts: Counter[int] = Counter()
    for document in documents:
        counts.update(document.input_ids[document.learn_from :])
    ranked = sorted(range(vocab_size), key=lambda token: (-counts[token], token))
    return sorted(ranked[:size])


def data_hash(documents: Iterable[Document]) -> str:
    """Hash of all tokens in order; tells whether two runs saw the same data."""
    digest = hashlib.sha256()
    for document in documents:
        digest.update(json.dumps([document.input_ids, document.learn_from]).encode())
    return digest.hexdigest()[:32]


def collate(documents: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
    """Right-padded batch: input_ids, attention_mask, labels (-100 where not learnt); with a cache also
    hidden (B, T, d) and log_normaliser (B, T)."""
    width = max(len(d["input_ids"]) for d in documents)
    shape = (len(documents), width)
    input_ids = torch.zeros(shape, dtype=torch.long)
    mask = torch.zeros(shape, dtype=torch.long)
    labels = torch.full(shape, -100)
    for i, document in enumerate(documents):
        ids = torch.tensor(document["input_ids"])
        input_ids[i, : len(ids)] = ids
        mask[i, : len(ids)] = 1
        labels[i, document["learn_from"] : len(ids)] = ids[document["learn_from"] :]
    batch = {"input_ids": input_ids, "attention_mask": mask, "labels": labels}
    if documents[0]["hidden"] is not None:
        for name in ("hidden", "log_normaliser"):
            batch[name] = pad_sequence([d[name] for d in documents], batch_first=True)
    return batch

"""Text of any supported form -> documents of token ids -> a split, and batches of it.

Forms: `.txt`; `.jsonl` with `text`, chat `messages`, or `input_ids` (as `collect` writes them); folders
of these and of source files; folders written by `datasets.Dataset.save_to_disk`.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

from polydraft.errors import InputError

SOURCE_SUFFIXES = frozenset(
    ".txt .md .rst .py .pyi .c .h .cc .cpp .hpp .cu .rs .go .java .js .ts .jsx .tsx .css .html .sh .sql "
    ".rb .php .swift .kt .scala .lua .r .jl .hs .ml .ex .pl .toml .yaml .yml".split()
)


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


def _from_row(row: Any, tokenizer: PreTrainedTokenizerBase, where: str) -> Document:
    if isinstance(row, dict):
        if "input_ids" in row:
            return _from_ids(row, tokenizer, where)
        if "messages" in row:
            if tokenizer.chat_template is None:
                raise InputError(f"{where}: chat `messages`, but the model's tokenizer has no chat template")
            encoded: Any = tokenizer.apply_chat_template(row["messages"], return_dict=True)
            return Document(list(encoded["input_ids"]))
        if isinstance(row.get("text"), str):
            return Document(tokenizer(row["text"])["input_ids"])
    raise InputError(f"{where}: expected an object with `text`, `messages` or `input_ids`")


def _from_ids(row: dict[str, Any], tokenizer: PreTrainedTokenizerBase, where: str) -> Document:
    ids, start = row["input_ids"], row.get("prompt_length", 0)
    if not isinstance(ids, list) or not all(isinstance(token, int) for token in ids):
        raise InputError(f"{where}: `input_ids` must be a list of whole numbers")
    if ids and not 0 <= min(ids) <= max(ids) < len(tokenizer):
        raise InputError(f"{where}: `input_ids` of another tokenizer: this one has {len(tokenizer)} tokens")
    if not isinstance(start, int) or start < 0:
        raise InputError(f"{where}: `prompt_length` must be a whole number from 0, got {start!r}")
    return Document(ids, start, row.get("temperature"))


def _read_jsonl(path: Path, tokenizer: PreTrainedTokenizerBase) -> Iterator[Document]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise InputError(f"{path}, line {number}: not JSON ({error.msg})") from error
            yield _from_row(row, tokenizer, f"{path}, line {number}")


def _read_file(path: Path, tokenizer: PreTrainedTokenizerBase) -> Iterator[Document]:
    try:
        if path.suffix == ".jsonl":
            yield from _read_jsonl(path, tokenizer)
        else:
            yield Document(tokenizer(path.read_text(encoding="utf-8"))["input_ids"])
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text") from error


def _read_saved_dataset(path: Path, tokenizer: PreTrainedTokenizerBase) -> Iterator[Document]:
    import datasets

    loaded = datasets.load_from_disk(str(path))
    parts = loaded.values() if isinstance(loaded, datasets.DatasetDict) else [loaded]
    for part in parts:
        for number, row in enumerate(part):
            yield _from_row(row, tokenizer, f"{path}, row {number}")


def read_documents(paths: Sequence[Path], tokenizer: PreTrainedTokenizerBase) -> list[Document]:
    """All documents below `paths`, in a fixed order, duplicates dropped.

    Raises:
        InputError: a path that is missing, of no supported form, or malformed; names it.
    """
    found: dict[tuple[int, ...], Document] = {}
    for path in paths:
        if not path.exists():
            raise InputError(f"{path}: no such file or folder")
        for document in _read_path(path, tokenizer):
            found.setdefault(tuple(document.input_ids), document)
    documents = [d for d in found.values() if len(d.input_ids) >= 3]
    if not documents:
        names = ", ".join(map(str, paths))
        raise InputError(f"no text in {names}: give .txt, .jsonl, source folders or a saved dataset")
    return documents


def _read_path(path: Path, tokenizer: PreTrainedTokenizerBase) -> Iterator[Document]:
    if path.is_file():
        if path.suffix not in SOURCE_SUFFIXES | {".jsonl"}:
            raise InputError(f"{path}: unknown kind of file; give .txt, .jsonl or source code")
        yield from _read_file(path, tokenizer)
    elif (path / "dataset_info.json").exists() or (path / "dataset_dict.json").exists():
        yield from _read_saved_dataset(path, tokenizer)
    else:
        for file in sorted(path.rglob("*")):
            if file.is_file() and file.suffix in SOURCE_SUFFIXES | {".jsonl"}:
                yield from _read_file(file, tokenizer)


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

    Raises:
        InputError: fewer than two documents, or a share outside (0, 1).
    """
    if not 0 < held_out < 1:
        raise InputError(f"the held-out share must lie between 0 and 1, got {held_out}")
    if len(documents) < 2:
        raise InputError("the data is one single document: give at least two, so that one can be held out")
    order = list(range(len(documents)))
    random.Random(seed).shuffle(order)
    count = min(max(round(held_out * len(documents)), 1), len(documents) - 1)
    return [documents[i] for i in sorted(order[count:])], [documents[i] for i in sorted(order[:count])]


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

"""How many tokens a text has at least, found without encoding it, where its tokenizer lets that be said."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

from transformers import PreTrainedTokenizerBase
from transformers.convert_slow_tokenizer import bytes_to_unicode

KEEPING = ("ByteLevel", "Digits", "Metaspace")
"""Steps before the vocabulary that drop no character, as `Split` may."""


def least_tokens(tokenizer: PreTrainedTokenizerBase) -> Callable[[str], int]:
    """A lower bound of the tokens that `tokenizer` makes of a text; 0 of every text where none is known.

    It is what is read of the text over the length of the longest token. Where tokens are made of bytes,
    these are counted, but for those without a letter in the vocabulary; where bytes stand for what has no
    token of its own, characters are. Nothing is known of a tokenizer that may drop characters: in a
    normalizer, in a step before the vocabulary, or as an added token that takes white space around it.
    """
    core = getattr(tokenizer, "backend_tokenizer", None)
    if core is None:
        return _nothing_known
    parts: dict[str, Any] = json.loads(core.to_str())
    steps = list(_steps(parts["pre_tokenizer"], "pretokenizers"))
    added = parts["added_tokens"]
    if (
        parts["model"]["type"] != "BPE"
        or not all(map(_normalizer_keeps, _steps(parts["normalizer"], "normalizers")))
        or not all(map(_keeps, steps))
        or any(token["lstrip"] or token["rstrip"] for token in added)
    ):
        return _nothing_known
    vocabulary = core.get_vocab(with_added_tokens=True)
    longest = max([*map(len, vocabulary), *(len(token["content"].encode()) for token in added)])
    if any(step["type"] == "ByteLevel" for step in steps):
        unread = bytes(byte for byte, letter in bytes_to_unicode().items() if letter not in vocabulary)
        return lambda text: -(-len(text.encode().translate(None, unread)) // longest)
    if parts["model"]["byte_fallback"] and all(f"<0x{byte:02X}>" in vocabulary for byte in range(256)):
        return lambda text: -(-len(text) // longest)
    return _nothing_known


def _nothing_known(_: str) -> int:
    return 0


def _steps(part: dict[str, Any] | None, name: str) -> Iterator[dict[str, Any]]:
    """The steps of a sequence; of anything else itself."""
    if part is None:
        return
    if part["type"] != "Sequence":
        yield part
        return
    for step in part[name]:
        yield from _steps(step, name)


def _normalizer_keeps(step: dict[str, Any]) -> bool:
    """Whether a normalizer makes no text shorter: it adds, or replaces one character by at least one."""
    if step["type"] == "Replace":
        return len(step["pattern"].get("String", "")) == 1 and len(step["content"]) >= 1
    return bool(step["type"] == "Prepend")


def _keeps(step: dict[str, Any]) -> bool:
    """Whether a step before the vocabulary drops no character."""
    if step["type"] == "Split":
        return bool(step["behavior"] != "Removed")
    return step["type"] in KEEPING

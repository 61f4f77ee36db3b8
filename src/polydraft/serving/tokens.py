"""Tokens to text, one by one: characters that several tokens share, and strings that end a text."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from functools import cached_property, lru_cache
from typing import Any

from transformers import PreTrainedTokenizerBase
from transformers.convert_slow_tokenizer import bytes_to_unicode

UNFINISHED = "\ufffd"
LONGEST = 64
"""Tokens that may wait for a character to be complete; what waits longer is shown as it is."""


class Vocabulary:
    """What tokens say. Reading alone, so threads may share it.

    Args:
        tokenizer: copied, since encoding changes a tokenizer's state.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer: Any = copy.deepcopy(tokenizer)
        self._before: list[int] = list(self._tokenizer("a", add_special_tokens=False)["input_ids"])
        self._before_text = self._plain(self._before, special=False)
        self.bytes = lru_cache(maxsize=65_536)(self._bytes)

    def text(self, tokens: Sequence[int], *, special: bool = False) -> str:
        """The text of `tokens` as it stands after other text, so that a leading space is kept."""
        return self._plain([*self._before, *tokens], special=special)[len(self._before_text) :]

    def _plain(self, tokens: list[int], *, special: bool) -> str:
        out = self._tokenizer.decode(
            tokens, skip_special_tokens=not special, clean_up_tokenization_spaces=False
        )
        assert isinstance(out, str)
        return out

    def name(self, token: int) -> str:
        """A token on its own, special ones too; of a part of a character its bytes, as OpenAI writes them."""
        data = bytes(self.bytes(token))
        try:
            return data.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)

    def _bytes(self, token: int) -> list[int]:
        """Its UTF-8 bytes, also of a part of a character where the vocabulary tells them."""
        piece = self._tokenizer.convert_ids_to_tokens(token)
        if isinstance(piece, str) and token not in self._tokenizer.all_special_ids:
            if self._is_byte_level and all(char in BYTES for char in piece):
                return [BYTES[char] for char in piece]
            if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
                return [int(piece[3:5], 16)]
        return list(self.text([token], special=True).encode())

    @cached_property
    def _is_byte_level(self) -> bool:
        core = getattr(self._tokenizer, "backend_tokenizer", None)
        return core is not None and "ByteLevel" in json.dumps(json.loads(core.to_str())["decoder"])


BYTES = {char: byte for byte, char in bytes_to_unicode().items()}
"""The byte that each character of a byte-level vocabulary stands for."""


class Detokenizer:
    """The text of one choice as its tokens come.

    The pieces join to the text of all tokens together, special ones left out unless `special`.
    """

    def __init__(self, vocabulary: Vocabulary, *, special: bool = False) -> None:
        self._vocabulary = vocabulary
        self._special = special
        self._waiting: list[int] = []

    def push(self, token: int) -> str:
        """What `token` adds; nothing while a character is unfinished, and with its last token all of it."""
        self._waiting.append(token)
        text = self._vocabulary.text(self._waiting, special=self._special)
        if text.endswith(UNFINISHED) and len(self._waiting) < LONGEST:
            return ""
        self._waiting.clear()
        return text

    def flush(self) -> str:
        """What is left at the end: the replacement character for what never became one."""
        text = self._vocabulary.text(self._waiting, special=self._special)
        self._waiting.clear()
        return text


class StopStrings:
    """Lets text through up to the first stop string, in whatever pieces it comes.

    The first is the one complete first. What may be the beginning of one is held back.

    Attributes:
        found: one has been seen; nothing is let through any more.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self.found = False
        self._stops = tuple(stops)
        self._held = ""

    def push(self, text: str) -> str:
        """What can be said now."""
        if self.found:
            return ""
        self._held += text
        places = [(at + len(stop), at) for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if places:
            self.found = True
            return self._held[: min(places)[1]]
        said = len(self._held) - self._partial()
        out, self._held = self._held[:said], self._held[said:]
        return out

    def flush(self) -> str:
        """What was held back, at the end of a text in which no stop string stood."""
        out = "" if self.found else self._held
        self._held = ""
        return out

    def _partial(self) -> int:
        """Length of the longest end of the held text that begins a stop string."""
        longest = min(max(map(len, self._stops), default=1) - 1, len(self._held))
        for length in range(longest, 0, -1):
            if any(stop.startswith(self._held[-length:]) for stop in self._stops):
                return length
        return 0

"""Tokens to text: characters over several tokens, and strings that end a text in whatever pieces it comes."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from polydraft.serving.tokens import LONGEST, Detokenizer, StopStrings, Vocabulary
from tests.tiny import tiny_tokenizer

TOKENIZER = tiny_tokenizer()
WORDS = Vocabulary(TOKENIZER)


def ids_of(data: bytes) -> list[int]:
    """Byte-level token ids of any bytes."""
    return [next(i for i in range(3, 259) if WORDS.bytes(i) == [byte]) for byte in data]


BYTE_IDS = ids_of(bytes(range(256)))


def pieces(tokens: list[int]) -> list[str]:
    detokenizer = Detokenizer(WORDS)
    return [*(detokenizer.push(token) for token in tokens), detokenizer.flush()]


def test_an_emoji_comes_with_its_last_byte() -> None:
    assert pieces(TOKENIZER("a😀b")["input_ids"]) == ["a", "", "", "", "😀", "b", ""]


def test_special_tokens_say_nothing() -> None:
    assert pieces([1, *TOKENIZER("a")["input_ids"], 2]) == ["", "a", "", ""]


@given(st.binary(max_size=LONGEST - 1))
def test_pieces_join_to_what_python_decodes(data: bytes) -> None:
    assert "".join(pieces([BYTE_IDS[byte] for byte in data])) == data.decode("utf-8", "replace")


def test_what_never_becomes_a_character_is_shown_in_time() -> None:
    first = next(at for at, piece in enumerate(pieces([BYTE_IDS[0xFF]] * 3 * LONGEST)) if piece)
    assert first == LONGEST - 1
    assert "".join(pieces([BYTE_IDS[0xFF]] * 3 * LONGEST)) == "\ufffd" * 3 * LONGEST


def test_bytes_of_parts_of_characters() -> None:
    parts = [WORDS.bytes(token) for token in TOKENIZER("é")["input_ids"]]
    assert parts == [[0xC3], [0xA9]]
    assert [WORDS.name(token) for token in TOKENIZER("é")["input_ids"]] == ["bytes:\\xc3", "bytes:\\xa9"]
    assert WORDS.name(TOKENIZER("e")["input_ids"][0]) == "e"
    assert WORDS.bytes(2) == list(b"<eos>")
    assert WORDS.name(2) == "<eos>"


def sentencepiece() -> PreTrainedTokenizerFast:
    """As Llama 2 and Mistral have it: words begin with a mark, unknown characters are bytes."""
    vocab = {"<unk>": 0, "</s>": 1, "a": 2, "▁the": 3, "▁": 4}
    vocab |= {f"<0x{byte:02X}>": 5 + byte for byte in range(256)}
    core = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>", byte_fallback=True))
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>", unk_token="<unk>")


def test_byte_fallback_and_leading_spaces() -> None:
    words = Vocabulary(sentencepiece())
    detokenizer = Detokenizer(words)
    tokens = [3, *(5 + byte for byte in "😀é".encode()), 3, 1]
    assert [detokenizer.push(token) for token in tokens] == [" the", "", "", "", "😀", "", "é", " the", ""]
    assert words.bytes(5 + 0xF0) == [0xF0]


# -- stop strings -----------------------------------------------------------------------------------


def cut(text: str, stops: list[str]) -> str:
    """Letter by letter: the first stop string to be complete; of several, the longest."""
    for end in range(len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            return text[: end - max(map(len, found))]
    return text


@given(
    st.text("ab", max_size=20),
    st.lists(st.text("ab", min_size=1, max_size=4), max_size=4),
    st.lists(st.integers(0, 20), max_size=6),
)
def test_text_ends_before_the_first_stop_string_however_it_is_cut(
    text: str, stops: list[str], cuts: list[int]
) -> None:
    matcher = StopStrings(stops)
    borders = [0, *sorted(min(at, len(text)) for at in cuts), len(text)]
    said = ""
    for start, end in pairwise(borders):
        said += matcher.push(text[start:end])
        assert cut(text, stops).startswith(said)  # nothing is said that must be taken back
    assert said + matcher.flush() == cut(text, stops)
    assert matcher.found == any(stop in text for stop in stops)


@pytest.mark.parametrize(
    ("text", "said"), [("no", "no"), ("no E", "no "), ("no EN", "no "), ("no EM", "no EM")]
)
def test_only_what_may_begin_a_stop_string_is_held(text: str, said: str) -> None:
    assert StopStrings(["END"]).push(text) == said

"""What reading a body costs at most, and that nobody waits for another's."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from polydraft.decoding.plan import Plan
from polydraft.serving import body as bodies
from polydraft.serving.body import MOST_PARTS, parse, parts
from polydraft.serving.characters import least_tokens
from polydraft.serving.errors import ApiError
from polydraft.serving.model import served
from polydraft.serving.readers import LONG
from polydraft.serving.schemas import ChatRequest, CompletionRequest, Sampling
from polydraft.serving.settings import MOST_BIASES
from tests.serving.server import HTTP, LENGTH, Running, running, tiny_served
from tests.tiny import tiny_head, tiny_model, tiny_tokenizer

MANY = 20_000
USER = {"role": "user", "content": "a"}
PROMPT = {"prompt": "a"}


def words(count: int) -> dict[str, int]:
    return {f"x{index}": 1 for index in range(count)}


# -- lists ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "body", "message"),
    [
        (CompletionRequest, {"prompt": [None] * MANY}, "prompt.0: Input should be a valid string"),
        (CompletionRequest, {"prompt": [-1] * MANY}, "prompt.0: Input should be greater"),
        (CompletionRequest, {"prompt": [1] * MANY + ["a"]}, f"prompt.{MANY}: Input should be a valid int"),
        (CompletionRequest, {"prompt": [[None] * MANY]}, "prompt.0.0: Input should be a valid integer"),
        (CompletionRequest, {"prompt": [[1]] * MANY}, "prompt: List should have at most 128 items"),
        (CompletionRequest, {"prompt": ["a"] * MANY}, "prompt: List should have at most 128 items"),
        (CompletionRequest, PROMPT | {"stop": [None] * MANY}, "stop.0: Input should be a valid string"),
        (CompletionRequest, PROMPT | {"stop": ["a"] * MANY}, "stop: List should have at most 4 items"),
        (CompletionRequest, PROMPT | {"logit_bias": {str(index): "x" for index in range(MANY)}},
         f"logit_bias: Object should have at most {MOST_BIASES} entries, not {MANY}"),
        (CompletionRequest, PROMPT | {"polydraft": words(MANY)}, "unrecognized field: x0"),
        (CompletionRequest, PROMPT | {"stream_options": words(MANY)}, "unrecognized field: x0"),
        (CompletionRequest, PROMPT | words(MANY), "unrecognized field: x0"),
        (ChatRequest, {"messages": [None] * MANY}, "messages.0: Input should be a valid dictionary"),
        (ChatRequest, {"messages": [{}] * MANY}, "messages.0.role: Field required"),
        (ChatRequest, {"messages": [USER | {"content": [None] * MANY}]}, "messages.0.content.0: Input"),
        (ChatRequest, {"messages": [USER | {"content": [{"type": "text", "text": "a"} | words(MANY)]}]},
         "unrecognized field: x0"),
        (ChatRequest, {"messages": [USER], "tools": [None] * MANY}, "tools is not supported"),
        (ChatRequest, {"messages": [USER], "modalities": [None] * MANY}, "modalities is not supported"),
    ],
)  # fmt: skip
def test_reading_stops_at_the_first_error(kind: type[Sampling], body: dict[str, Any], message: str) -> None:
    with pytest.raises(ApiError) as refusal:
        parse(json.dumps(body).encode(), kind)
    assert str(refusal.value).startswith(message)
    cause = refusal.value.__cause__
    if isinstance(cause, ValidationError):
        assert cause.error_count() <= 5  # at most one for each type that the field may have


@pytest.mark.parametrize(
    "content",
    [
        b'{"prompt": ' + b"[" * 70_000 + b"]" * 70_000 + b"}",
        b'{"prompt": "a", "metadata": [' + b"[]," * MOST_PARTS + b"1]}",
        b'{"prompt": "a", "metadata": {' + b", ".join(b'"%d": 1' % index for index in range(70_000)) + b"}}",
    ],
)
def test_bodies_of_many_parts_are_not_read(content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "from_json", None)
    with pytest.raises(ApiError, match=f"at most {MOST_PARTS} lists, objects and fields"):
        parse(content, CompletionRequest)


def test_deep_bodies_are_refused_whatever_field_they_are_in() -> None:
    for name in ("prompt", "metadata", "tools"):
        content = json.dumps(PROMPT | {name: 1}).replace("1", "[" * 300 + "]" * 300)
        with pytest.raises(ApiError, match="recursion limit"):
            parse(content.encode(), CompletionRequest)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(alphabet='[{:"\\,a\n😀'),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(alphabet='[{:"\\,a\n😀'), inner),
    max_leaves=20,
)


def counted(given: Any) -> int:
    if isinstance(given, list):
        return 1 + sum(map(counted, given))
    return 1 + sum(1 + counted(one) for one in given.values()) if isinstance(given, dict) else 0


@settings(max_examples=40)
@given(JSON, st.booleans())
def test_brackets_in_texts_are_no_parts(given: Any, ascii_only: bool) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bodies, "MOST_PARTS", -1)  # so that texts are always left out
        assert parts(json.dumps(given, ensure_ascii=ascii_only).encode()) == counted(given)


def test_a_long_prompt_full_of_brackets_is_read() -> None:
    text = '[{:"\\' * 20_000
    body = parse(json.dumps({"prompt": text}).encode(), CompletionRequest)
    assert body.prompt == text


# -- characters -------------------------------------------------------------------------------------


def tokenizer(core: Tokenizer) -> PreTrainedTokenizerBase:
    return PreTrainedTokenizerFast(tokenizer_object=core)


def byte_level(*, without: str = "") -> Tokenizer:
    """Bytes and two longer tokens; bytes `without` a letter are dropped, since there is no unknown token."""
    letters = [*sorted(set(pre_tokenizers.ByteLevel.alphabet()) - set(without)), "aa", "aaa"]
    merges = [("a", "a"), ("aa", "a")]
    core = Tokenizer(models.BPE(vocab={letter: at for at, letter in enumerate(letters)}, merges=merges))
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(["<special>"])
    return core


def byte_fallback() -> Tokenizer:
    """As of Llama 2: white space is a character of its own, and what is not known is written in bytes."""
    pieces = [*(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "aa"]
    vocabulary = {piece: at for at, piece in enumerate(pieces)}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[("a", "a")], byte_fallback=True))
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return core


def changed(**parts: Any) -> Tokenizer:
    """`byte_level` with other steps before the vocabulary."""
    core = byte_level()
    for name, part in parts.items():
        setattr(core, name, part)
    return core


def greedy() -> Tokenizer:
    """An added token that takes white space."""
    from tokenizers import AddedToken

    core = byte_level()
    core.add_special_tokens([AddedToken("<mask>", lstrip=True)])
    return core


def words_only() -> Tokenizer:
    core = Tokenizer(models.WordLevel(vocab={"a": 0, "?": 1}, unk_token="?"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    return core


@pytest.mark.parametrize("core", [byte_level(), byte_level(without="bÄĠ"), byte_fallback()])
@given(
    text=st.text(alphabet='ab1 "\x02ä😀') | st.sampled_from(["a" * 300, "<special>" * 9, "b" * 50, "😀" * 90])
)
def test_a_text_has_no_fewer_tokens_than_told(core: Tokenizer, text: str) -> None:
    words = tokenizer(core)
    assert least_tokens(words)(text) <= len(words(text)["input_ids"])


def test_the_bound_is_of_use() -> None:
    assert least_tokens(tokenizer(byte_level()))("b" * 900) == 100  # <special>, of nine bytes, is the longest
    assert least_tokens(tokenizer(byte_level()))("ä" * 900) == 200
    assert least_tokens(tokenizer(byte_level(without="b")))("b" * 900) == 0
    assert least_tokens(tokenizer(byte_fallback()))("ä" * 900) == 150


@pytest.mark.parametrize(
    "core",
    [
        changed(normalizer=normalizers.NFKC()),
        changed(normalizer=normalizers.Replace("  ", " ")),
        changed(normalizer=normalizers.Replace("a", "")),
        changed(normalizer=normalizers.Sequence([normalizers.Prepend("a"), normalizers.Strip()])),
        changed(pre_tokenizer=pre_tokenizers.Split("a", "removed")),
        changed(pre_tokenizer=pre_tokenizers.WhitespaceSplit()),
        greedy(),
        words_only(),
    ],
)
def test_nothing_is_said_of_tokenizers_that_drop_characters(core: Tokenizer) -> None:
    assert least_tokens(tokenizer(core))("a " * 10_000) == 0


def test_a_prompt_that_must_be_too_long_is_not_encoded(server: Running) -> None:
    text = "a" * 5 * (LENGTH + 1)
    for path, body, param in (
        ("completions", {"prompt": text}, "prompt"),
        ("completions", {"prompt": ["a", text]}, "prompt"),
        ("chat/completions", {"messages": [USER | {"content": text}]}, "messages"),
    ):
        error = HTTP.post(f"{server.url}/v1/{path}", json=body).json()["error"]
        assert (error["code"], error["param"]) == ("context_length_exceeded", param)
        assert "requested at least" in error["message"]


# -- who waits for whom -----------------------------------------------------------------------------


@pytest.fixture
def held() -> Iterator[threading.Event]:
    """Set, it lets long texts be read."""
    event = threading.Event()
    yield event
    event.set()


def test_nobody_waits_for_a_long_body(held: threading.Event) -> None:
    reading = threading.Semaphore(0)

    def slowly(text: str) -> int:
        if len(text) > LONG:
            reading.release()
            assert held.wait(timeout=30)
        return 0

    body = {"prompt": "a", "max_tokens": 2}
    with running(replace(tiny_served(), least_tokens=slowly)) as server, ThreadPoolExecutor(3) as pool:
        url = f"{server.url}/v1/completions"
        long = [pool.submit(HTTP.post, url, json={"prompt": "a" * (LONG + 1)}) for _ in range(3)]
        assert reading.acquire(timeout=30)
        assert HTTP.get(f"{server.url}/health").status_code == 200
        assert HTTP.post(url, json=body).json()["usage"]["completion_tokens"] == 2
        assert not any(one.done() for one in long)
        held.set()
        assert [one.result().json()["error"]["code"] for one in long] == ["context_length_exceeded"] * 3


# -- tokens without an embedding --------------------------------------------------------------------


def test_tokens_that_the_model_has_no_embedding_for_are_refused() -> None:
    """As an image token beside a text model; what follows is answered."""
    what = tiny_served()
    words = tiny_tokenizer()
    words.add_tokens(["<image>"], special_tokens=True)
    with running(replace(what, tokenizer=words)) as server:
        for path, body, param in (
            ("completions", {"prompt": "an <image>"}, "prompt"),
            ("completions", {"prompt": [70, 259]}, "prompt"),
            ("chat/completions", {"messages": [USER | {"content": "an <image>"}]}, "messages"),
        ):
            response = HTTP.post(f"{server.url}/v1/{path}", json=body)
            error = response.json()["error"]
            assert (response.status_code, error["param"]) == (400, param)
            assert "token ids must be below 259, got 259 ('<image>')" in error["message"]
        answer = HTTP.post(f"{server.url}/v1/completions", json={"prompt": "an", "max_tokens": 2})
        assert answer.json()["usage"]["completion_tokens"] == 2
        assert server.service.status == "ok"


def test_rows_of_the_embedding_are_counted_and_not_what_the_configuration_says() -> None:
    model = tiny_model(vocab_size=40)
    model.config.vocab_size = 64
    what = served(model, tiny_head(tiny_model()), tiny_tokenizer(), name="tiny", rows=1, plan=Plan())
    assert what.vocab_size == 40

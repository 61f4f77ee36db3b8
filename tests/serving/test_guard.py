"""Keys, sizes, malformed requests, and what the page may do."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from typing import Any

import httpx2 as httpx
import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.serving.server import HTTP, LENGTH, NAME, Running, running, tiny_served

KEY = "sk-secret"
COMPLETE, CHAT = "/v1/completions", "/v1/chat/completions"
ASK = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}


@pytest.fixture(scope="module")
def locked() -> Iterator[Running]:
    """A server with a key, which takes small bodies."""
    with running(tiny_served(), api_key=KEY, max_body_bytes=1_000) as one:
        yield one


def error_of(response: httpx.Response, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert list(error) == ["message", "type", "param", "code"]
    return error


# -- keys and sizes ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given", ["", "Bearer", "Bearer wrong", f"Basic {KEY}", f"Bearer {KEY}x", "Bearer ä"]
)
def test_calls_need_the_key(locked: Running, given: str) -> None:
    headers = {"authorization": given.encode()} if given else {}
    for path in (COMPLETE, CHAT, "/v1/models", "/v1/anything"):
        response = HTTP.post(locked.url + path, headers=headers, content=b"{")
        assert error_of(response, 401)["code"] == "invalid_api_key"


def test_the_key_opens_and_the_rest_is_open(locked: Running) -> None:
    answer = locked.client(api_key=KEY).completions.create(model=NAME, prompt="a", max_tokens=2)
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 2
    with pytest.raises(openai.AuthenticationError):
        locked.client(api_key="wrong").models.list()
    for path in ("/health", "/metrics", "/"):
        assert HTTP.get(locked.url + path).status_code == 200


def test_large_bodies_are_refused_said_or_not(locked: Running) -> None:
    headers = {"authorization": f"Bearer {KEY}", "content-type": "application/json"}
    body = json.dumps({"prompt": "a" * 1_000}).encode()

    def pieces() -> Iterator[bytes]:
        yield body[:600]
        yield body[600:]

    for content in (body, pieces()):
        response = HTTP.post(locked.url + COMPLETE, content=content, headers=headers)
        assert "1000 bytes" in error_of(response, 413)["message"]


def test_a_long_body_is_refused_before_it_comes(locked: Running) -> None:
    head = (
        f"POST {COMPLETE} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {KEY}\r\n"
        "Content-Length: 9999\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", int(locked.url.rpartition(":")[2])), timeout=10) as raw:
        raw.sendall(head.encode())
        assert raw.recv(100).startswith(b"HTTP/1.1 413")


# -- names ------------------------------------------------------------------------------------------

PATHS = ("/", "/health", "/metrics", "/openapi.json", "/v1/models")


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.evil.example",
             "me@localhost", "localhost/", "[::1", "", "[localhost]"],
)  # fmt: skip
def test_a_name_that_is_led_here_reads_nothing(server: Running, host: str) -> None:
    """DNS rebinding: a site's own name, resolved to this machine, in the browser of whoever visits it."""
    for path in PATHS:
        error = error_of(HTTP.get(server.url + path, headers={"host": host}), 400)
        assert error["code"] == "host_not_allowed"
    error_of(HTTP.post(server.url + CHAT, json=ASK, headers={"host": host}), 400)


@pytest.mark.parametrize(
    "host", ["localhost", "LocalHost:80", "localhost.:1", "127.0.0.1", "[::1]:1", "192.0.2.1:9"]
)
def test_own_names_are_answered(server: Running, host: str) -> None:
    for path in PATHS:
        assert HTTP.get(server.url + path, headers={"host": host}).status_code == 200


def test_further_names_are_answered_where_they_are_allowed() -> None:
    for allowed, others in ((("My.box", "b_c"), 400), (("*",), 200)):
        with running(allowed_hosts=allowed) as server:
            found = [
                HTTP.get(server.url, headers={"host": host}).status_code
                for host in ("my.box:1", "b_c", "other")
            ]
            assert found == [200, 200, others]


# -- what is refused --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "body", "param", "part"),
    [
        (CHAT, ASK | {"tools": [{"type": "function"}]}, "tools", "tools is not supported"),
        (CHAT, ASK | {"response_format": {"type": "json_object"}}, "response_format", "not supported"),
        (CHAT, ASK | {"temprature": 1}, "temprature", "unrecognized field: temprature"),
        (CHAT, ASK | {"temperature": 2.5}, "temperature", "less than or equal to 2"),
        (CHAT, ASK | {"temperature": "1"}, "temperature", "valid number"),
        (CHAT, ASK | {"max_tokens": 0}, "max_tokens", "greater than or equal to 1"),
        (CHAT, ASK | {"n": True}, "n", "valid integer"),
        (CHAT, ASK | {"stop": list("abcde")}, "stop", "at most 4"),
        (CHAT, ASK | {"stop": ""}, "stop", "at least 1"),
        (CHAT, ASK | {"top_logprobs": 2}, "top_logprobs", "needs logprobs"),
        (CHAT, ASK | {"logprobs": True, "top_logprobs": 21}, "top_logprobs", "less than or equal to 20"),
        (CHAT, ASK | {"stream_options": {}}, "stream_options", "needs stream"),
        (CHAT, ASK | {"logit_bias": {"x": 1}}, "logit_bias", "token ids below 259, got 'x'"),
        (CHAT, ASK | {"logit_bias": {"259": 1}}, "logit_bias", "token ids below 259"),
        (CHAT, ASK | {"polydraft": {"traced": 1}}, "polydraft", "unrecognized field: traced"),
        (CHAT, {"messages": []}, "messages", "at least 1"),
        (CHAT, {}, "messages", "Field required"),
        (CHAT, {"messages": [{"role": "tool", "content": "x"}]}, "messages", "role tool"),
        (CHAT, {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages", "'text'"),
        (CHAT, ASK | {"stop": ["a", ""]}, "stop", "stop.1: String should have at least 1 character"),
        (CHAT, ASK | {"stop": 5}, "stop", "stop: Input should be a valid string"),
        (
            CHAT,
            ASK | {"logit_bias": {"1": "a"}},
            "logit_bias",
            "logit_bias.1: Input should be a valid n",
        ),
        (
            CHAT,
            {"messages": [{"role": "user", "content": [{"type": "text", "text": 3}]}]},
            "messages",
            "messages.0.content.0.text: Input should be a valid string",
        ),
        (CHAT, {"messages": [{"role": "user"}]}, "messages", "messages.0.content: Field required"),
        (COMPLETE, {"prompt": [1, "a"]}, "prompt", "prompt.1: Input should be a valid integer"),
        (COMPLETE, {"prompt": [["a"]]}, "prompt", "prompt.0.0: Input should be a valid integer"),
        (COMPLETE, {"prompt": [[]]}, "prompt", "prompt.0: List should have at least 1 item"),
        (COMPLETE, {"prompt": ""}, "prompt", "the prompt is empty"),
        (COMPLETE, {"prompt": []}, "prompt", "at least 1"),
        (COMPLETE, {"prompt": [259]}, "prompt", "below 259, got 259"),
        (COMPLETE, {"prompt": ["a"] * 65, "n": 2}, "prompt", "at most 128"),
        (COMPLETE, {"prompt": "a", "suffix": "b"}, "suffix", "not supported"),
        (COMPLETE, {"prompt": "a", "best_of": 2}, "best_of", "not supported"),
        (COMPLETE, {"prompt": "a", "max_tokens": 0}, "max_tokens", "needs echo"),
        (COMPLETE, {"prompt": "a", "prompt_logprobs": 1}, "prompt_logprobs", "not supported"),
    ],
)
def test_what_is_refused_is_named(
    server: Running, path: str, body: dict[str, Any], param: str, part: str
) -> None:
    error = error_of(HTTP.post(server.url + path, json=body), 400)
    assert (error["param"], error["type"]) == (param, "invalid_request_error")
    assert part in error["message"]
    assert not {"[", "("} & set(error["message"].partition(":")[0])  # no type of the schema is named


def test_what_asks_for_nothing_is_ignored(server: Running) -> None:
    nothing = {
        "tools": None, "tool_choice": "none", "response_format": {"type": "text"}, "user": "me",
        "metadata": {"a": "b"}, "service_tier": "auto", "parallel_tool_calls": True, "top_k": -1,
        "stop": None, "store": True,
    }  # fmt: skip
    assert HTTP.post(server.url + CHAT, json=ASK | nothing).status_code == 200
    assert HTTP.post(server.url + COMPLETE, json={"prompt": "a", "n": 2, "best_of": 2}).status_code == 200


def test_a_context_has_its_length(server: Running) -> None:
    def asked(prompt: int, new: int) -> httpx.Response:
        return HTTP.post(server.url + COMPLETE, json={"prompt": [70] * prompt, "max_tokens": new})

    assert asked(LENGTH - 3, 3).json()["usage"]["total_tokens"] == LENGTH
    error = error_of(asked(LENGTH - 3, 4), 400)
    assert error["code"] == "context_length_exceeded"
    assert f"context length is {LENGTH} tokens" in error["message"]
    assert error_of(asked(LENGTH, 1), 400)["code"] == "context_length_exceeded"
    chat = [{"role": "user", "content": "a" * LENGTH}]
    error = error_of(HTTP.post(server.url + CHAT, json={"messages": chat}), 400)
    assert (error["code"], error["param"]) == ("context_length_exceeded", "messages")


def test_other_models_paths_and_methods(server: Running) -> None:
    response = HTTP.post(server.url + CHAT, json=ASK | {"model": "gpt-9"})
    assert error_of(response, 404)["code"] == "model_not_found"
    error_of(HTTP.get(f"{server.url}/v1/embeddings"), 404)
    error_of(HTTP.post(f"{server.url}/nothing"), 404)
    response = HTTP.get(server.url + CHAT)
    error_of(response, 405)
    assert response.headers["allow"] == "POST"


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"null", b"[]", b'"x"', b"\xff", b"[" * 100_000, b'{"\\ud800": 1}', b'{"prompt": "\\ud800"}',
     b'{"prompt": "a", "temperature": NaN}', b'{"prompt": "a", "seed": 1e999}', b'{"prompt": "a", "seed": 1' +
     b"0" * 30 + b"}", b'{"prompt": "a", "temperature": 1' + b"0" * 5_000 + b"}", b'{"prompt": [true]}',
     b'{"prompt": "a", "logit_bias": {"\xc2\xb2": 1}}'],
)  # fmt: skip
def test_malformed_bodies(server: Running, content: bytes) -> None:
    response = HTTP.post(server.url + COMPLETE, content=content, headers={"content-type": "application/json"})
    error_of(response, 400)


def test_bodies_of_another_type(server: Running) -> None:
    """So that a page of another site cannot ask: its browser would have to be allowed first, and is not."""
    response = HTTP.post(
        server.url + COMPLETE, content=b'{"prompt": "a"}', headers={"content-type": "text/plain"}
    )
    error_of(response, 400)
    response = HTTP.options(
        server.url + COMPLETE, headers={"origin": "http://a", "access-control-request-method": "POST"}
    )
    error_of(response, 405)
    assert not [name for name in response.headers if name.startswith("access-control")]


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
FIELDS = st.sampled_from(
    "model messages prompt stream stream_options n seed temperature top_p top_k min_p stop logprobs "
    "logit_bias top_logprobs max_completion_tokens repetition_penalty frequency_penalty polydraft "
    "ignore_eos tools".split()
)


@settings(max_examples=60)
@given(st.sampled_from([COMPLETE, CHAT]), st.dictionaries(FIELDS, VALUES, max_size=3), st.booleans())
def test_no_body_is_an_error_of_the_server(
    server: Running, path: str, body: dict[str, Any], whole: bool
) -> None:
    if whole:
        body = {"prompt": "a"} | body if path == COMPLETE else ASK | body
    content = json.dumps(body | {"max_tokens": 1}).encode()
    response = HTTP.post(server.url + path, content=content, headers={"content-type": "application/json"})
    assert response.status_code in (200, 400, 404), response.text
    assert server.service.status == "ok"


# -- the page ---------------------------------------------------------------------------------------


def test_the_page_loads_nothing_from_elsewhere(server: Running) -> None:
    response = HTTP.get(f"{server.url}/")
    assert response.headers["content-type"].startswith("text/html")
    assert "default-src 'self'" in response.headers["content-security-policy"]
    assert "unsafe" not in response.headers["content-security-policy"]
    assert response.headers["x-content-type-options"] == "nosniff"
    for path in ("/../app.py", "/%2e%2e/app.py", "/page/index.html", "/docs"):
        assert HTTP.get(server.url + path).status_code == 404

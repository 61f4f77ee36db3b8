"""Connections that send half a request, request ids, the log of requests, HEAD and the version."""

from __future__ import annotations

import json
import logging
import re
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from http.client import HTTPResponse

import pytest

import polydraft
from tests.serving.fake import SteppedBatch
from tests.serving.server import HTTP, NAME, Running, running, tiny_served, until, with_batch

COMPLETE = "/v1/completions"
HEAD = "Host: localhost\r\nContent-Type: application/json\r\n"
BODY = json.dumps({"prompt": "a", "max_tokens": 2})
WHOLE = f"POST {COMPLETE} HTTP/1.1\r\n{HEAD}Content-Length: {len(BODY)}\r\n\r\n{BODY}"
ID = re.compile("[0-9a-f]{32}")


@pytest.fixture(scope="module")
def hasty() -> Iterator[Running]:
    """A server that waits a moment for requests, and logs them."""
    with running(tiny_served(), receive_seconds=0.4, access_log=True) as one:
        yield one


def connected(server: Running) -> socket.socket:
    return socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2])), timeout=20)


def answer(raw: socket.socket) -> int:
    """The status of the next answer, whose body is read too."""
    with HTTPResponse(raw) as response:
        response.begin()
        response.read()
        return response.status


def logged(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [one.getMessage() for one in caplog.records if one.name == "polydraft.serving.access"]


def rest(raw: socket.socket) -> bytes:
    """Everything up to the end of the connection."""
    return b"".join(iter(lambda: raw.recv(4_096), b""))


@pytest.mark.parametrize(
    ("sent", "answers"),
    [
        ("", []),
        ("POST", [408]),
        (f"GET /health HTTP/1.1\r\n{HEAD}", [408]),
        (WHOLE[:-1], [408]),
        (WHOLE + WHOLE[:20], [200, 408]),
        (WHOLE + WHOLE[:-1], [200, 408]),
        (f"POST /health HTTP/1.1\r\n{HEAD}Content-Length: 9\r\n\r\nabc", [405]),
        (f"GET /health HTTP/1.1\r\n{HEAD}Content-Length: 9\r\n\r\nabc", [200]),
    ],
    ids=["nothing", "word", "head", "body", "second-head", "second-body", "refused", "answered"],
)
def test_half_of_a_request_is_given_up(hasty: Running, sent: str, answers: list[int]) -> None:
    with connected(hasty) as raw:
        raw.sendall(sent.encode())
        said = rest(raw)
    assert [int(code) for code in re.findall(rb"HTTP/1\.1 (\d+)", said)] == answers
    assert len(re.findall(rb"(?i)x-request-id: \w+", said)) == len(answers)
    if answers[-1:] == [408]:
        error = json.loads(said.rpartition(b"\r\n\r\n")[2])["error"]
        assert list(error) == ["message", "type", "param", "code"]
        assert error["code"] == "request_timeout"
        assert "0.4 seconds" in error["message"]


def test_dripping_bytes_do_not_help(hasty: Running) -> None:
    """The limit is that of the whole request, not of its next byte."""
    with connected(hasty) as raw:
        raw.setblocking(False)
        said, dripped = b"", 0
        while not said and dripped < 1_000:
            raw.sendall(b"G" if not dripped else b"a")
            dripped += 1
            time.sleep(0.02)
            with suppress(BlockingIOError):
                said = raw.recv(4_096)
    assert said.startswith(b"HTTP/1.1 408")
    assert dripped > 1


def test_a_request_that_takes_long_to_answer_is_not_given_up() -> None:
    """Once it has come, its own limit holds; nor is an idle connection closed between two of them."""
    batch = SteppedBatch(4)
    with running(with_batch(tiny_served(), batch), receive_seconds=0.2) as server, connected(server) as raw:
        raw.sendall(WHOLE.encode())
        time.sleep(0.6)
        batch.turns.release(9)
        assert answer(raw) == 200
        time.sleep(0.6)
        raw.sendall(WHOLE.encode())
        assert answer(raw) == 200


@pytest.mark.parametrize("given", ["abc", "req-1.2:3/4_5+6=@", "a" * 128])
def test_an_id_comes_back(server: Running, given: str) -> None:
    response = HTTP.get(f"{server.url}/health", headers={"x-request-id": given})
    assert response.headers.get_list("x-request-id") == [given]


@pytest.mark.parametrize("given", ["", "a b", 'a"b', "a" * 129, "é", "a\tb"])
def test_an_id_that_is_none_is_replaced(server: Running, given: str) -> None:
    response = HTTP.get(f"{server.url}/health", headers={"x-request-id": given.encode()})
    assert ID.fullmatch(response.headers["x-request-id"])


def test_every_answer_has_an_id(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    ask = {"prompt": "a", "max_tokens": 2}
    answers = [
        HTTP.post(server.url + COMPLETE, json=ask),
        HTTP.post(server.url + COMPLETE, json=ask | {"stream": True}),
        HTTP.post(server.url + COMPLETE, json=ask | {"n": 0}),
        HTTP.get(f"{server.url}/nothing"),
        HTTP.get(f"{server.url}/", headers={"host": "evil.example"}),
        HTTP.get(f"{server.url}/"),
    ]
    monkeypatch.setattr(type(server.service), "submit", lambda *_: 1 / 0)
    answers.append(HTTP.post(server.url + COMPLETE, json=ask))
    assert [one.status_code for one in answers] == [200, 200, 400, 404, 400, 200, 500]
    ids = [one.headers["x-request-id"] for one in answers]
    assert all(map(ID.fullmatch, ids))
    assert len(set(ids)) == len(ids)


def test_the_openai_client_reads_the_id(server: Running) -> None:
    answer = server.client().completions.create(
        model=NAME, prompt="a", max_tokens=1, extra_headers={"X-Request-Id": "mine"}
    )
    assert answer._request_id == "mine"


def test_a_line_for_each_request(hasty: Running, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "polydraft.serving.access")
    HTTP.get(f"{hasty.url}/health?secret=1", headers={"x-request-id": "one"})
    HTTP.head(f"{hasty.url}/health", headers={"x-request-id": "two"})
    HTTP.get(f"{hasty.url}/no%0Athing%20b", headers={"x-request-id": "three"})
    HTTP.post(hasty.url + COMPLETE, json={"prompt": "a", "stream": True}, headers={"x-request-id": "four"})
    HTTP.post(hasty.url + COMPLETE, json={"n": 0}, headers={"x-request-id": "five"})
    expected = [
        r"GET /health 200 0\.\d{3} one",
        r"HEAD /health 200 0\.\d{3} two",
        r"GET /no%0Athing%20b 404 \d\.\d{3} three",
        rf"POST {COMPLETE} 200 \d+\.\d{{3}} four",
        rf"POST {COMPLETE} 400 \d\.\d{{3}} five",
    ]
    # A line is written once the answer has been sent, which its reader may know first.
    until(lambda: len(logged(caplog)) == len(expected))
    for line, pattern in zip(logged(caplog), expected, strict=True):
        assert re.fullmatch(pattern, line), line


def test_no_log_without_the_option(server: Running, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "polydraft.serving.access")
    HTTP.get(f"{server.url}/health")
    assert not caplog.records


@pytest.mark.parametrize("path", ["/", "/health", "/version", "/metrics", "/v1/models", "/openapi.json"])
def test_head_is_get_without_a_body(server: Running, path: str) -> None:
    response = HTTP.head(server.url + path)
    assert (response.status_code, response.content) == (200, b"")
    assert response.headers["content-type"] == HTTP.get(server.url + path).headers["content-type"]


def test_the_version_is_told(server: Running) -> None:
    assert HTTP.get(f"{server.url}/version").json() == {"version": polydraft.__version__}

"""Queues, clients that leave, time limits, failures and shutdowns, over a batch that waits for its turns."""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import httpx2 as httpx
import openai
import pytest

from polydraft.errors import InputError
from polydraft.hidden import decoder_layers
from polydraft.serving.errors import queue_full
from polydraft.serving.run import stop
from polydraft.serving.settings import Settings
from tests.decoding.test_faults import Fuse, burning, fail
from tests.serving.fake import SteppedBatch
from tests.serving.server import (
    HTTP,
    NAME,
    Running,
    plain_text,
    running,
    tiny,
    tiny_served,
    until,
    with_batch,
)

BODY = {"model": NAME, "prompt": "hello", "max_tokens": 4}


@pytest.fixture
def batch() -> SteppedBatch:
    """Two rows."""
    return SteppedBatch(2)


@pytest.fixture
def server(batch: SteppedBatch) -> Iterator[Running]:
    """A server of it in which one request may wait."""
    with running(with_batch(tiny_served(), batch), max_queue=1) as one:
        yield one
        batch.turns.release(1_000)


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as one:
        yield one


def post(server: Running, **more: Any) -> httpx.Response:
    return HTTP.post(f"{server.url}/v1/completions", json=BODY | more, timeout=30)


def placed(server: Running, running: int, waiting: int) -> bool:
    """Whether so many requests run and wait; the metrics say the same."""
    worker = server.service.worker
    if (worker.running, worker.waiting) != (running, waiting):
        return False
    assert server.metric("num_requests_running") == running
    assert server.metric("num_requests_waiting") == waiting
    return True


def pass_turns(server: Running, batch: SteppedBatch) -> None:
    """Cycles, one by one, until nothing runs."""
    while not placed(server, 0, 0):
        batch.turns.release(1)
        time.sleep(0.05)


def error_of(response: httpx.Response, status: int) -> dict[str, Any]:
    assert response.status_code == status
    error = response.json()["error"]
    assert list(error) == ["message", "type", "param", "code"]
    return error


def fill(
    server: Running, batch: SteppedBatch, pool: ThreadPoolExecutor, *, requests: int = 3, **more: Any
) -> list[Future[httpx.Response]]:
    """Two requests that run and, of three, one that waits. Rows are given between cycles, so one passes."""
    out = [pool.submit(post, server, **more)]
    until(lambda: placed(server, 1, 0))
    out.append(pool.submit(post, server, **more))
    until(lambda: placed(server, 1, 1))
    batch.turns.release(1)
    until(lambda: placed(server, 2, 0))
    if requests == 3:
        out.append(pool.submit(post, server, **more))
        until(lambda: placed(server, 2, 1))
    return out


def test_a_full_queue_refuses_and_the_others_are_answered(
    server: Running, batch: SteppedBatch, pool: ThreadPoolExecutor
) -> None:
    accepted = fill(server, batch, pool)
    refused = post(server)
    assert error_of(refused, 429)["code"] == "rate_limit_exceeded"
    assert int(refused.headers["retry-after"]) >= 1
    with pytest.raises(openai.RateLimitError):
        server.client().completions.create(**BODY)
    batch.turns.release(1_000)
    for one in accepted:
        (choice,) = one.result().json()["choices"]
        assert (len(choice["text"]), choice["finish_reason"]) == (4, "length")
    assert post(server).status_code == 200


def test_who_is_refused_is_told_how_long_the_queue_lasts(
    server: Running, batch: SteppedBatch, pool: ThreadPoolExecutor
) -> None:
    """By `Retry-After`: as long as one waits already, or as the one waited that last got a row."""

    def told() -> int:
        return int(post(server).headers["retry-after"])

    began = time.monotonic()
    accepted = fill(server, batch, pool)
    time.sleep(1.01)
    assert 2 <= told() <= math.ceil(time.monotonic() - began)
    batch.turns.release(2)  # ends the first, whose row the third gets
    until(lambda: placed(server, 2, 0))
    accepted.append(pool.submit(post, server))
    until(lambda: placed(server, 2, 1))
    assert 2 <= told() <= math.ceil(time.monotonic() - began)
    batch.turns.release(1_000)
    assert [one.result().status_code for one in accepted] == [200] * 4


def test_a_time_to_come_again_is_one_that_clients_heed() -> None:
    found = [queue_full(seconds).headers["Retry-After"] for seconds in (0, 1.2, 59.9, 1e4)]
    assert found == ["1", "2", "60", "60"]


@pytest.fixture
def roomy(batch: SteppedBatch) -> Iterator[Running]:
    """A server of two rows in which four texts may wait."""
    with running(with_batch(tiny_served(), batch), max_queue=4) as one:
        yield one
        batch.turns.release(1_000)


def test_choices_take_rows_one_by_one(roomy: Running, batch: SteppedBatch, pool: ThreadPoolExecutor) -> None:
    answer = pool.submit(post, roomy, n=5)
    until(lambda: len(batch.active) == 2)
    assert placed(roomy, 1, 0)
    batch.turns.release(1_000)
    assert [len(choice["text"]) for choice in answer.result().json()["choices"]] == [4] * 5


def test_requests_take_turns(batch: SteppedBatch, pool: ThreadPoolExecutor) -> None:
    """Rows come free by two, and go to who has the fewest; of equals to who came first."""
    with running(with_batch(tiny_served(), batch), max_queue=16) as server:
        answers = []
        for waiting, (name, texts) in enumerate((("a", 6), ("b", 1), ("c", 1), ("d", 3))):
            answers.append(pool.submit(post, server, prompt=name, n=texts))
            until(lambda waiting=waiting: placed(server, 1, waiting))
        batch.turns.release(1_000)
        assert [len(one.result().json()["choices"]) for one in answers] == [6, 1, 1, 3]
    words = [tiny()[1].decode(row.ids[0, 0]) for row in batch.admitted]
    assert words == list("aaabacadadd")


def test_texts_are_counted_in_the_queue_and_small_requests_still_fit(
    roomy: Running, batch: SteppedBatch, pool: ThreadPoolExecutor
) -> None:
    accepted = [pool.submit(post, roomy, n=2)]
    until(lambda: placed(roomy, 1, 0))
    never = error_of(post(roomy, prompt=["a", "b"], n=4), 400)
    assert (never["param"], "at most 6 on this server" in never["message"]) == ("n", True)
    accepted.append(pool.submit(post, roomy, n=3))
    until(lambda: placed(roomy, 1, 1))
    error_of(post(roomy, n=3), 429)  # all three go before its last
    accepted += [pool.submit(post, roomy)]  # one of them, and itself
    until(lambda: placed(roomy, 1, 2))
    batch.turns.release(1_000)
    assert [len(one.result().json()["choices"]) for one in accepted] == [2, 3, 1]


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_frees_its_row(
    server: Running, batch: SteppedBatch, pool: ThreadPoolExecutor, stream: bool
) -> None:
    body = BODY | {"stream": stream, "max_tokens": 80}
    running, waiting, *_ = clients = [httpx.Client(timeout=httpx.Timeout(30, read=None)) for _ in range(2)]
    with pytest.raises(httpx.ReadTimeout):
        running.post(f"{server.url}/v1/completions", json=body | {"n": 2, "stream": False}, timeout=0.5)
    pass_turns(server, batch)
    assert len(batch.dropped) == 2
    assert server.metric("request_success_total", finished_reason="abort") == 2
    held = fill(server, batch, pool, requests=2, max_tokens=50)
    if stream:
        with waiting.stream("POST", f"{server.url}/v1/completions", json=body):
            until(lambda: placed(server, 2, 1))
    else:
        with pytest.raises(httpx.ReadTimeout):
            waiting.post(f"{server.url}/v1/completions", json=body, timeout=0.5)
    until(lambda: placed(server, 2, 0))  # it left the queue, though no row came free
    batch.turns.release(1_000)
    assert [len(one.result().json()["choices"][0]["text"]) for one in held] == [50, 50]
    for client in clients:
        client.close()


def test_a_client_that_leaves_during_its_prompt_frees_it() -> None:
    """Of a prompt of ten chunks no more are read than had begun."""
    turns, read = threading.Semaphore(0), []

    def wait(*given: Any) -> None:
        read.append(1)
        assert turns.acquire(timeout=30)

    with running(tiny_served(rows=1)) as server, httpx.Client(verify=False, timeout=0.5) as client:
        handle = tiny()[0].register_forward_pre_hook(wait)
        with pytest.raises(httpx.ReadTimeout):
            client.post(f"{server.url}/v1/completions", json=BODY | {"prompt": [70] * 80})
        until(lambda: all(job.cancelled for job, _ in server.service.worker._active))
        turns.release()
        until(lambda: placed(server, 0, 0))
        handle.remove()
        assert len(read) == 1
        assert server.metric("request_success_total", finished_reason="abort") == 1
        assert post(server).status_code == 200


def test_a_stream_that_is_left_frees_its_row(server: Running, batch: SteppedBatch) -> None:
    body = BODY | {"stream": True, "max_tokens": 80}
    with HTTP.stream("POST", f"{server.url}/v1/completions", json=body) as stream:
        batch.turns.release(1)
        assert next(stream.iter_lines()).startswith("data: ")
    pass_turns(server, batch)
    assert len(batch.dropped[0].generated) < 80


def test_a_client_that_does_not_read_holds_no_row(roomy: Running, batch: SteppedBatch) -> None:
    body = BODY | {"stream": True, "max_tokens": 80, "prompt": ["a"] * 6}
    batch.turns.release(10_000)
    with HTTP.stream("POST", f"{roomy.url}/v1/completions", json=body) as stream:
        until(lambda: roomy.service.worker.running == 0)
        events = [line for line in stream.iter_lines() if line.startswith("data: {")]
    said = [choice for line in events for choice in json.loads(line[6:])["choices"]]
    assert sum(len(choice["text"]) for choice in said) == 6 * 80


def test_a_request_that_takes_too_long_ends(batch: SteppedBatch) -> None:
    what = with_batch(tiny_served(), batch)
    with running(what, timeout_seconds=0.3, shutdown_seconds=1) as server:
        assert error_of(post(server, max_tokens=80), 504)["code"] == "timeout"
        with pytest.raises(openai.APIError, match="longer than 0"):
            list(server.client().completions.create(**BODY | {"stream": True}))
        until(lambda: placed(server, 1, 0))  # the second one left the queue
        pass_turns(server, batch)
        assert len(batch.dropped) == 1
        batch.turns.release(1_000)
        assert post(server).status_code == 200


def test_a_batch_that_fails_is_replaced(
    batch: SteppedBatch, pool: ThreadPoolExecutor, caplog: pytest.LogCaptureFixture
) -> None:
    """Its requests fail, the one that waits is answered by the next batch, and so are later ones."""
    another = SteppedBatch(2)
    with running(with_batch(tiny_served(), batch, another), max_queue=1) as server:
        *lost, waiting = fill(server, batch, pool)
        batch.fails = RuntimeError("a secret")
        batch.turns.release(1)
        for one in lost:
            assert "secret" not in error_of(one.result(), 500)["message"]
        another.turns.release(1_000)
        assert waiting.result().json()["choices"][0]["finish_reason"] == "length"
        assert post(server).status_code == 200
        assert HTTP.get(f"{server.url}/health").json()["status"] == "ok"
        assert "RuntimeError: a secret" in caplog.text
        assert server.metric("num_requests_running") == 0


def test_a_text_that_fails_ends_its_request_alone(
    server: Running, batch: SteppedBatch, pool: ThreadPoolExecutor
) -> None:
    accepted = fill(server, batch, pool)
    batch.fails_text = batch.active[0], RuntimeError("a secret")
    batch.turns.release(1_000)
    first, *others = (one.result() for one in accepted)
    error_of(first, 500)
    assert [len(one.json()["choices"][0]["text"]) for one in others] == [4, 4]
    assert server.metric("num_requests_running") == 0


def test_a_batch_that_cannot_be_opened_again_ends_the_worker(
    server: Running, batch: SteppedBatch, pool: ThreadPoolExecutor
) -> None:
    accepted = fill(server, batch, pool)
    batch.fails = RuntimeError("a secret")
    batch.turns.release(1)
    for one in accepted:
        error_of(one.result(), 500)
    error_of(post(server), 500)
    health = HTTP.get(f"{server.url}/health")
    assert (health.status_code, health.json()) == (503, {"status": "failed"})
    assert server.metric("num_requests_running") == 0


@pytest.mark.parametrize("layer", [1, 2])
def test_a_forward_that_fails_fails_its_request_alone(layer: int) -> None:
    """With a real batch: the first reads the prompt, a later one is a step."""
    model, _ = tiny()
    with running() as server:
        with burning(decoder_layers(model, upto=layer)[layer - 1], Fuse(fail, at=2 * layer - 1)):
            error_of(post(server, temperature=0, max_tokens=20), 500)
        answer = post(server, temperature=0, max_tokens=20)
        assert answer.json()["choices"][0]["text"] == plain_text("hello", new=20)


def test_a_bug_in_a_handler_is_a_500_without_its_text(
    server: Running, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("polydraft.serving.prepare.encode", lambda *_: 1 / 0)
    assert "division" not in error_of(post(server), 500)["message"]
    with httpx.Client(verify=False) as another:  # the connection of the first is closed
        assert another.get(f"{server.url}/health").status_code == 200


# -- shutdown ---------------------------------------------------------------------------------------


def test_a_shutdown_finishes_what_runs_and_waits(
    server: Running, batch: SteppedBatch, pool: ThreadPoolExecutor
) -> None:
    accepted = fill(server, batch, pool)
    stopping = threading.Thread(target=server.stop)
    stopping.start()
    until(lambda: server.service.draining)
    refused = post(server)
    assert error_of(refused, 503)["code"] == "shutting_down"
    assert "retry-after" in refused.headers
    health = HTTP.get(f"{server.url}/health")
    assert (health.status_code, health.json()) == (503, {"status": "shutting down"})
    batch.turns.release(1_000)
    assert [len(one.result().json()["choices"][0]["text"]) for one in accepted] == [4, 4, 4]
    stopping.join(timeout=20)
    assert not server.thread.is_alive()
    with pytest.raises(httpx.ConnectError):
        post(server)


def test_a_shutdown_has_a_limit(batch: SteppedBatch, pool: ThreadPoolExecutor) -> None:
    with running(with_batch(tiny_served(), batch), shutdown_seconds=0.2) as server:
        accepted = fill(server, batch, pool)
        stopping = threading.Thread(target=server.stop)
        stopping.start()
        for one in accepted:
            assert error_of(one.result(), 503)["code"] == "shutting_down"
        batch.turns.release(1_000)
        stopping.join(timeout=20)
        assert not server.thread.is_alive()


def test_a_second_signal_does_not_wait(
    server: Running, batch: SteppedBatch, pool: ThreadPoolExecutor
) -> None:
    lost = pool.submit(post, server)
    until(lambda: placed(server, 1, 0))
    stop(server.server)
    stop(server.server)
    server.thread.join(timeout=20)
    assert not server.thread.is_alive()
    assert lost.exception() is not None or lost.result().status_code == 500
    batch.turns.release(1_000)
    server.service.worker.close()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_num_seqs", 0),
        ("max_queue", 0),
        ("prefill_chunk_size", 0),
        ("max_body_bytes", 0),
        ("timeout_seconds", 0),
        ("timeout_seconds", float("nan")),
        ("shutdown_seconds", float("nan")),
        ("api_key", ""),
        ("api_key", "k\n"),
    ],
)
def test_settings_have_ranges(name: str, value: Any) -> None:
    with pytest.raises(InputError, match=name):
        Settings(**{name: value})

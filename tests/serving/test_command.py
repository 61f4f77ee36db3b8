"""`polydraft serve` as a user types it."""

from __future__ import annotations

import importlib.util
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import torch
from typer.testing import CliRunner, Result

from polydraft.cli import app, options
from polydraft.errors import InputError
from polydraft.extras import install
from polydraft.loading import load_model
from polydraft.serving.run import address_of, bound
from tests.serving.server import HTTP, tiny_served
from tests.tiny import tiny_folder, tiny_head

NAMES = ("--model", "smollm2-135m-instruct", "--head", "smollm2-135m-instruct")


def run(*args: object) -> Result:
    return CliRunner().invoke(app, ["serve", *NAMES, *map(str, args)])


@pytest.fixture(autouse=True)
def _nothing_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(options, "open_session", lambda **_: (_ for _ in ()).throw(InputError("it loads")))


@pytest.mark.parametrize(
    ("args", "fragment"),
    [
        (("--max-num-seqs", 0), "max_num_seqs must be at least 1"),
        (("--prefill-chunk-size", 0), "prefill_chunk_size must be at least 1"),
        (("--timeout-seconds", 0), "timeout_seconds must be above 0"),
        (("--allowed-host", "a", "--allowed-host", "http://b"), "'http://b' is no host's name: leave out"),
        (("--allowed-host", "b:80"), "'b:80' is no host's name"),
        (("--host", "no.such.host.invalid"), "cannot serve at no.such.host.invalid"),
        (("--host", "192.0.2.1", "--port", 0), "cannot serve at 192.0.2.1, port 0"),
    ],
)
def test_what_cannot_be_is_one_line_before_anything_loads(args: tuple[object, ...], fragment: str) -> None:
    result = run(*args)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"error: {fragment}")
    assert result.stderr.count("\n") == 1


def test_a_port_that_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        result = run("--port", taken.getsockname()[1])
    assert result.exit_code == 2
    assert "Address already in use" in result.stderr


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        "polydraft.cli.serve.find_spec", lambda name: None if name == "uvicorn" else find(name)
    )
    result = run("--port", 0)
    assert (result.exit_code, result.stderr) == (
        1,
        f"error: serving needs uvicorn: {install('serve')}\n",
    )


@pytest.mark.parametrize(
    ("host", "key", "warned"),
    [
        ("127.0.0.1", None, False),
        ("localhost", None, False),
        ("0.0.0.0", None, True),
        ("0.0.0.0", "k", False),
    ],
)
def test_an_open_address_without_a_key_is_warned_of(
    monkeypatch: pytest.MonkeyPatch, host: str, key: str | None, warned: bool
) -> None:
    monkeypatch.delenv("POLYDRAFT_API_KEY", raising=False)
    if key is not None:
        monkeypatch.setenv("POLYDRAFT_API_KEY", key)
    result = run("--host", host, "--port", 0)
    assert "it loads" in result.stderr
    assert ("warning: anyone who reaches" in result.stderr) == warned
    assert "warning" not in run("--host", host, "--port", 0, "--api-key", "k").stderr


def test_limits_of_length() -> None:
    assert tiny_served(max_model_len=None).max_model_len == 512
    for length in (1, 513):
        with pytest.raises(InputError, match="max_model_len must be between 2 and the model's 512"):
            tiny_served(max_model_len=length)


def test_addresses() -> None:
    with bound("127.0.0.1", 0) as listener:
        assert address_of(listener) == f"http://127.0.0.1:{listener.getsockname()[1]}"
    if socket.has_ipv6:
        with bound("::1", 0) as listener:
            assert address_of(listener).startswith("http://[::1]:")


# -- as a process -----------------------------------------------------------------------------------


class Process:
    """The command, running; its address once it is ready."""

    def __init__(self, *args: str) -> None:
        command = [sys.executable, "-m", "polydraft", "serve", "--port", "0", "--threads", "1", *args]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        found = re.fullmatch(r"serving \S+ at (http://127\.0\.0\.1:\d+)\n", line)
        assert found, line
        self.url = found[1]

    def end(self) -> int:
        """Its exit code, and that it had nothing to complain of."""
        _, errors = self.process.communicate(timeout=60)
        assert "Traceback" not in errors
        return self.process.returncode


def streamed(url: str, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The events of a stream, up to [DONE]."""
    with HTTP.stream(
        "POST", f"{url}/v1/chat/completions", json=body | {"stream": True}, timeout=120
    ) as stream:
        lines = [line for line in stream.iter_lines() if line]
    assert lines.pop() == "data: [DONE]"
    yield from (json.loads(line.removeprefix("data: ")) for line in lines)


def finishes_what_runs(process: Process, *, name: str, tokens: int) -> None:
    """Ask, ask by a stream, end the process meanwhile: the stream is whole, and the process leaves with 0."""
    body = {"messages": [{"role": "user", "content": "Hi!"}], "temperature": 0, "max_tokens": tokens}
    client = openai.OpenAI(base_url=f"{process.url}/v1", api_key="none", max_retries=0)
    answer = client.chat.completions.create(model=name, **body)
    found: list[dict[str, Any]] = []
    reading = threading.Thread(target=lambda: found.extend(streamed(process.url, body)))
    reading.start()
    while "num_requests_running{model_name=" not in (text := HTTP.get(f"{process.url}/metrics").text) or (
        not re.search(r"num_requests_running\{.*\} 1.0", text)
    ):
        assert reading.is_alive()
        time.sleep(0.01)
    process.process.send_signal(signal.SIGTERM)
    reading.join(timeout=120)
    text = "".join(event["choices"][0]["delta"].get("content", "") for event in found)
    assert text == answer.choices[0].message.content
    assert found[-1]["choices"][0]["finish_reason"] == answer.choices[0].finish_reason
    assert process.end() == 0


@pytest.mark.slow
def test_sigterm_finishes_what_runs(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "model")
    model, tokenizer = load_model(str(folder), dtype=torch.float32)
    tiny_head(model, tokenizer=tokenizer).save_pretrained(tmp_path / "head")
    given = ("--model", str(folder), "--head", str(tmp_path / "head"), "--dtype", "float32")
    process = Process(*given, "--served-model-name", "mine", "--draft-length", "2")
    finishes_what_runs(process, name="mine", tokens=300)


@pytest.mark.slow
@pytest.mark.real_model
def test_the_embedded_model_is_served() -> None:
    process = Process(*NAMES, "--draft-length", "3", "--max-num-seqs", "2")
    finishes_what_runs(process, name=NAMES[1], tokens=24)

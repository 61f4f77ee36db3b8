"""The examples of docs/serving.md, run against a server; and its tables against the code."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from polydraft.serving.fields import IGNORED
from polydraft.serving.schemas import ChatRequest, CompletionRequest
from tests.serving.server import Running, running, tiny_served

GUIDE = (Path(__file__).parents[2] / "docs" / "serving.md").read_text()
ADDRESS = "http://127.0.0.1:8000"


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    """One with room for the examples."""
    with running(tiny_served(max_model_len=256)) as one:
        yield one


def block(language: str) -> str:
    """The first block of a language."""
    return GUIDE.split(f"```{language}\n")[1].split("```")[0]


def test_the_python_example(server: Running, capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(block("python").replace(ADDRESS, server.url), "serving.md", "exec"), {})
    assert capsys.readouterr().out.endswith(" tokens per step\n")


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_the_curl_example(server: Running) -> None:
    command = shlex.split(block("bash").replace(ADDRESS, server.url).replace("\\\n", " "))
    found = subprocess.run([*command, "--silent"], capture_output=True, check=True, text=True).stdout
    assert json.loads(found)["choices"][0]["message"]["role"] == "assistant"


def test_every_field_is_in_the_guide() -> None:
    for name in {*ChatRequest.model_fields, *CompletionRequest.model_fields, *IGNORED}:
        assert f"`{name}`" in GUIDE


def test_every_metric_is_in_the_guide(server: Running) -> None:
    for family in server.service.worker.metrics.registry.collect():
        assert family.name.startswith("process_") or f"`{family.name}" in GUIDE

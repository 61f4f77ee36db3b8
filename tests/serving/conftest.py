"""One server for all tests that only ask it things."""

from __future__ import annotations

from collections.abc import Iterator

import openai
import pytest

from tests.serving.server import Running, running


@pytest.fixture(scope="session")
def server() -> Iterator[Running]:
    """A tiny server of four rows."""
    with running() as one:
        yield one


@pytest.fixture(scope="session")
def client(server: Running) -> openai.OpenAI:
    """The official client of it."""
    return server.client()

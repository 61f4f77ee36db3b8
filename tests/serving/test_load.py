"""Many clients at once: nobody is lost, and nobody's answer depends on the others."""

from __future__ import annotations

import asyncio

import pytest

from lab.benchmarks.load_server import load, percentiles
from tests.serving.server import PROMPTS, running, tiny_served

CLIENTS, REQUESTS, TOKENS = 32, 10, 10


@pytest.mark.slow
def test_every_answer_under_load_is_that_of_the_same_request_alone() -> None:
    with running(tiny_served(rows=8), max_num_seqs=8, max_queue=CLIENTS) as server:
        found = asyncio.run(
            load(server.url, PROMPTS, clients=CLIENTS, requests=REQUESTS, max_tokens=TOKENS, api_key="none")
        )
        said = server.metric("generation_tokens_total")
    assert found["lost"] == []
    assert found["answered"] == found["equal"] == CLIENTS * REQUESTS
    assert found["tokens"] == CLIENTS * REQUESTS * TOKENS
    assert said == found["tokens"] + len(PROMPTS) * TOKENS


def test_percentiles_are_values_that_so_many_percent_do_not_exceed() -> None:
    assert percentiles([float(value) for value in range(100, 0, -1)]) == {"p50": 50, "p90": 90, "p99": 99}
    assert percentiles([3.0]) == {"p50": 3, "p90": 3, "p99": 3}

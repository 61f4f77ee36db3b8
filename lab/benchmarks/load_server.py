"""Many clients of one server at once: none lost, every answer that of the same request alone, and how soon.

    polydraft serve --model smollm2-135m-instruct --head smollm2-135m-instruct --dtype float32
    python -m lab.benchmarks.load_server --url http://127.0.0.1:8000 --clients 32 --requests 10

Every request is a greedy chat of a prompt from the file, streamed. Each prompt in use is first asked alone;
`equal` counts the answers under load that say the same, which is all of them in float32. Clients that are
refused for a full queue come again when the server says; `lost` has the errors of those that gave up.
Times are from sending to the first text and to the last; `tokens_per_second` is of all clients together.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai

from polydraft.bench.prompts import prompts_path, read_prompts
from polydraft.files import write_atomic

RETRIES = 20
"""Of a client that finds the queue full."""
SHARES = (50, 90, 99)
"""Percentiles that are printed."""


@dataclass(frozen=True)
class Answer:
    """One answer. Times in seconds."""

    text: str
    tokens: int
    first: float
    whole: float


async def ask(client: openai.AsyncOpenAI, model: str, content: str, *, max_tokens: int) -> Answer:
    """One request, streamed."""
    began = time.perf_counter()
    stream = await client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": content}],
        max_tokens=max_tokens,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    text, tokens, first = "", 0, None
    async for chunk in stream:
        if chunk.usage is not None:
            tokens = chunk.usage.completion_tokens
        for choice in chunk.choices:
            if choice.delta.content and first is None:
                first = time.perf_counter() - began
            text += choice.delta.content or ""
    whole = time.perf_counter() - began
    return Answer(text, tokens, whole if first is None else first, whole)


async def load(
    url: str, contents: Sequence[str], *, clients: int, requests: int, max_tokens: int, api_key: str
) -> dict[str, Any]:
    """Ask everything alone, then all clients at once; client c's k-th request is prompt c + k.

    Returns the figures that the program prints.
    """
    options: dict[str, Any] = {"base_url": f"{url}/v1", "api_key": api_key, "timeout": 600}
    async with openai.AsyncOpenAI(**options, max_retries=RETRIES) as client:
        model = (await client.models.list()).data[0].id
        alone = [await ask(client, model, content, max_tokens=max_tokens) for content in contents]
        found: list[tuple[int, Answer]] = []
        lost: list[str] = []

        async def one(number: int) -> None:
            for k in range(requests):
                which = (number + k) % len(contents)
                try:
                    found.append((which, await ask(client, model, contents[which], max_tokens=max_tokens)))
                except openai.APIError as error:
                    lost.append(str(error))

        began = time.perf_counter()
        await asyncio.gather(*(one(number) for number in range(clients)))
        seconds = time.perf_counter() - began
    tokens = sum(answer.tokens for _, answer in found)
    return {
        "model": model,
        "clients": clients,
        "asked": clients * requests,
        "answered": len(found),
        "equal": sum(answer.text == alone[which].text for which, answer in found),
        "lost": lost,
        "tokens": tokens,
        "seconds": seconds,
        "tokens_per_second": tokens / seconds,
        "tokens_per_second_alone": sum(one.tokens for one in alone) / sum(one.whole for one in alone),
        "first_text_seconds": percentiles([answer.first for _, answer in found]),
        "whole_seconds": percentiles([answer.whole for _, answer in found]),
    }


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """The smallest values that the given percentages do not exceed (nearest rank)."""
    ranked = sorted(values)
    return {f"p{share}": ranked[-(-len(ranked) * share // 100) - 1] for share in SHARES} if ranked else {}


def main() -> None:
    """See above."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--api-key", default="none")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--requests", type=int, default=10, help="of each client")
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument(
        "--prompts", default="heldout", help="JSON lines, or the name of a file that is shipped"
    )
    parser.add_argument("--distinct", type=int, default=16, help="prompts in use, the first of the file")
    parser.add_argument("--out", type=Path, help="where to write the figures")
    given = parser.parse_args()
    prompts = read_prompts(prompts_path(given.prompts))[: given.distinct]
    contents = [one.content.get("prompt") or one.content["messages"][-1]["content"] for one in prompts]
    found = asyncio.run(
        load(
            given.url,
            contents,
            clients=given.clients,
            requests=given.requests,
            max_tokens=given.max_tokens,
            api_key=given.api_key,
        )
    )
    text = json.dumps(found, indent=1)
    print(text)
    if given.out is not None:
        write_atomic(given.out, text + "\n")


if __name__ == "__main__":
    main()

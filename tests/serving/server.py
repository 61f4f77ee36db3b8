"""A server over a tiny model, on a loopback port, in a thread of the test."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any, cast

import httpx2 as httpx
import openai
import torch
from prometheus_client.parser import text_string_to_metric_families
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from polydraft.decoding.plan import Plan
from polydraft.serving.app import create_app
from polydraft.serving.model import Served, served
from polydraft.serving.run import Server, bound, stop
from polydraft.serving.service import Service, open_service
from polydraft.serving.settings import Settings
from tests.decoding.models import HORIZON, oracle_of_many
from tests.tiny import tiny_model, tiny_tokenizer

NAME = "tiny"
END = 2
NEW = 40
LENGTH = 96
"""Tokens of a prompt and its answer."""
CHUNK = 8
"""Tokens of prompts read between two cycles, so that most prompts here are read in several chunks."""
HTTP = httpx.Client(verify=False, timeout=60)
"""For every test: making one reads the machine's certificates, which takes longer than most requests."""
PROMPTS = ("hello", "def f(x):", "Über 😀", "1, 2, 3,", "a", "The sky is", "<bos>user: hi<eos>", "\n\n")


@cache
def tiny() -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """The model every server here has, and its byte-level tokenizer."""
    tokenizer = tiny_tokenizer()
    return tiny_model(vocab_size=len(tokenizer), eos_token_id=END), tokenizer


@cache
def answered() -> list[torch.Tensor]:
    """Each of `PROMPTS` with its greedy answer."""
    texts = [encode(prompt) for prompt in PROMPTS]
    return [torch.tensor([*ids, *plain_tokens(ids, new=NEW)]) for ids in texts]


def tiny_served(
    *, rows: int = 4, drafting: str = "chain", prompt_lookup_num_tokens: int | None = None, **more: Any
) -> Served:
    """It, with a head that knows the greedy answers to `PROMPTS` and makes mistakes."""
    model, tokenizer = tiny()
    head = oracle_of_many(model, answered())
    plan = Plan(drafting=drafting, draft_length=HORIZON, prompt_lookup_num_tokens=prompt_lookup_num_tokens)
    limits = {"max_model_len": LENGTH, "prefill_chunk_size": CHUNK} | more
    return served(model, head, tokenizer, name=NAME, rows=rows, plan=plan, **limits)


@dataclass
class Running:
    """A server that runs."""

    url: str
    service: Service
    server: Server
    thread: threading.Thread

    def client(self, **options: Any) -> openai.OpenAI:
        """The official client of it."""
        given = {"base_url": f"{self.url}/v1", "api_key": "none", "max_retries": 0, "timeout": 60} | options
        return openai.OpenAI(**given, http_client=openai.DefaultHttpxClient(verify=False))

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples with these labels."""
        text = HTTP.get(f"{self.url}/metrics").text
        samples = [one for family in text_string_to_metric_families(text) for one in family.samples]
        found = [
            one for one in samples if one.name == f"vllm:{name}" and labels.items() <= one.labels.items()
        ]
        return sum(one.value for one in found)

    def stop(self) -> None:
        """Shut it down as SIGTERM does, and wait."""
        stop(self.server)
        self.thread.join(timeout=30)
        assert not self.thread.is_alive()


@contextmanager
def running(what: Served | None = None, **settings: Any) -> Iterator[Running]:
    """A server of `what`, by default of `tiny_served`; it is shut down at the end."""
    limits = Settings(**({"max_num_seqs": 4, "timeout_seconds": 30, "shutdown_seconds": 30} | settings))
    service = open_service(what or tiny_served(rows=limits.max_num_seqs), limits)
    listener = bound("127.0.0.1", 0)
    ready = threading.Event()
    server = Server(create_app(service), service, on_ready=ready.set)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    port = listener.getsockname()[1]
    thread.start()
    assert ready.wait(timeout=30)
    out = Running(f"http://127.0.0.1:{port}", service, server, thread)
    try:
        yield out
    finally:
        if thread.is_alive():
            out.stop()


def until(holds: Callable[[], bool]) -> None:
    """Wait for what other threads bring about."""
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def encode(text: str) -> list[int]:
    """Token ids of a text."""
    _, tokenizer = tiny()
    return cast(list[int], tokenizer(text)["input_ids"])


def plain_tokens(prompt: list[int], *, new: int) -> list[int]:
    """What transformers' own greedy `generate` says."""
    model, _ = tiny()
    ids = torch.tensor([prompt])
    out = cast(Any, model).generate(ids, do_sample=False, max_new_tokens=new, pad_token_id=0)
    return cast(list[int], out[0, len(prompt) :].tolist())


def plain_text(prompt: str | list[int], *, new: int) -> str:
    """Its text."""
    _, tokenizer = tiny()
    ids = encode(prompt) if isinstance(prompt, str) else prompt
    return cast(str, tokenizer.decode(plain_tokens(ids, new=new), skip_special_tokens=True))


def chat_prompt(text: str) -> str:
    """A chat of one message as the template writes it."""
    return f"<bos>user: {text}<eos><bos>assistant: "


def with_batch(what: Served, *batches: Any) -> Served:
    """`what` over other batches: the first one, and another each time that one is dead."""
    return replace(what, open_batch=partial(next, iter(batches)))

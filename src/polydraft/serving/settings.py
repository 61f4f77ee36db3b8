"""What a server may be told, with its defaults."""

from __future__ import annotations

from dataclasses import dataclass

from polydraft.errors import InputError
from polydraft.serving.hosts import is_name

MOST_CHOICES = 128
"""Choices of one request, over all its prompts."""
MOST_STOPS = 4
MOST_BIASES = 1_024
"""Entries of `logit_bias`."""
MOST_TOP = 20
"""Likely tokens named beside each token."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Limits of a server.

    Attributes:
        api_key: what calls must carry as `Authorization: Bearer`; None asks for none.
        max_num_seqs: texts decoded together. max_queue: texts that may wait for room among them.
        prefill_chunk_size: tokens of prompts read between two cycles of the texts that are being written.
        timeout_seconds: of a request, from its arrival to its last token.
        receive_seconds: of a request's bytes, from the first to the last.
        shutdown_seconds: what runs and waits gets so long to finish once a shutdown is asked for.
        max_body_bytes: of a request.
        access_log: write a line for each request.
        allowed_hosts: names that requests may call the server by, besides those of `polydraft.serving.hosts`.

    Raises:
        InputError: a value outside its range; names it.
    """

    api_key: str | None = None
    max_num_seqs: int = 8
    max_queue: int = 128
    prefill_chunk_size: int = 256
    timeout_seconds: float = 600.0
    receive_seconds: float = 60.0
    shutdown_seconds: float = 30.0
    max_body_bytes: int = 8 << 20
    access_log: bool = False
    allowed_hosts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("max_num_seqs", "max_queue", "prefill_chunk_size", "max_body_bytes"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("timeout_seconds", "receive_seconds"):
            if not getattr(self, name) > 0:
                raise InputError(f"{name} must be above 0, got {getattr(self, name)}")
        if not self.shutdown_seconds >= 0:
            raise InputError(f"shutdown_seconds must be 0 or more, got {self.shutdown_seconds}")
        key = self.api_key
        if key is not None and not (key and key.isascii() and key == key.strip()):
            raise InputError("api_key must be ASCII text, not empty and without white space around it")
        for name in self.allowed_hosts:
            if not is_name(name):
                raise InputError(f"{name!r} is no host's name: leave out scheme and port, or give * for any")

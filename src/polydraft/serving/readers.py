"""Threads that read requests, so that the event loop does not: no short one waits for a long one."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TypeVar

from polydraft.serving.model import Served

Result = TypeVar("Result")

LONG = 1 << 16
"""Bytes of a body from which on it waits among the long ones."""


class Readers:
    """Two threads: one for short bodies, one for long ones.

    Each has a tokenizer of its own, since encoding changes a tokenizer's state, and so needs no lock.
    """

    def __init__(self, served: Served) -> None:
        self._threads = [ThreadPoolExecutor(1, f"polydraft-{name}") for name in ("short", "long")]
        self._served = [replace(served, tokenizer=copy.deepcopy(served.tokenizer)) for _ in self._threads]

    async def run(self, work: Callable[[Served], Result], *, size: int) -> Result:
        """The result of `work` on a body of `size` bytes; raises what that raises."""
        which = int(size > LONG)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads[which], work, self._served[which])

    def close(self) -> None:
        """Begin nothing more."""
        for thread in self._threads:
            thread.shutdown(wait=False, cancel_futures=True)

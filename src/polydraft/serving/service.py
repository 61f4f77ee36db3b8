"""What the handlers of a server share."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

from polydraft.serving.errors import shutting_down
from polydraft.serving.model import Served
from polydraft.serving.readers import Readers
from polydraft.serving.requests import Job
from polydraft.serving.settings import Settings
from polydraft.serving.worker import Worker

LOOK_SECONDS = 0.05
"""Between two looks at whether all is done."""


@dataclass
class Service:
    """A model being served.

    Attributes:
        draining: a shutdown was asked for; what runs and waits is finished, nothing new is taken.
        created: seconds since 1970.
    """

    served: Served
    settings: Settings
    worker: Worker
    readers: Readers
    draining: bool = False
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def status(self) -> str:
        """`ok`, or why the server takes nothing."""
        if self.worker.broken:
            return "failed"
        return "shutting down" if self.draining else "ok"

    def submit(self, job: Job) -> None:
        """Hand a request to the worker.

        Raises:
            ApiError: nothing new is taken, or no more may wait.
        """
        if self.draining:
            raise shutting_down()
        self.worker.submit(job)

    def close(self) -> None:
        """End all threads; what runs or waits is never answered."""
        self.readers.close()
        self.worker.close()

    async def drain(self) -> None:
        """Take nothing new and wait for the rest, up to the limit; what is then left ends with an error."""
        self.draining = True
        deadline = time.monotonic() + self.settings.shutdown_seconds
        while self.worker.busy and time.monotonic() < deadline:
            await asyncio.sleep(LOOK_SECONDS)
        self.worker.fail_all(shutting_down())


def open_service(served: Served, settings: Settings) -> Service:
    """A service whose batch is open; raises what opening it raises."""
    worker = Worker(served.open_batch, max_queue=settings.max_queue, model=served.name)
    worker.start()
    return Service(served, settings, worker, Readers(served))

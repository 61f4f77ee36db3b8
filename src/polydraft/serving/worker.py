"""The one thread that owns the batch: rows come in between its cycles, and leave when they end."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager

from polydraft.serving.batch import Batch
from polydraft.serving.errors import ApiError, failed, queue_full, refused
from polydraft.serving.metrics import Metrics
from polydraft.serving.requests import Choice, Job

CLOSE_SECONDS = 10.0
"""How long a cycle may take at the end; the process does not wait for it longer."""

logger = logging.getLogger("polydraft.serving")


class Worker:
    """Gives rows to requests in turn: the next free one to the request that has the fewest.

    Of equals the one that came first goes first, so requests of one text are served in the order of their
    arrival, and one of many texts holds the others up for no more than a text.

    A step that fails ends the requests whose texts it has lost, and no other: the batch goes on where it can,
    and another one takes its place where it is dead.

    Args:
        open_batch: called in the thread that will own the batch, once, and again for a dead one.
        max_queue: texts that may wait. model: its name in the metrics.

    Attributes:
        broken: an error ended the thread, such as that of opening a batch; nothing is taken any more.
    """

    def __init__(self, open_batch: Callable[[], Batch], *, max_queue: int, model: str) -> None:
        self.metrics = Metrics(model, running=lambda: self.running, waiting=lambda: self.waiting)
        self.broken = False
        self._open_batch = open_batch
        self._max_queue = max_queue
        self._waiting: dict[Job, deque[Choice]] = {}  # by arrival; none is empty
        self._active: list[tuple[Job, Choice]] = []
        self._rows = self._free = 0
        self._waited = 0.0  # seconds, the request that last got a row
        self._closing = False
        self._changed = threading.Condition()
        self._opened: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, name="polydraft-worker", daemon=True)

    def start(self) -> None:
        """Open the batch; raises what that raises."""
        self._thread.start()
        self._opened.result()

    def close(self) -> None:
        """End the thread after the cycle it is in, if that ends. What runs or waits is never answered."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(CLOSE_SECONDS)

    @property
    def running(self) -> int:
        """Requests with a row in the batch."""
        with self._changed:
            return len({job for job, _ in self._active})

    @property
    def busy(self) -> bool:
        """Whether anything runs or waits."""
        with self._changed:
            return bool(self._active or self._waiting)

    @property
    def waiting(self) -> int:
        """Requests without a row yet."""
        with self._changed:
            return len(self._without_a_row())

    def _without_a_row(self) -> list[Job]:
        return [job for job in self._waiting if job.admitted is None]

    def submit(self, job: Job) -> None:
        """Take a request, if the queue has room for its texts and for those that get a row before its last.

        Raises:
            ApiError: there is no room now or, where it has more texts than ever fit, none ever; or the worker
                is broken.
        """
        texts = len(job.choices)
        with self._changed:
            if self.broken:
                raise failed()
            if texts > self._max_queue + self._rows:
                raise refused(
                    f"prompts times n must be at most {self._max_queue + self._rows} on this server",
                    param="n",
                )
            before = sum(min(len(waiting), texts) for waiting in self._waiting.values())
            if before + texts > self._max_queue + self._free:
                now = time.perf_counter()
                raise queue_full(max([self._waited, *(now - one.arrived for one in self._without_a_row())]))
            self._waiting[job] = deque(job.choices)
            self._changed.notify()

    def cancel(self, job: Job) -> None:
        """Take a request's texts out of the queue now and out of the batch after the current cycle."""
        with self._changed:
            if job.cancelled or job.done:
                return
            job.cancelled = True
            for choice in self._waiting.pop(job, ()):
                self.metrics.ended(choice, "abort")
            self._changed.notify()

    def fail_all(self, error: ApiError) -> None:
        """End every request with `error`."""
        with self._changed:
            jobs = {job for job in [*(job for job, _ in self._active), *self._waiting] if not job.cancelled}
        for job in jobs:
            job.put(error)
            self.cancel(job)

    def _run(self) -> None:
        try:
            batch = self._open_batch()
            self._rows = self._free = batch.free
        except BaseException as error:  # noqa: BLE001 (handed to whoever called start)
            self._opened.set_exception(error)
            return
        self._opened.set_result(None)
        try:
            while self._wait():
                self._turn(batch)
                if batch.dead:
                    batch = self._open_batch()
        except Exception:
            logger.exception("the worker failed; no request is answered any more")
            with self._changed:
                self.broken = True
            self.fail_all(failed())
            with self._changed:
                active, self._active = self._active, []
            for _, choice in active:
                self.metrics.ended(choice, "abort")

    @contextmanager
    def _failing(self, batch: Batch) -> Iterator[None]:
        """If the batch fails in here, end the requests with a text that it has lost."""
        try:
            yield
        except Exception:
            logger.exception("the batch failed")
            if not self._fail_lost(batch) and not batch.dead:
                raise

    def _fail_lost(self, batch: Batch) -> bool:
        """End the requests with a text that `batch` has lost; whether there are any."""
        held = {id(row) for row in batch.active}
        with self._changed:
            lost = {
                job
                for job, choice in self._active
                if choice.row.failed or not (choice.row.finished or id(choice.row) in held)
            }
        for job in lost:
            if not job.cancelled:
                job.put(failed())
                self.cancel(job)
        return bool(lost)

    def _wait(self) -> bool:
        """Sleep while there is nothing to do; False once closing."""
        with self._changed:
            self._changed.wait_for(lambda: self._closing or self._waiting or self._active)
            return not self._closing

    def _turn(self, batch: Batch) -> None:
        """Drop, admit, a chunk of a prompt, one cycle."""
        for job, choice in [one for one in self._active if one[0].cancelled]:
            batch.drop(choice.row)
            self._leave(job, choice, "abort")
        if admitted := self._admissible(batch.free):
            with self._failing(batch):
                batch.admit([choice.row for _, choice in admitted])
        if self._active and not batch.dead:
            with self._failing(batch):
                batch.read()
            self._read(batch)
        if self._active and not batch.dead:
            with self._failing(batch):
                batch.cycle()
            self._read(batch)
        with self._changed:
            self._free = batch.free

    def _admissible(self, free: int) -> list[tuple[Job, Choice]]:
        """The next texts, as many as fit; they count as running from now on."""
        now = time.perf_counter()
        new: list[tuple[Job, Choice]] = []
        with self._changed:
            rows = Counter(job for job, _ in self._active)
            while self._waiting and len(new) < free:
                job = min(self._waiting, key=lambda one: rows[one])  # the first of equals
                rows[job] += 1
                new.append((job, self._waiting[job].popleft()))
                if not self._waiting[job]:
                    del self._waiting[job]
                if job.admitted is None:
                    job.admitted = now
                    self._waited = now - job.arrived
                    self.metrics.admitted(job)
            self._active.extend(new)
            self._free = free - len(new)
        return new

    def _read(self, batch: Batch) -> None:
        """Send on what every text has grown by, and let those go that have ended."""
        for job, choice in list(self._active):
            piece = choice.take()
            if piece is None:
                continue
            self.metrics.grew(choice, len(piece.tokens))
            if job.spoke is None:
                job.spoke = time.perf_counter()
                self.metrics.spoke(job)
            if piece.finish_reason is not None:
                if not choice.row.finished:
                    batch.drop(choice.row)
                self._leave(job, choice, piece.finish_reason)
            if not job.cancelled:
                job.put(piece)

    def _leave(self, job: Job, choice: Choice, reason: str) -> None:
        with self._changed:
            self._active.remove((job, choice))
        self.metrics.ended(choice, reason)
        if job.done:
            job.finished = time.perf_counter()
            self.metrics.finished(job)

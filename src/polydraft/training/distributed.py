"""Several processes that train one head: how they start, agree and end together.

`torchrun --nproc-per-node N -m polydraft train ...` or `accelerate launch` start them; every process
reads the data, the first one alone writes. Without them everything here does nothing.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from types import FrameType
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from polydraft.errors import PolydraftError
from polydraft.ranks import local_rank, rank, world_size

T = TypeVar("T")
PEER_TIMEOUT = 1800
"""Seconds."""
GONE = "another process of the run is gone or does not answer: start all again with --resume"


def start(*, timeout: int = PEER_TIMEOUT) -> None:
    """Join the other processes of the run, on the device of this one; at once where that is done.

    Args:
        timeout: seconds to wait for another process before the run ends.
    """
    if world_size() == 1 or dist.is_initialized():
        return
    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank())
        backend = "cpu:gloo,cuda:nccl"  # FSDP gathers what it writes on the CPU
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _stopped)
    with lost_peers_in_one_line():
        dist.init_process_group(backend, timeout=timedelta(seconds=timeout))


def _stopped(_number: int, _frame: FrameType | None) -> None:
    """Launchers send SIGTERM to what is left when a process has died."""
    raise PolydraftError(GONE)


@contextmanager
def lost_peers_in_one_line() -> Iterator[None]:
    """Turn what torch raises when another process has died into one line.

    Raises:
        PolydraftError: another process is gone.
    """
    try:
        yield
    except RuntimeError as error:
        if world_size() > 1 and (isinstance(error, dist.DistError) or "gloo" in str(error)):
            raise PolydraftError(GONE) from error
        raise


@cache
def _patient() -> Any:
    """A group for what takes as long as it takes: preparing data, writing, held-out figures.

    A process that dies closes its connections, which the others notice at once even so.
    """
    return dist.new_group(backend="gloo", timeout=timedelta(days=7))


@contextmanager
def together() -> Iterator[None]:
    """Every process leaves the block with the first error that any of them has met.

    Raises:
        PolydraftError: of the lowest rank with one.
    """
    if not dist.is_initialized():
        yield
        return
    error: PolydraftError | None = None
    try:
        yield
    except PolydraftError as found:
        error = found
    errors: list[PolydraftError | None] = [None] * dist.get_world_size()
    with lost_peers_in_one_line():
        dist.all_gather_object(errors, error, group=_patient())
    for found_anywhere in errors:
        if found_anywhere is not None:
            raise found_anywhere


def from_first(value: T) -> T:
    """What the first process has given; any object that can be pickled."""
    if not dist.is_initialized():
        return value
    box: list[Any] = [value]
    with lost_peers_in_one_line():
        dist.broadcast_object_list(box, group=_patient())
    found: T = box[0]
    return found


def first_alone(work: Callable[[], T]) -> T:
    """The result of `work`, which the first process has done before the others begin.

    Raises:
        PolydraftError: what `work` raises in any process.
    """
    done: list[T] = []
    for turn in (True, False):
        with together():
            if (rank() == 0) == turn:
                done.append(work())
    return done[0]


def total(value: Tensor) -> Tensor:
    """The sum over all processes, any shape."""
    if not dist.is_initialized():
        return value
    value = value.clone()
    dist.all_reduce(value)
    return value


def wait() -> None:
    """Until every process is here."""
    if dist.is_initialized():
        dist.barrier(group=_patient())

"""Answers as they come: from a worker's events to server-sent events, or to one whole object."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any, TypeVar

from fastapi import Response
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from polydraft.serving.errors import GONE, ApiError, timed_out
from polydraft.serving.replies import Reply, said
from polydraft.serving.requests import Job, Piece
from polydraft.serving.shapes import Shape, usage_of

Result = TypeVar("Result")


async def pieces(job: Job, *, seconds: float) -> AsyncIterator[Piece]:
    """Every piece of every choice.

    Raises:
        ApiError: the request failed, or `seconds` have passed since it arrived.
    """
    left = len(job.choices)
    deadline = job.loop.time() + seconds - (time.perf_counter() - job.arrived)
    while left:
        try:
            async with asyncio.timeout_at(deadline):
                event = await job.events.get()
        except TimeoutError as error:
            raise timed_out(seconds) from error
        if isinstance(event, ApiError):
            raise event
        left -= event.finish_reason is not None
        yield event


async def whole(job: Job, shape: Shape, *, seconds: float) -> Reply:
    """The answer in one object, once it is complete.

    Raises:
        ApiError: as `pieces`.
    """
    texts: list[list[Piece]] = [[] for _ in job.choices]
    async for piece in pieces(job, seconds=seconds):
        texts[piece.index].append(piece)
    joined = [
        Piece(
            index,
            "".join(part.text for part in parts),
            [token for part in parts for token in part.tokens],
            parts[-1].finish_reason,
            parts[0].echoed,
        )
        for index, parts in enumerate(texts)
    ]
    return shape.whole(joined, usage_of(job))


async def events(
    job: Job, shape: Shape, *, seconds: float, with_usage: bool, with_tokens: bool
) -> AsyncIterator[str]:
    """The answer as server-sent events; an error ends it with an event of its own.

    Args:
        with_tokens: send chunks that have tokens and no text.
    """
    try:
        for index in range(len(job.choices)):
            if (opening := shape.opening(index)) is not None:
                yield _event(said(opening))
        async for piece in pieces(job, seconds=seconds):
            if piece.text or piece.finish_reason is not None or with_tokens:
                yield _event(said(shape.chunk(piece)))
        if with_usage:
            yield _event(said(shape.closing(usage_of(job))))
    except ApiError as error:
        yield _event(json.dumps(error.body()))
    yield _event("[DONE]")


class EventStream(StreamingResponse):
    """Server-sent events that stop when the client leaves; `release` is called in every case, once sent.

    Args:
        content: what to send.
    """

    def __init__(self, content: AsyncIterator[str], *, release: Callable[[], None]) -> None:
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(content, media_type="text/event-stream", headers=headers)
        self._release = release

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await until_gone(self.stream_response(send), receive)
        finally:
            self._release()


async def until_gone(work: Coroutine[Any, Any, Result], receive: Receive) -> Result | None:
    """The result of `work`, or None where the client left before; `work` is then cancelled."""
    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        for task in (working, leaving):
            task.cancel()
            with suppress(asyncio.CancelledError, ApiError):
                await task


async def answer(work: Coroutine[Any, Any, Reply], receive: Callable[[], Awaitable[Any]]) -> Response:
    """A whole answer as JSON; of a client that left nothing but a status for the log.

    Raises:
        ApiError: as `pieces`.
    """
    reply = await until_gone(work, receive)
    if reply is None:
        return Response(status_code=GONE)
    return Response(said(reply), media_type="application/json")


async def _gone(receive: Receive) -> None:
    """Return when the client has left."""
    while (await receive())["type"] != "http.disconnect":
        pass


def _event(data: str) -> str:
    return f"data: {data}\n\n"

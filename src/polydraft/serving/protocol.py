"""HTTP connections that are closed when a request does not come to its end."""

from __future__ import annotations

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from polydraft.serving.access import HEADER, request_id_of
from polydraft.serving.errors import too_slow


class TimedProtocol(H11Protocol):
    """uvicorn's protocol, which waits for a request as long as bytes of it may come, with an end to that.

    Before the first request, and from the first byte of a further one, a connection has `receive_seconds`
    to send a request. While nothing is sent between two requests, uvicorn's limit on idle connections holds.
    A request whose head has come is the application's, whose `Gate` has the same limit on bodies; only when
    it has been answered is the rest waited for here.

    Args:
        receive_seconds: from the first byte of a request to its last.
    """

    def __init__(self, *args: Any, receive_seconds: float, **options: Any) -> None:
        super().__init__(*args, **options)
        self._seconds = receive_seconds
        self._limit: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait."""
        super().connection_made(transport)
        self._look()

    def data_received(self, data: bytes) -> None:
        """Part of a request, or all of it."""
        super().data_received(data)
        self._look()

    def on_response_complete(self) -> None:
        """What else has come may be the beginning of another request."""
        super().on_response_complete()
        self._look()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing more to wait for."""
        super().connection_lost(exc)
        self._forget()

    def _look(self) -> None:
        """Limit the time while a request is awaited."""
        if not self._unfinished:
            self._forget()
        elif self._limit is None:
            self._limit = self.loop.call_later(self._seconds, self._expire)

    @property
    def _unfinished(self) -> bool:
        """Whether part of a request is missing; while none has begun, whether no limit on that holds."""
        if self.conn.their_state is h11.IDLE:
            return bool(self.conn.trailing_data[0]) or self.timeout_keep_alive_task is None
        return self.conn.their_state is h11.SEND_BODY

    def _forget(self) -> None:
        if self._limit is not None:
            self._limit.cancel()
            self._limit = None

    def _expire(self) -> None:
        self._limit = None
        if self.cycle is not None and not self.cycle.response_complete:
            self._look()
            return
        if self.conn.our_state is h11.IDLE and self.conn.trailing_data[0]:
            self._answer()
        self.transport.close()

    def _answer(self) -> None:
        """Say why to a client that has sent half of a head."""
        error = too_slow(self._seconds)
        content = bytes(error.response().body)
        headers = [
            ("content-type", "application/json"),
            ("content-length", str(len(content))),
            (HEADER, request_id_of("")),
            *error.headers.items(),
        ]
        reason = b"Request Timeout"
        for event in (
            h11.Response(status_code=error.status, headers=headers, reason=reason),
            h11.Data(data=content),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event) or b"")

"""What is checked before a request is read: its key, its size, and whether the server takes new ones."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Callable

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from polydraft.serving.errors import ApiError, shutting_down, too_slow

GUARDED = "/v1/"


class Gate:
    """ASGI middleware over all calls below `/v1/`; the rest is open.

    Args:
        api_key: None asks for none. draining: says whether new requests are refused.
        receive_seconds: how long a body may take to arrive.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        api_key: str | None,
        max_body_bytes: int,
        receive_seconds: float,
        draining: Callable[[], bool],
    ) -> None:
        self._app = app
        self._api_key = api_key
        self._max_body_bytes = max_body_bytes
        self._receive_seconds = receive_seconds
        self._draining = draining

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith(GUARDED):
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        error = self._refusal(headers, method=scope["method"])
        if error is not None:
            await error.response()(scope, receive, send)
            return
        await self._app(scope, self._counted(receive), send)

    def _refusal(self, headers: Headers, *, method: str) -> ApiError | None:
        if self._api_key is not None and not self._knows(headers.get("authorization", "")):
            return ApiError(401, "the API key is missing or wrong", code="invalid_api_key")
        if self._draining() and method == "POST":
            return shutting_down()
        length = headers.get("content-length", "0")
        if length.isascii() and length.isdigit() and int(length) > self._max_body_bytes:
            return self._too_large()
        return None

    def _knows(self, authorization: str) -> bool:
        """Compares in constant time."""
        assert self._api_key is not None
        kind, _, key = authorization.partition(" ")
        same = hmac.compare_digest(key.strip().encode(), self._api_key.encode())
        return kind.lower() == "bearer" and same

    def _counted(self, receive: Receive) -> Receive:
        """`receive`, up to as many bytes as a body may have, which must come in time."""
        read, complete = 0, False
        deadline = asyncio.get_running_loop().time() + self._receive_seconds

        async def counting() -> Message:
            nonlocal read, complete
            try:
                async with asyncio.timeout_at(None if complete else deadline):
                    message = await receive()
            except TimeoutError as late:
                error = too_slow(self._receive_seconds)
                raise HTTPException(error.status, str(error), error.headers) from late
            complete = not message.get("more_body", False)
            read += len(message.get("body", b""))
            if read > self._max_body_bytes:
                error = self._too_large()
                raise HTTPException(error.status, str(error))
            return message

        return counting

    def _too_large(self) -> ApiError:
        return ApiError(
            413, f"the body is larger than {self._max_body_bytes} bytes", code="request_entity_too_large"
        )

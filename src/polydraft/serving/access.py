"""What every request gets, whatever becomes of it: an id, and a line in the log where one is kept."""

from __future__ import annotations

import logging
import re
import secrets
import time
from urllib.parse import quote

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADER = "X-Request-Id"
SANE = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")
"""Ids of clients that are taken over; others could forge lines of a log."""

logger = logging.getLogger("polydraft.serving.access")


class Access:
    """ASGI middleware around everything else, so that the answers to errors carry an id too.

    A HEAD request is answered as GET is; the server leaves the body out.

    Args:
        logged: write a line for each request, at level INFO, once its answer has been sent.
    """

    def __init__(self, app: ASGIApp, *, logged: bool) -> None:
        self._app = app
        self._logged = logged

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.perf_counter(), 0
        request_id = request_id_of(Headers(scope=scope).get(HEADER, ""))

        async def with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[HEADER] = request_id
            await send(message)

        inner = {**scope, "method": "GET"} if scope["method"] == "HEAD" else scope
        try:
            await self._app(inner, receive, with_id)
        finally:
            if self._logged:
                seconds = time.perf_counter() - began
                logger.info("%s %s %d %.3f %s", scope["method"], _path(scope), status, seconds, request_id)


def request_id_of(given: str) -> str:
    """The id that a client gave, if it is sane, else a new one."""
    return given if SANE.fullmatch(given) else secrets.token_hex(16)


def _path(scope: Scope) -> str:
    """The path as it was sent, which has no spaces or line breaks; without what follows a question mark."""
    return quote(scope["path"], safe="/:@!$&'()*+,;=~")

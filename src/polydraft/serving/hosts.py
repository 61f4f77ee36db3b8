"""Which names the server answers to.

A page of another site can make its own name lead to this machine ("DNS rebinding"); a browser then takes the
server for that site and lets the page read its answers. The `Host` header still says the site's name.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from polydraft.serving.errors import ApiError

ANY = "*"
LOOPBACK = "localhost"
NAME = re.compile(r"[a-z0-9_]([a-z0-9_.-]*[a-z0-9_])?")


class HostCheck:
    """ASGI middleware that answers under its own names alone.

    Args:
        names: besides `localhost` and numeric addresses, which no site can have for a name; `*` for any.
    """

    def __init__(self, app: ASGIApp, *, names: Collection[str]) -> None:
        self._app = app
        self._names = {name.lower() for name in names} | {LOOPBACK}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        host = Headers(scope=scope).get("host", "") if scope["type"] == "http" else LOOPBACK
        if self._knows(host):
            await self._app(scope, receive, send)
            return
        error = ApiError(
            400,
            f"this server does not answer to the host {host!r}: start it with --allowed-host",
            code="host_not_allowed",
        )
        await error.response()(scope, receive, send)

    def _knows(self, host: str) -> bool:
        if ANY in self._names:
            return True
        name = name_of(host)
        return name in self._names or _is_address(name)


def name_of(host: str) -> str:
    """The name in a `Host` header, without its port, in lower case; empty where there is none."""
    try:
        parts = urlsplit(f"//{host}")
        name = parts.hostname if parts.netloc == host and "@" not in host else None
    except ValueError:
        return ""
    return (name or "").removesuffix(".")


def is_name(name: str) -> bool:
    """Whether `name` can be in a `Host` header, or means any."""
    return name == ANY or NAME.fullmatch(name.lower()) is not None or _is_address(name)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True

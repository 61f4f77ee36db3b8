"""From an application to a running server: its address, its signals, its end."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import Any, cast

import uvicorn
from fastapi import FastAPI

from polydraft.errors import InputError
from polydraft.serving.access import logger as access_logger
from polydraft.serving.protocol import TimedProtocol
from polydraft.serving.service import Service

FLUSH_SECONDS = 5
"""For the last bytes of answers that are complete, at the end."""


def bound(host: str, port: int) -> socket.socket:
    """A socket at this address, which does not listen yet.

    Raises:
        InputError: there is no such address, or it is taken.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        out = socket.socket(family, kind, protocol)
    except OSError as error:
        raise InputError(f"cannot serve at {host}: {error.strerror}") from error
    try:
        out.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        out.bind(address)
    except OSError as error:
        out.close()
        raise InputError(f"cannot serve at {host}, port {port}: {error.strerror}") from error
    return out


def address_of(listener: socket.socket) -> str:
    """Where a browser finds it."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


KEEP_SECONDS = 75
"""For an idle connection: longer than proxies keep theirs, so that none is closed under a request."""


class Server(uvicorn.Server):
    """Drains before it stops: the first SIGTERM or SIGINT finishes what was begun, a second one does not.

    Args:
        on_ready: called when requests are taken.
    """

    def __init__(self, app: FastAPI, service: Service, *, on_ready: Callable[[], None]) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=cast(Any, partial(TimedProtocol, receive_seconds=service.settings.receive_seconds)),
                lifespan="on",
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_keep_alive=KEEP_SECONDS,
                timeout_graceful_shutdown=FLUSH_SECONDS,
            )
        )
        self._service = service
        self._on_ready = on_ready
        self._draining: asyncio.Task[None] | None = None

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve at `sockets` until a signal ends it."""
        self._loop = asyncio.get_running_loop()
        await super().serve(sockets)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen."""
        await super().startup(sockets)
        self._on_ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Ask for a shutdown; from a signal handler or any thread."""
        if self._service.draining:
            self.force_exit = self.should_exit = True
            return
        self._service.draining = True
        self._loop.call_soon_threadsafe(self._begin_draining)

    def _begin_draining(self) -> None:
        self._draining = asyncio.ensure_future(self._drain())

    async def _drain(self) -> None:
        await self._service.drain()
        self.should_exit = True


def log_to_stderr(*, access: bool) -> None:
    """Write warnings and errors, and requests where `access`, each as a line with its time."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    if access:
        access_logger.setLevel(logging.INFO)


def stop(server: Server) -> None:
    """Shut `server` down as SIGTERM does."""
    server.handle_exit(signal.SIGTERM, None)


def serve(app: FastAPI, service: Service, listener: socket.socket, *, on_ready: Callable[[str], Any]) -> None:
    """Serve until a signal ends it; `on_ready` is given the address."""
    server = Server(app, service, on_ready=lambda: on_ready(address_of(listener)))
    server.run(sockets=[listener])

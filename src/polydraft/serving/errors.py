"""Errors in OpenAI's shape: `{"error": {"message", "type", "param", "code"}}`."""

from __future__ import annotations

import math
from typing import Any

from fastapi.responses import JSONResponse

RETRY_SECONDS = (1, 60)
"""The least and the most that `Retry-After` says; the openai client heeds no more."""


GONE = 499
"""Status in the log for a client that left; nginx's number."""


class ApiError(Exception):
    """What a client is answered instead of text.

    Args:
        param: the field of the request at fault. code: a name that programs can tell it by.
        retry_seconds: when to come again, where that may help. closes: the connection ends with the answer.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        retry_seconds: float | None = None,
        closes: bool = False,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.param = param
        self.code = code
        self.retry_seconds = retry_seconds
        self.closes = closes

    @property
    def headers(self) -> dict[str, str]:
        """When to come again; how to identify oneself; that the connection ends."""
        if self.closes:
            return {"Connection": "close"}
        if self.retry_seconds is not None:
            least, most = RETRY_SECONDS
            return {"Retry-After": str(max(least, min(math.ceil(self.retry_seconds), most)))}
        return {"WWW-Authenticate": "Bearer"} if self.status == 401 else {}

    def body(self) -> dict[str, Any]:
        """The object that is sent; what UTF-8 cannot say is replaced."""
        parts = {"message": str(self), "type": self.kind, "param": self.param, "code": self.code}
        return {"error": {name: _sayable(part) for name, part in parts.items()}}

    def response(self) -> JSONResponse:
        """Return the error as an HTTP response."""
        return JSONResponse(self.body(), status_code=self.status, headers=self.headers)


def refused(message: str, *, param: str, code: str | None = None) -> ApiError:
    """The client's own mistake, in the field `param`."""
    return ApiError(400, message, param=param, code=code)


def queue_full(seconds: float) -> ApiError:
    """The queue is full; there may be room after `seconds` seconds."""
    return ApiError(
        429,
        "the queue is full: try again later",
        kind="rate_limit_error",
        code="rate_limit_exceeded",
        retry_seconds=seconds,
    )


def shutting_down() -> ApiError:
    """Nothing new is taken."""
    return ApiError(
        503, "the server is shutting down", kind="server_error", code="shutting_down", retry_seconds=0
    )


def too_slow(seconds: float) -> ApiError:
    """A request that did not come to its end; the connection cannot be used any further."""
    message = f"the request took longer than {seconds:g} seconds to arrive"
    return ApiError(408, message, code="request_timeout", closes=True)


def timed_out(seconds: float) -> ApiError:
    """The server's own limit on a request."""
    return ApiError(
        504, f"the request took longer than {seconds:g} seconds", kind="timeout_error", code="timeout"
    )


def failed() -> ApiError:
    """A bug; the log says which."""
    return ApiError(
        500, "the server failed; its log says why", kind="server_error", code="internal_server_error"
    )


def _sayable(part: str | None) -> str | None:
    return None if part is None else part.encode("utf-8", "replace").decode("utf-8")

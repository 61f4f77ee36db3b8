"""Every error as an answer: those of the API, of a schema, of HTTP, and bugs."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from polydraft.errors import InputError
from polydraft.serving.errors import ApiError, failed, refused


def install(app: FastAPI) -> None:
    """Answer every error of `app` in OpenAI's shape."""

    async def of_api(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, ApiError)
        return error.response()

    async def of_input(_: Request, error: Exception) -> JSONResponse:
        return ApiError(400, str(error)).response()

    async def of_schema(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        return _from_schema(error).response()

    async def of_http(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        code = HTTPStatus(error.status_code).name.lower()
        answer = ApiError(error.status_code, str(error.detail), code=code).response()
        answer.headers.update(error.headers or {})
        return answer

    async def of_bug(_: Request, __: Exception) -> JSONResponse:
        return failed().response()

    app.add_exception_handler(ApiError, of_api)
    app.add_exception_handler(InputError, of_input)
    app.add_exception_handler(RequestValidationError, of_schema)
    app.add_exception_handler(HTTPException, of_http)
    app.add_exception_handler(Exception, of_bug)


def _from_schema(error: RequestValidationError) -> ApiError:
    """One thing wrong with a body, in the first field that has one.

    Where a field may be of several types there is an error for each. The one that says most looks into a
    value rather than at its type, and has come furthest in the body.
    """
    found = error.errors()
    if found[0]["type"] == "json_invalid":
        return ApiError(400, f"the body is not JSON: {found[0]['ctx']['error']}", code="invalid_json")
    of_field = [one for one in found if one["loc"][:2] == found[0]["loc"][:2]]
    places = [_place(one, error.body) for one in of_field]
    which = max(range(len(of_field)), key=lambda at: _told(of_field[at]["type"], places[at]))
    worst, where = of_field[which], places[which]
    if not where:
        return ApiError(400, "the body must be a JSON object, sent as application/json")
    if worst["type"] == "extra_forbidden":
        return refused(f"unrecognized field: {where[-1]}", param=str(where[0]), code="unknown_parameter")
    return refused(f"{'.'.join(map(str, where))}: {worst['msg']}", param=str(where[0]), code="invalid_value")


def _place(error: dict[str, Any], body: Any) -> list[str | int]:
    """Where in the body an error is: its `loc` without the names that pydantic gives to types."""
    *above, last = error["loc"][1:] or [None]
    out: list[str | int] = []
    for part in [*above, last]:
        inside = isinstance(body, dict) and part in body
        if inside or (isinstance(body, list) and isinstance(part, int)):
            out.append(part)
            body = body[part]
    return [*out, last] if error["type"] == "missing" and last is not None else out


def _told(kind: str, where: list[str | int]) -> tuple[bool, int, list[int]]:
    """How much an error says; more is greater."""
    return not kind.endswith("_type"), len(where), [part for part in where if isinstance(part, int)]

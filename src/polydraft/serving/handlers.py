"""Every error as an answer: those of the API, of HTTP, and bugs."""

from __future__ import annotations

from http import HTTPStatus

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from polydraft.errors import InputError
from polydraft.serving.errors import GONE, ApiError, failed


def install(app: FastAPI) -> None:
    """Answer every error of `app` in OpenAI's shape."""

    async def of_api(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, ApiError)
        return error.response()

    async def of_input(_: Request, error: Exception) -> JSONResponse:
        return ApiError(400, str(error)).response()

    async def of_http(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        code = HTTPStatus(error.status_code).name.lower()
        answer = ApiError(error.status_code, str(error.detail), code=code).response()
        answer.headers.update(error.headers or {})
        return answer

    async def of_bug(_: Request, __: Exception) -> JSONResponse:
        return failed().response()

    async def of_leaving(_: Request, __: Exception) -> Response:
        return Response(status_code=GONE)

    app.add_exception_handler(ClientDisconnect, of_leaving)
    app.add_exception_handler(ApiError, of_api)
    app.add_exception_handler(InputError, of_input)
    app.add_exception_handler(HTTPException, of_http)
    app.add_exception_handler(Exception, of_bug)

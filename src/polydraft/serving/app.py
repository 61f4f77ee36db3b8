"""The application: OpenAI's calls, health, metrics and the page."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse
from prometheus_client.exposition import choose_encoder

import polydraft
from polydraft.serving import handlers, pages, prepare, replies
from polydraft.serving.access import Access
from polydraft.serving.body import NOT_JSON, Body, described, is_json, parse, schemas
from polydraft.serving.chat import ChatShape
from polydraft.serving.completions import CompletionShape
from polydraft.serving.errors import ApiError
from polydraft.serving.gate import Gate
from polydraft.serving.hosts import HostCheck
from polydraft.serving.model import Served
from polydraft.serving.requests import Job
from polydraft.serving.schemas import ChatRequest, CompletionRequest
from polydraft.serving.service import Service
from polydraft.serving.shapes import Shape
from polydraft.serving.stream import EventStream, answer, events, whole

router = APIRouter()
ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": replies.ErrorReply} for status in (400, 401, 404, 408, 413, 429, 500, 503, 504)
}


def create_app(service: Service) -> FastAPI:
    """The application over an open service; ends the service's worker when it shuts down."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await run_in_threadpool(service.close)

    app = FastAPI(
        title="polydraft", version=polydraft.__version__, docs_url=None, redoc_url=None, lifespan=lifespan
    )
    app.state.service = service
    app.openapi = lambda: _described(app)  # type: ignore[method-assign]
    handlers.install(app)
    app.include_router(router)
    pages.install(app)
    app.add_middleware(
        Gate,
        api_key=service.settings.api_key,
        max_body_bytes=service.settings.max_body_bytes,
        receive_seconds=service.settings.receive_seconds,
        draining=lambda: service.draining,
    )
    app.add_middleware(HostCheck, names=service.settings.allowed_hosts)
    app.middleware_stack = Access(app.build_middleware_stack(), logged=service.settings.access_log)
    return app


def _described(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document, with the bodies that are not read by FastAPI."""
    document = FastAPI.openapi(app)
    document["components"]["schemas"] |= schemas(ChatRequest, CompletionRequest)
    return document


@router.post(
    "/v1/chat/completions",
    response_model=replies.ChatCompletion,
    responses=ERRORS,
    openapi_extra=described(ChatRequest),
)
async def chat(request: Request) -> Response:
    """Continue a chat."""
    return await respond(request, ChatRequest, prepare.chat_job, ChatShape)


@router.post(
    "/v1/completions",
    response_model=replies.Completion,
    responses=ERRORS,
    openapi_extra=described(CompletionRequest),
)
async def complete(request: Request) -> Response:
    """Continue texts."""
    return await respond(request, CompletionRequest, prepare.completion_job, CompletionShape)


async def respond(
    request: Request,
    kind: type[Body],
    prepared: Callable[..., Job],
    shape_of: Callable[[Body, Served], Shape],
) -> Response:
    """Take a request to the worker and its answer to the client.

    Args:
        kind: what its body must be. prepared: makes a job of that.

    Raises:
        ApiError: it cannot be answered, or not now.
    """
    service: Service = request.app.state.service
    content = await request.body()
    if not is_json(request.headers.get("content-type", "")):
        raise ApiError(400, NOT_JSON)
    loop = asyncio.get_running_loop()

    def read(served: Served) -> tuple[Body, Job]:
        body = parse(content, kind)
        prepare.check_model(body.model, served)
        return body, prepared(body, served, loop=loop)

    body, job = await service.readers.run(read, size=len(content))
    shape, seconds = shape_of(body, service.served), service.settings.timeout_seconds
    service.submit(job)
    if not body.stream:
        try:
            return await answer(whole(job, shape, seconds=seconds), request.receive)
        finally:
            service.worker.cancel(job)
    content_of = events(
        job, shape, seconds=seconds, with_usage=body.with_usage, with_tokens=body.top is not None
    )
    return EventStream(content_of, release=lambda: service.worker.cancel(job))


@router.get("/v1/models", responses={401: ERRORS[401]})
async def models(request: Request) -> replies.Models:
    """The one model."""
    return replies.Models(data=[_model(request.app.state.service)])


@router.get("/v1/models/{name:path}", responses={401: ERRORS[401], 404: ERRORS[404]})
async def model(name: str, request: Request) -> replies.Model:
    """It, by its name."""
    service: Service = request.app.state.service
    prepare.check_model(name, service.served)
    return _model(service)


def _model(service: Service) -> replies.Model:
    served = service.served
    return replies.Model(
        id=served.name,
        created=service.created,
        owned_by="polydraft",
        max_model_len=served.max_model_len,
        polydraft={"head": served.head, "max_model_len": served.max_model_len},
    )


@router.get("/health", responses={503: {}})
async def health(request: Request) -> JSONResponse:
    """200 while requests are taken."""
    status = request.app.state.service.status
    return JSONResponse({"status": status}, status_code=200 if status == "ok" else 503)


@router.get("/version")
async def version() -> replies.Version:
    """Say which polydraft this is."""
    return replies.Version(version=polydraft.__version__)


@router.get("/metrics", include_in_schema=False)
async def metrics(request: Request) -> Response:
    """For Prometheus."""
    encode, content_type = choose_encoder(request.headers.get("accept", ""))
    return Response(encode(request.app.state.service.worker.metrics.registry), media_type=content_type)

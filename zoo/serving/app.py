"""The HTTP interface: which path answers what."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from importlib import metadata
from typing import Any

import msgspec
from fastapi import Depends, FastAPI
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse

from zoo.serving.description import Card, Cards, Completion, Document, Fault, describe, described
from zoo.serving.door import GONE, App, Door, Recorder
from zoo.serving.given import DetectRequest, FormFields, read_request, refuse_query
from zoo.serving.keys import Keys
from zoo.serving.metrics import MEDIA_TYPE, Metrics
from zoo.serving.openai import ChatRequest, completion, events, read_chat
from zoo.serving.page_files import PAGE_HEADERS, PageFile, page_files
from zoo.serving.problems import Problem, server_fault
from zoo.serving.service import ClientGone, Service

PATHS = (
    "/",
    "/healthz",
    "/readyz",
    "/metrics",
    "/openapi.json",
    "/v1/models",
    "/v1/detect",
    "/v1/chat/completions",
)

_PLAIN = [Depends(refuse_query)]  # a query that is not read would be an option without effect


def create_app(service: Service, metrics: Metrics) -> FastAPI:
    """Paths and what they answer, without keys and limits of the body."""

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.start()
        yield
        service.stop()

    app = FastAPI(
        title="detr-zoo", version=metadata.version("detr-zoo"), lifespan=lifespan, docs_url=None, redoc_url=None,
        redirect_slashes=False,
    )  # fmt: skip
    _add_errors(app)
    _add_state(app, service, metrics)
    _add_models(app, service)
    _add_detect(app, service)
    _add_chat(app, service)
    _add_page(app)
    describe(app)
    return app


def guarded(
    app: App,
    keys: Keys,
    service: Service,
    metrics: Metrics,
    origins: Sequence[str],
    say: Callable[[str], None],
) -> App:
    """The app behind its door: keys, limits, CORS where an origin is named, metrics and a line for each request."""
    inner: App = Door(app, keys, service.limits)
    if origins:
        inner = CORSMiddleware(
            inner, allow_origins=[*origins], allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type"],
        )  # fmt: skip
    return Recorder(inner, metrics, say, PATHS)


def _json(document: Any) -> Response:
    return Response(msgspec.json.encode(document), media_type="application/json")


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(Problem)
    async def problem(request: Request, error: Problem) -> Response:
        return error.response(request.url.path)

    @app.exception_handler(ClientGone)
    async def gone(request: Request, error: ClientGone) -> Response:
        return Response(status_code=GONE)

    @app.exception_handler(Exception)
    async def unforeseen(request: Request, error: Exception) -> Response:
        return server_fault().response(request.url.path)  # the recorder, which gets it too, logs it

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> Response:
        found = Problem(error.status_code, "http", str(error.detail), error.headers)
        if error.status_code == 404:
            found = Problem(404, "path", f"there is nothing here; there are {', '.join(PATHS)}")
        if error.status_code == 405:
            allowed = (error.headers or {}).get("Allow", "another method")
            found = Problem(405, "method", f"this path takes {allowed}", error.headers)
        return found.response(request.url.path)


def _add_state(app: FastAPI, service: Service, metrics: Metrics) -> None:
    @app.get("/healthz", summary="Whether the server runs")
    async def healthz() -> JSONResponse:
        return JSONResponse({"status": "ok"})

    @app.get("/readyz", summary="Whether requests should be sent here", **described(None))
    async def readyz() -> JSONResponse:
        if service.is_ready:
            return JSONResponse({"status": "ready"})
        raise Problem(503, "not-ready", "the server is about to end", {"Retry-After": "5"})

    @app.get("/metrics", summary="Metrics for Prometheus", response_class=PlainTextResponse)
    async def read_metrics() -> Response:
        return Response(metrics.text(), media_type=MEDIA_TYPE)


def _add_models(app: FastAPI, service: Service) -> None:
    @app.get(
        "/v1/models", summary="The models, and what is known of them", dependencies=_PLAIN, **described(Cards)
    )
    async def models() -> Response:
        return _json({"object": "list", "data": [served.card for served in service.models.values()]})

    @app.get("/v1/models/{model}", summary="One of the models", dependencies=_PLAIN, **described(Card))
    async def model_card(model: str) -> Response:
        return _json(service.named(model).card)


def _add_detect(app: FastAPI, service: Service) -> None:
    @app.post(
        "/v1/detect",
        summary="Detections in one image",
        dependencies=_PLAIN,
        **described(Document, DetectRequest, FormFields),
    )
    async def detect(request: Request) -> Response:
        service.refuse_more()  # before it is read
        document, _ = await service.answer(request, await read_request(request))
        return _json(document)


def _add_chat(app: FastAPI, service: Service) -> None:
    @app.post(
        "/v1/chat/completions",
        summary="The same in the shape of OpenAI's chat completions",
        dependencies=_PLAIN,
        **described(Completion, ChatRequest, fault=Fault),
    )
    async def chat(request: Request) -> Response:
        service.refuse_more()
        asked, streamed = read_chat(await request.body())
        document, served = await service.answer(request, asked)
        if streamed:
            return StreamingResponse(iter([*events(document, served.id)]), media_type="text/event-stream")
        return _json(completion(document, served.id))


def _add_page(app: FastAPI) -> None:
    for path, file in page_files().items():
        app.add_route(path, _answer_of(file), include_in_schema=False)


def _answer_of(file: PageFile) -> Callable[[Request], Awaitable[Response]]:
    async def answer(request: Request) -> Response:
        return Response(file.content, headers=PAGE_HEADERS, media_type=file.media_type)

    return answer

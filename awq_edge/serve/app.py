"""The HTTP routes. Bodies are read and checked here; every error has the OpenAI API's shape."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, MutableMapping
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, Response
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from awq_edge._version import __version__
from awq_edge.serve.answer import CLIENT_GONE, respond
from awq_edge.serve.api_error import ApiError, as_api_error
from awq_edge.serve.metrics import CONTENT_TYPE
from awq_edge.serve.responses import to_json
from awq_edge.serve.schema import ChatRequest, CompletionRequest, GenerationRequest, parse
from awq_edge.serve.service import Service
from awq_edge.serve.task import Task

R = TypeVar("R", bound=GenerationRequest)

_RETRY_CONNECTIONS = 5
_READ = ["GET", "HEAD"]  # what GET answers, HEAD answers without the body
_ROUTES = ("/v1/models", "/v1/completions", "/v1/chat/completions", "/health", "/metrics")


def create_app(
    service: Service, started: int, connections: Callable[[], int] = lambda: 0
) -> ASGIApp:
    """The server's routes.

    started: seconds since 1970, the `created` of the model.
    connections: the number of open ones.
    """
    app = FastAPI(title="awq-edge", version=__version__, openapi_url=None, redirect_slashes=False)
    _add_error_handlers(app)
    card = {
        "id": service.model_name,
        "object": "model",
        "created": started,
        "owned_by": "awq-edge",
        "max_model_len": service.model.session.context,
    }

    @app.api_route("/v1/models", methods=_READ)
    async def models(request: Request) -> Response:
        _authorize(service, request)
        return _json({"object": "list", "data": [card]})

    @app.api_route("/v1/models/{name:path}", methods=_READ)
    async def model(request: Request, name: str) -> Response:
        _authorize(service, request)
        _require_model(service, name)
        return _json(card)

    @app.post("/v1/completions")
    async def completions(request: Request) -> Response:
        return await _generate(service, request, CompletionRequest, service.completion_task)

    @app.post("/v1/chat/completions")
    async def chat_completions(request: Request) -> Response:
        return await _generate(service, request, ChatRequest, service.chat_task)

    @app.api_route("/health", methods=_READ)
    async def health() -> Response:
        healthy, body = service.health()
        return _json(body, 200 if healthy else 503)

    @app.api_route("/metrics", methods=_READ)
    async def metrics(request: Request) -> Response:
        _authorize(service, request)
        return Response(service.metrics.render(), media_type=CONTENT_TYPE)

    return _Counted(_Front(app, service, connections), service)


async def _generate(
    service: Service, request: Request, schema: type[R], make_task: Callable[[R], Task]
) -> Response:
    _authorize(service, request)
    body = await _read_body(service, request)

    def prepare() -> Task:
        parsed = parse(body, schema)
        return make_task(parsed)

    # Encoding a long prompt takes tenths of seconds, in which the event loop goes on.
    task = await run_in_threadpool(prepare)
    return await respond(service, request, task)


def _authorize(service: Service, request: Request) -> None:
    if not service.authorized(request.headers.get("authorization")):
        raise ApiError(
            401,
            "the API key is missing or wrong; send Authorization: Bearer KEY",
            code="invalid_api_key",
        )


def _require_model(service: Service, name: str) -> None:
    """Raise ApiError where a path names another model. A request's body may name any: there is
    one."""
    if name != service.model_name:
        raise ApiError(
            404,
            f"the model {name[:100]!r} is not served here; this server has {service.model_name!r}",
            param="model",
            code="model_not_found",
        )


async def _read_body(service: Service, request: Request) -> bytes:
    """The body. Raises ApiError where its header is not JSON, it is too long, or it does not
    come."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        # Another type can be sent by any web page to a server of this machine.
        raise ApiError(415, f"the body is {kind or 'of no type'}; send application/json")
    coding = request.headers.get("content-encoding", "identity").strip().lower()
    if coding != "identity":
        raise ApiError(415, f"the body is coded as {coding[:100]}; send it as it is")
    limit = service.limits.max_body
    too_long = ApiError(413, f"the body has more than {limit} bytes", code="body_too_large")
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced[:20]) > limit:
        raise too_long

    async def read() -> bytes:
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > limit:
                raise too_long
        return bytes(body)

    seconds = service.limits.body_seconds
    try:
        return await asyncio.wait_for(read(), seconds)
    except asyncio.TimeoutError:
        raise ApiError(408, f"the body did not come within {seconds:g} s") from None


def _json(body: object, status: int = 200) -> Response:
    return Response(to_json(body), status, media_type="application/json")


def _add_error_handlers(app: FastAPI) -> None:
    def answer(error: ApiError) -> JSONResponse:
        return JSONResponse(error.body(), error.status, error.headers())

    async def known(request: Request, error: Exception) -> Response:
        return answer(as_api_error(error))

    async def http(request: Request, error: Exception) -> Response:
        status = error.status_code if isinstance(error, HTTPException) else 500
        if status == 404:
            text = f"there is no {request.url.path[:100]}; there are {', '.join(_ROUTES)}"
        else:
            text = f"{request.method} {request.url.path[:100]}: {getattr(error, 'detail', '')}"
        response = answer(ApiError(status, text))
        response.headers.update(getattr(error, "headers", None) or {})  # of 405: Allow
        return response

    async def gone(request: Request, error: Exception) -> Response:
        return Response(status_code=CLIENT_GONE)

    app.add_exception_handler(ApiError, known)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(ClientDisconnect, gone)
    app.add_exception_handler(Exception, known)  # a defect: its text is not told


class _Front:
    """The rules of every route: who may ask, one slash more at the end of a path, and that a
    connection whose body was not read to its end, or has two ends, is closed after the answer."""

    def __init__(self, app: ASGIApp, service: Service, connections: Callable[[], int]) -> None:
        self._app = app
        self._service = service
        self._connections = connections

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = scope["path"]
        if len(path) > 1 and path.endswith("/"):
            path = scope["path"] = path.rstrip("/") or "/"
        headers = Headers(scope=scope)
        length = headers.get("content-length", "0").strip()
        chunked = "transfer-encoding" in headers
        unread = chunked or length.lstrip("0") != ""
        # Where both say how long the body is, another server on the way may have read another end.
        doubtful = chunked and "content-length" in headers

        async def read() -> Message:
            nonlocal unread
            message = await receive()
            unread = unread and bool(message.get("more_body", False))
            return message

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start" and (unread or doubtful):
                message.setdefault("headers", [])
                message["headers"] = [*message["headers"], (b"connection", b"close")]
            await send(message)

        refusal = self._refusal(path, headers)
        app = self._app if refusal is None else refusal
        await app(scope, read, answer)

    def _refusal(self, path: str, headers: Headers) -> ASGIApp | None:
        most = self._service.limits.max_connections
        if self._connections() > most:
            error = ApiError(
                503,
                f"more than {most} connections are open; try again in {_RETRY_CONNECTIONS} s",
                code="too_many_connections",
                retry_after=_RETRY_CONNECTIONS,
            )
        elif path != "/health" and not self._service.host_allowed(headers.get("host")):
            error = ApiError(
                403,
                "the Host header names another machine; use localhost or an address, or start the "
                "server with --api-key",
                code="host_not_allowed",
            )
        else:
            return None
        return JSONResponse(error.body(), error.status, error.headers())


class _Counted:
    """Counts every HTTP request by its route and status, once it has ended."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app = app
        self._metrics = service.metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        seen: MutableMapping[str, Any] = {"status": CLIENT_GONE, "whole": False}

        async def watched(message: Message) -> None:
            if message["type"] == "http.response.start":
                seen["status"] = message["status"]
            await send(message)
            if message["type"] == "http.response.body" and not message.get("more_body", False):
                seen["whole"] = True

        try:
            await self._app(scope, receive, watched)
        finally:
            # A stream that was not sent to its end: the client went away in the middle of it.
            status = seen["status"] if seen["whole"] else CLIENT_GONE
            path = scope["path"]
            known = path if path in _ROUTES else "other"
            endpoint = "/v1/models" if path.startswith("/v1/models/") else known
            self._metrics.answered(endpoint, status)

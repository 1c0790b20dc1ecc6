"""The application: routes, errors in the shapes of text-embeddings-inference, and who may come in."""

from __future__ import annotations

import hmac
import os
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import Response
from pydantic_core import to_json
from starlette.exceptions import HTTPException

from ..core.errors import UserError
from .demo import demo_routes
from .routes import SUBNET_HEADER, VERSION, explain, make_router
from .server_config import ServerConfig
from .service import ClientGoneError, Service
from .tokens import EmptyError, InputError, TokenizerError
from .worker import BackendError, DeadlineError, DrainingError, OverloadedError

# Errors, the more special ones first: status, and the word for it in text-embeddings-inference.
ERRORS: dict[type[Exception], tuple[int, str]] = {
    OverloadedError: (429, "Overloaded"),
    DrainingError: (503, "Unhealthy"),
    DeadlineError: (504, "Overloaded"),
    BackendError: (424, "Backend"),
    ClientGoneError: (499, "ClientGone"),
    EmptyError: (400, "Empty"),
    InputError: (413, "Validation"),
    TokenizerError: (422, "Tokenizer"),
    UserError: (422, "Validation"),
}
OPEN_ROUTES = ("/health",)  # which need no key
KEY_VARIABLE = "HF_ELASTIC_API_KEY"
Scope = MutableMapping[str, Any]


def key_of(config: ServerConfig) -> str | None:
    """The key that requests must send."""
    return config.api_key or os.environ.get(KEY_VARIABLE) or None


def make_app(service: Service) -> FastAPI:
    """The application that answers for a service."""
    app = FastAPI(title="hf-elastic", version=VERSION, docs_url=None, redoc_url=None, openapi_url="/openapi.json")
    router = make_router(service)
    if service.config.demo:
        demo_routes(router, service)
    app.include_router(router)
    routes = sorted({route.path for route in router.routes} - {"/"})

    def known(path: str) -> str:
        return path if path in (*routes, "/") else "other"

    for kind, (status, name) in ERRORS.items():
        app.add_exception_handler(kind, _handler(status, name))

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        errors, status = error.errors(), 422
        if any(one["type"] == "json_invalid" for one in errors):
            status = 400
        elif any(one["loc"] == ("body",) for one in errors) and "json" not in request.headers.get("content-type", ""):
            status, errors = 415, [{"loc": ("body",), "msg": "send it with `Content-Type: application/json`"}]
        return refuse(request.url.path, status, explain(errors), "Validation")

    @app.exception_handler(HTTPException)
    async def other(request: Request, error: HTTPException) -> Response:
        status, text = error.status_code, error.detail
        if status == 400:  # FastAPI's, where the bytes are no text
            text = "body: is not JSON in UTF-8"
        if status == 404:
            text = f"a model of the kind {service.engine.kind} has no such route; it has: {', '.join(routes)}"
        return refuse(request.url.path, status, text, "Validation", error.headers)

    @app.exception_handler(Exception)
    async def bug(request: Request, error: Exception) -> Response:
        return refuse(request.url.path, 500, f"internal error: {type(error).__name__}", "Backend")

    if service.config.otlp_endpoint is not None:
        from .tracing import trace_requests

        trace_requests(app, service, service.config.otlp_endpoint)
    guard(app, service.config, lambda path, status: service.metrics.requests.labels(known(path), status).inc())
    return app


def guard(app: FastAPI, config: ServerConfig, count: Callable[[str, int], object] = lambda path, status: None) -> None:
    """Put before an application what refuses requests by their key, size or origin; see `Gate` for `count`."""
    app.add_middleware(Gate, key=key_of(config), limit=config.payload_limit, count=count)
    if config.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=config.cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=[SUBNET_HEADER, "retry-after"],
        )


def refuse(path: str, status: int, text: str, name: str, headers: dict | None = None) -> Response:
    """An error in the shape of its route."""
    if path.startswith("/v1/"):
        content = {"message": text, "code": status, "type": name}
    else:
        content = {"error": text, "error_type": name}
    return Response(to_json(content), status, media_type="application/json", headers=headers)


def _handler(status: int, name: str) -> Callable[[Request, Exception], Awaitable[Response]]:
    async def handle(request: Request, error: Exception) -> Response:
        headers = {}
        if isinstance(error, OverloadedError):
            headers["Retry-After"] = str(error.retry_after)
        if isinstance(error, DrainingError):
            headers["Connection"] = "close"
        return refuse(request.url.path, status, str(error), name, headers)

    return handle


class Gate:
    """What stands before all routes: the key, the largest body, and the count of answers by route and status.

    Args:
        app: what comes after it.
        key: that requests must send as a bearer token; None for everyone.
        limit: of a body, in bytes.
        count: is told the path and the status of each answer.
    """

    def __init__(self, app: Callable, *, key: str | None, limit: int, count: Callable[[str, int], object]):
        self.app, self.limit, self.count = app, limit, count
        self.key = None if key is None else f"Bearer {key}".encode()

    async def __call__(self, scope: Scope, receive: Callable, send: Callable) -> None:
        """Let a request in, or answer it here."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path, headers = scope["path"], dict(scope["headers"])

        async def counted(message: MutableMapping) -> None:
            if message["type"] == "http.response.start":
                self.count(path, message["status"])
            await send(message)

        # The time that this takes says nothing about the key.
        if self.key and path not in OPEN_ROUTES and not hmac.compare_digest(headers.get(b"authorization", b""), self.key):
            refusal = refuse(path, 401, "the API key is missing or wrong", "Unauthorized", {"WWW-Authenticate": "Bearer"})
            await refusal(scope, receive, counted)
            return
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > self.limit:
            await refuse(path, 413, self._too_large, "Validation", {"Connection": "close"})(scope, receive, counted)
            return
        received = 0

        async def limited() -> MutableMapping:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self.limit:
                raise HTTPException(413, self._too_large, {"Connection": "close"})
            return message

        await self.app(scope, limited, counted)

    @property
    def _too_large(self) -> str:
        return f"the body of a request may have {self.limit} bytes at most"

"""The router's interface: OpenAI's, health, metrics, and the admin's."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from splitgym.router.admin import admin_routes
from splitgym.router.ask import BadRequest
from splitgym.router.exchange import Exchange, error_body, error_response
from splitgym.router.router import Router


def create_app(router: Router) -> Starlette:
    """The ASGI application; its lifespan is the router's."""

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with router.running():
            yield

    async def models(request: Request) -> Response:
        router.limits.identify(request)
        model = {"id": router.config.name, "object": "model", "created": 0, "owned_by": "splitgym"}
        return JSONResponse({"object": "list", "data": [model]})

    async def health(request: Request) -> Response:
        up = [engine.name for engine in router.engines if not engine.is_down]
        view = router.books.tick_view()
        serves = bool(view.prompt_mask.any() and view.token_mask.any())
        return JSONResponse(
            {"serves": serves, "engines_up": len(up), "engines": len(router.engines)}, 200 if serves else 503
        )

    async def metrics(request: Request) -> Response:
        router.refresh_gauges()
        return Response(router.metrics.page(), media_type="text/plain; version=0.0.4; charset=utf-8")

    generate = _Generate(router)
    return Starlette(
        routes=[
            Route("/v1/completions", generate, methods=["POST"]),
            Route("/v1/chat/completions", generate, methods=["POST"]),
            Route("/v1/models", _checked(router, models)),
            Route("/health", health),
            Route("/metrics", metrics),
            *admin_routes(router, _checked),
        ],
        lifespan=lifespan,
        exception_handlers={HTTPException: _http_error},
    )


class _Generate:
    """Completions and chats."""

    def __init__(self, router: Router) -> None:
        self._router = router

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        router, request = self._router, Request(scope, receive)
        router.metrics.running.inc()
        try:
            router.limits.check_headers(request)
            client = router.limits.identify(request)
            with router.limits.one_more(client):
                ask = router.reader.read(scope["path"], await router.limits.read_body(request))
                authorization = None if router.limits.keys_are_ours else request.headers.get("authorization")
                exchange = Exchange(router.flow, ask, uuid.uuid4().hex, authorization, router.metrics)
                await exchange(scope, receive, send)
        except BadRequest as error:
            router.metrics.requests.labels(str(error.status)).inc()
            await error_response(error)(scope, receive, send)
        finally:
            router.metrics.running.dec()


Endpoint = Callable[[Request], Awaitable[Response]]


def _checked(router: Router, endpoint: Endpoint) -> Endpoint:
    """``endpoint`` behind the limit of headers, its `BadRequest` made an answer."""

    async def checked(request: Request) -> Response:
        try:
            router.limits.check_headers(request)
            return await endpoint(request)
        except BadRequest as error:
            return error_response(error)

    return checked


async def _http_error(request: Request, error: Any) -> Response:
    """What Starlette refuses: unknown paths, other methods."""
    return JSONResponse(error_body(error.status_code, str(error.detail), "not_found"), error.status_code, error.headers)

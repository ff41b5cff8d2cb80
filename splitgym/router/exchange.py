"""One request as ASGI: the answer is sent as it comes, and all work for it ends when the client goes."""

from __future__ import annotations

import asyncio
import json
from contextlib import aclosing
from typing import Any

from starlette.responses import JSONResponse, Response
from starlette.types import Message, Receive, Scope, Send

from splitgym.router.ask import Ask, BadRequest
from splitgym.router.engines import EngineFailed, Refused
from splitgym.router.flow import Flow, assembled
from splitgym.router.metrics import Metrics

CLIENT_GONE = 499
"""The status that is counted where nobody is left to receive one."""

_NO_CACHE = (b"cache-control", b"no-cache")


class Exchange(Response):
    """Serves an ask when it is called.

    Args:
        flow: which does the work.
        ask: for what.
        request_id: the router's own.
        authorization: what is passed on to the engines.
        metrics: where the status is counted.
    """

    def __init__(self, flow: Flow, ask: Ask, request_id: str, authorization: str | None, metrics: Metrics) -> None:
        super().__init__()
        self._flow = flow
        self._ask = ask
        self._request_id = request_id
        self._authorization = authorization
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer; give up at once when the client closes its connection."""
        task = asyncio.current_task()
        assert task is not None
        gone = False

        async def watch() -> None:
            nonlocal gone
            while (await receive())["type"] != "http.disconnect":
                pass
            gone = True
            task.cancel()

        watcher = asyncio.create_task(watch())
        status = CLIENT_GONE
        try:
            status = await self._answer(send)
        except asyncio.CancelledError:
            if not gone:  # the server is being stopped
                raise
            task.uncancel()
        finally:
            watcher.cancel()
            self._metrics.requests.labels(str(status)).inc()

    async def _answer(self, send: Send) -> int:
        """Returns the status that was sent."""
        try:
            async with aclosing(self._flow.events(self._ask, self._request_id, self._authorization)) as events:
                if self._ask.streams:
                    return await self._stream(events, send)
                body = await assembled(events, self._ask)
            await self._send_whole(200, body, send)
            return 200
        except BadRequest as error:
            status, body = error.status, json.dumps(error_body(error.status, str(error), error.code)).encode()
        except Refused as error:
            status, body = error.status, error.body
        await self._send_whole(status, body, send)
        return status

    async def _stream(self, events: Any, send: Send) -> int:
        started = False
        try:
            async for part in events:
                if not part:  # begun anew before anything was sent
                    continue
                if not started:
                    started = True
                    await send(self._start(200, b"text/event-stream", _NO_CACHE))
                await send({"type": "http.response.body", "body": part, "more_body": True})
        except EngineFailed as error:
            self._metrics.broken.inc()
            body = error_body(502, f"{error}; the answer is not complete", "bad_gateway")
            event = f"data: {json.dumps(body)}\n\n".encode()
            await send({"type": "http.response.body", "body": event})
            return 502
        await send({"type": "http.response.body", "body": b""})
        return 200

    async def _send_whole(self, status: int, body: bytes, send: Send) -> None:
        length = (b"content-length", str(len(body)).encode())
        retry = [(b"retry-after", b"1")] if status in (429, 503) else []
        await send(self._start(status, b"application/json", length, *retry))
        await send({"type": "http.response.body", "body": body})

    def _start(self, status: int, media_type: bytes, *headers: tuple[bytes, bytes]) -> Message:
        own = [(b"content-type", media_type), (b"x-request-id", self._request_id.encode()), *headers]
        return {"type": "http.response.start", "status": status, "headers": own}


def error_body(status: int, message: str, code: str) -> dict[str, Any]:
    """An error as OpenAI's clients understand it."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


def error_response(error: BadRequest) -> Response:
    """The answer to a client's mistake."""
    headers = {"retry-after": "1"} if error.status in (429, 503) else None
    return JSONResponse(error_body(error.status, str(error), error.code), error.status, headers)

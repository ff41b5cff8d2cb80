"""The engines as the router reaches them: calls, and a circuit breaker for each."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import aiohttp

from splitgym.router.config import EngineConfig, SafetyConfig

_log = logging.getLogger(__name__)

KEEP_ALIVE_S = 3.0
"""Shorter than the engines' (uvicorn's 5 s), so that no call goes out on a connection that is being closed."""


class EngineFailed(Exception):  # noqa: N818
    """An engine did not do its part.

    Args:
        kind: for the metrics; the message is the router's own words.
        engine: its name.
        is_ill: whether it counts with its breaker; an engine that is only late may be busy.
    """

    def __init__(self, kind: str, engine: str, is_ill: bool = True) -> None:
        super().__init__(f"engine {engine}: {kind}")
        self.kind = kind
        self.engine = engine
        self.is_ill = is_ill


class Refused(Exception):  # noqa: N818
    """An engine says that the request is wrong; its answer is the client's."""

    def __init__(self, status: int, body: bytes) -> None:
        super().__init__(f"status {status}")
        self.status = status
        self.body = body


class Call:
    """A call that is under way."""

    def __init__(self, opening: asyncio.Timeout) -> None:
        self.opening = opening
        self.answer: aiohttp.ClientResponse | None = None
        self._seen_bytes = -1
        self._since_s = 0.0

    def give_up_if_silent(self, now_s: float, patience_s: float) -> None:
        """End it if no byte has come for ``patience_s`` since it was first looked at, at the event loop's time."""
        seen_bytes = 0 if self.answer is None else self.answer.content.total_bytes
        if seen_bytes != self._seen_bytes:
            self._seen_bytes, self._since_s = seen_bytes, now_s
        elif now_s - self._since_s <= patience_s:
            return
        elif self.answer is None:
            self.opening.reschedule(now_s)
        else:
            self.answer.close()


class Engine:
    """One engine.

    Args:
        index: its machine number.
        config: where it is.
        failures_to_open: after how many failures in a row nothing is sent to it.
        show_down: told whenever that changes.
    """

    def __init__(
        self, index: int, config: EngineConfig, failures_to_open: int, show_down: Callable[[int, bool], None]
    ) -> None:
        self.index = index
        self.config = config
        self.name = config.name
        self.url = config.url
        self.is_down = False
        self.calls: set[Call] = set()
        self._failures = 0
        self._failures_to_open = failures_to_open
        self._show_down = show_down

    def failed(self) -> None:
        """A call has failed."""
        self._failures += 1
        if self._failures >= self._failures_to_open and not self.is_down:
            self.is_down = True
            self._show_down(self.index, True)
            _log.warning("engine %s is down", self.name)

    def succeeded(self) -> None:
        """It has answered a call, whole or with a stream's first event, or a probe where it was down."""
        self._failures = 0
        if self.is_down:
            self.is_down = False
            self._show_down(self.index, False)
            _log.warning("engine %s is back", self.name)

    def gone(self, patience_s: float) -> None:
        """It is down and takes no connections: what it is silent about for ``patience_s`` will never come.

        vLLM that is told to end (SIGTERM) stops working at once and waits for its connections to be closed.
        """
        now_s = asyncio.get_running_loop().time()
        for call in tuple(self.calls):
            call.give_up_if_silent(now_s, patience_s)


class Client:
    """Calls engines. Whatever goes wrong becomes `EngineFailed`, and counts with the engine's breaker.

    Args:
        safety: timeouts.
    """

    def __init__(self, safety: SafetyConfig) -> None:
        self._safety = safety
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE_S),
            timeout=aiohttp.ClientTimeout(
                total=None, sock_connect=safety.connect_timeout_s, sock_read=safety.silence_timeout_s
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
        )

    async def close(self) -> None:
        """Close all connections."""
        await self._session.close()

    @asynccontextmanager
    async def post(
        self, engine: Engine, path: str, body: bytes, headers: dict[str, str]
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """A call whose answer begins with status 200; leaving the block before its end aborts it.

        Raises:
            EngineFailed: if the engine cannot be reached, breaks off, is silent for too long, or says 429 or 5xx.
            Refused: if it says another 4xx.
        """
        headers = headers | {"Content-Type": "application/json"}
        if engine.config.api_key is not None:
            headers["Authorization"] = f"Bearer {engine.config.api_key}"
        call = Call(asyncio.timeout(None))
        engine.calls.add(call)
        try:
            async with AsyncExitStack() as opened:
                posting = self._session.post(engine.url + path, data=body, headers=headers, allow_redirects=False)
                async with call.opening:
                    answer = call.answer = await opened.enter_async_context(posting)
                if answer.status != 200:
                    text = await answer.content.read(65_536)
                    if 400 <= answer.status < 500 and answer.status != 429:
                        raise Refused(answer.status, text)
                    raise EngineFailed(f"status {answer.status}", engine.name)
                yield answer
                engine.succeeded()
        except EngineFailed as error:
            if error.is_ill:
                engine.failed()
            raise
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            engine.failed()
            kind = "silent" if isinstance(error, TimeoutError) else "broken connection"
            if isinstance(error, aiohttp.ClientConnectorError):
                kind = "cannot be reached"
            raise EngineFailed(kind, engine.name) from None
        finally:
            engine.calls.discard(call)

    async def post_json(self, engine: Engine, path: str, body: bytes, headers: dict[str, str]) -> dict[str, Any]:
        """The whole answer of a call.

        Raises:
            EngineFailed: also if it is no JSON object.
            Refused: see `post`.
        """
        async with self.post(engine, path, body, headers) as answer:
            try:
                content = await answer.json(content_type=None)
            except ValueError:
                content = None
            if not isinstance(content, dict):
                raise EngineFailed("no JSON object", engine.name)
            return content

    async def get(self, engine: Engine, path: str, timeout_s: float) -> tuple[int, bytes]:
        """Status and body of a probe, which counts with no breaker.

        Raises:
            OSError, TimeoutError, aiohttp.ClientError: if there is no answer.
        """
        async with asyncio.timeout(timeout_s), self._session.get(engine.url + path, allow_redirects=False) as answer:
            return answer.status, await answer.read()

"""What the engines say of themselves: scraped every so often; and probes of those that were down."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Sequence

import aiohttp

from splitgym.router.books import RouterBooks
from splitgym.router.config import TelemetryConfig
from splitgym.router.engines import Client, Engine

_LINE = re.compile(
    rb"^(vllm:num_requests_running|vllm:num_requests_waiting|vllm:kv_cache_usage_perc|vllm:gpu_cache_usage_perc"
    rb"|sglang:num_running_reqs|sglang:num_queue_reqs|sglang:token_usage)(?:\{.*\})? +([0-9.eE+-]+)(?: +[0-9]+)?\r?$",
    re.MULTILINE,
)
_RUNNING = (b"vllm:num_requests_running", b"sglang:num_running_reqs")
_WAITING = (b"vllm:num_requests_waiting", b"sglang:num_queue_reqs")


def read_metrics(page: bytes) -> tuple[float, float, float] | None:
    """Running requests, waiting requests and the share of KV memory in use, of the lines with known names.

    An engine of several ranks has a line for each: requests are summed, of shares the largest counts. A page of
    thousands of lines is searched in a fraction of the time that a parser of the format takes.

    Returns:
        ``None`` if no line tells the share or the running requests.
    """
    running = waiting = 0.0
    share = -1.0
    known = False
    for name, text in _LINE.findall(page):
        try:
            value = float(text)
        except ValueError:
            continue
        if name in _RUNNING:
            running += value
            known = True
        elif name in _WAITING:
            waiting += value
        else:
            share = max(share, value)
    if not known or share < 0:
        return None
    return max(running, 0.0), max(waiting, 0.0), min(share, 1.0)


class Telemetry:
    """Keeps the reported columns of the books, and finds out who is down and who is back.

    An engine whose metrics fail is only blind: what it said last stands. One that refuses connections counts as
    failing, and one that is down comes back when its ``/health`` answers; what it is silent about is given up soon.
    """

    def __init__(
        self,
        client: Client,
        engines: Sequence[Engine],
        books: RouterBooks,
        config: TelemetryConfig,
        gone_timeout_s: float,
        clock: Callable[[], float],
    ) -> None:
        self._client = client
        self._engines = engines
        self._books = books
        self._config = config
        self._gone_timeout_s = gone_timeout_s
        self._clock = clock
        self._scraped_s = [clock()] * len(engines)

    def age_s(self, engine: Engine) -> float:
        """How old its metrics are."""
        return self._clock() - self._scraped_s[engine.index]

    async def run(self) -> None:
        """For ever."""
        while True:
            await asyncio.gather(*(self._look_at(engine) for engine in self._engines))
            await asyncio.sleep(self._config.interval_s)

    async def _look_at(self, engine: Engine) -> None:
        try:
            if engine.is_down:
                status, _ = await self._client.get(engine, "/health", self._config.timeout_s)
                if status == 200:
                    engine.succeeded()
                return
            status, page = await self._client.get(engine, "/metrics", self._config.timeout_s)
        except aiohttp.ClientConnectorError:
            engine.failed()
            if engine.is_down:
                engine.gone(self._gone_timeout_s)
            return
        except (OSError, TimeoutError, aiohttp.ClientError):
            return
        said = read_metrics(page) if status == 200 else None
        if said is not None:
            self._books.report(engine.index, *said)
            self._scraped_s[engine.index] = self._clock()

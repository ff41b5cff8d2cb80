"""The router: its parts, put together, started and stopped."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

from splitgym.router.ask import Reader
from splitgym.router.books import RouterBooks
from splitgym.router.config import RouterConfig, cluster_of
from splitgym.router.decide import Decider, NoChoice
from splitgym.router.decision_log import DecisionLog
from splitgym.router.engines import Client, Engine
from splitgym.router.flow import Flow
from splitgym.router.limits import Limits
from splitgym.router.metrics import Metrics
from splitgym.router.protocols import PROTOCOLS
from splitgym.router.roles import Roles
from splitgym.router.telemetry import Telemetry

_log = logging.getLogger(__name__)


class Router:
    """Everything that lasts as long as the process. It works inside ``async with router.running()``.

    Args:
        config: what it is told.
        folder: what the configuration's paths are relative to.
        clock: seconds; another where engines and router live in a time of their own.

    Raises:
        SplitgymError: for machines without a profile, or a policy that cannot be had.
    """

    flow: Flow
    roles: Roles
    telemetry: Telemetry

    def __init__(
        self, config: RouterConfig, folder: Path = Path(), clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self.config = config
        self._clock = clock
        self.metrics = Metrics()
        cluster = cluster_of(config, folder)
        self.books = RouterBooks(cluster, config.time_scale, clock)
        safety, policy = config.safety, config.policy
        self.engines = tuple(
            Engine(index, engine, safety.failures_to_open, self.books.set_down)
            for index, engine in enumerate(config.engines)
        )
        self.decider = Decider(
            cluster, policy.name, policy.fallback, policy.timeout_ms / 1000, policy.seed, self.metrics
        )
        self.protocol = PROTOCOLS[config.protocol]()
        self.limits = Limits(config.limits, config.client_keys, config.admin_key)
        self.reader = Reader(config.name, config.prediction, max(self.books.capacities))
        names = tuple(engine.name for engine in self.engines)
        self.log = None if config.log is None else DecisionLog(config.log, names, self.metrics, _told(config))
        self._compile()

    def _compile(self) -> None:
        """Call what is compiled once, so that the first request does not wait for it."""
        self.books.tick_view()
        self.books.settle(self.books.assign(0, 0, 1, 1.0))

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Router]:
        """Scraping, ticking and logging; ends when the last request has."""
        config = self.config
        client = Client(config.safety)
        self.roles = Roles(self.books, self.engines, self.protocol, client, self.metrics)
        patience_s = config.safety.gone_timeout_s
        self.telemetry = Telemetry(client, self.engines, self.books, config.telemetry, patience_s, self._clock)
        self.flow = Flow(
            config,
            self.books,
            self.engines,
            client,
            self.protocol,
            self.decider,
            self.roles,
            self.metrics,
            self.log,
            self._clock,
        )
        if config.policy.shadow is not None:
            await self.decider.swap_shadow(config.policy.shadow)
        chores: list[Coroutine[Any, Any, None]] = [self.telemetry.run()]
        if config.policy.tick_s is not None:
            chores.append(self._tick(config.policy.tick_s / config.time_scale))
        if self.log is not None:
            chores.append(self.log.run())
        tasks = [asyncio.create_task(chore) for chore in chores]
        for task in tasks:
            task.add_done_callback(_report_failure)
        try:
            yield self
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self.roles.close()
            await self.flow.close()
            if self.log is not None:
                await self.log.flush()
            await client.close()

    async def _tick(self, every_s: float) -> None:
        while True:
            await asyncio.sleep(every_s)
            try:
                await self.flow.tick()
            except NoChoice:
                _log.warning("nobody decided at a tick")

    def refresh_gauges(self) -> None:
        """Bring the gauges up to date, which nobody reads but a scraper."""
        for engine in self.engines:
            self.metrics.in_flight.labels(engine.name).set(self.books.in_flight(engine.index))
            self.metrics.engine_up.labels(engine.name).set(not engine.is_down)
            self.metrics.scrape_age_s.labels(engine.name).set(self.telemetry.age_s(engine))


def _told(config: RouterConfig) -> dict[str, str]:
    """What a log's reader must know to weigh its outcomes."""
    names = ("model", "baseline", "tensor_parallel", "time_scale")
    return {name: str(getattr(config, name)) for name in names}


def _report_failure(chore: asyncio.Task[None]) -> None:
    """A chore never ends by itself: say so where one did."""
    if not chore.cancelled():
        _log.error("%s has failed", chore.get_coro(), exc_info=chore.exception())

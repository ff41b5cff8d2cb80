"""Live repurposing: stop assigning, drain, flip, verify, assign."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

import aiohttp

from splitgym.router.books import RouterBooks
from splitgym.router.engines import Client, Engine, EngineFailed, Refused
from splitgym.router.metrics import Metrics
from splitgym.router.protocols import PhaseProtocol
from splitgym.view import DRAINING, MIXED, PROMPT, READY, ROLES, SWITCHING, TOKEN

_log = logging.getLogger(__name__)

_LOOK_S = 0.02
_HEALTH_S = 5.0


class Roles:
    """Carries out role changes, each in a task of its own.

    Becoming mixed only permits more and is done at once; giving up a phase waits for what is left of it.
    """

    def __init__(
        self, books: RouterBooks, engines: Sequence[Engine], protocol: PhaseProtocol, client: Client, metrics: Metrics
    ) -> None:
        self._books = books
        self._engines = engines
        self._protocol = protocol
        self._client = client
        self._metrics = metrics
        self._tasks: set[asyncio.Task[None]] = set()

    def is_permitted(self, machine: int, role: int) -> bool:
        """Whether ``machine`` may be changed to ``role`` now: both phases must keep an engine."""
        if role == MIXED and not self._protocol.unsplits:
            return False
        return bool(self._books.tick_view().role_mask[machine, role])

    def change(self, machine: int, role: int) -> bool:
        """Begin a role change, if it is permitted."""
        if not self.is_permitted(machine, role):
            return False
        old = self._books.role_of(machine)
        if role == MIXED:
            self._books.set_role(machine, role, READY)
            self._count(machine, role, "done")
            return True
        self._books.set_role(machine, role, DRAINING)
        task = asyncio.create_task(self._drain(machine, old, role))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return True

    async def close(self) -> None:
        """Give up what is under way."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _drain(self, machine: int, old: int, role: int) -> None:
        books, engine = self._books, self._engines[machine]
        lost = [phase for phase in (PROMPT, TOKEN) if old in (phase, MIXED) and phase != role]
        while any(books.has_work_of(machine, phase) for phase in lost):
            await asyncio.sleep(_LOOK_S)
        books.set_role(machine, role, SWITCHING)
        while not self._protocol.unsplits and books.in_flight(machine):  # an engine that switches must be idle
            await asyncio.sleep(_LOOK_S)
        try:
            await self._protocol.change_role(self._client, engine, role)
            status, _ = await self._client.get(engine, "/health", _HEALTH_S)
            is_done = status == 200
        except (EngineFailed, Refused, OSError, TimeoutError, aiohttp.ClientError):
            is_done = False
        books.set_role(machine, role if is_done else old, READY)
        self._count(machine, role, "done" if is_done else "failed")

    def _count(self, machine: int, role: int, result: str) -> None:
        name = self._engines[machine].name
        self._metrics.role_changes.labels(name, ROLES[role], result).inc()
        _log.info("engine %s: role %s, %s", name, ROLES[role], result)

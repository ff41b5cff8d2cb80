"""Several emulated engines on loopback, each on a port of its own, and the faults that they can be given."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Generator
from dataclasses import dataclass, field

import uvicorn

from splitgym.emulator.api import Api
from splitgym.emulator.engine import Engine
from splitgym.emulator.handover import Handover
from splitgym.sim.cluster import Batching, Machine
from splitgym.view import TOKEN

CRASH_S = 0.1
"""How long a server outlives its engine's core."""


class QuietServer(uvicorn.Server):
    """A server that leaves the process's signals alone."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Several servers share the process."""
        yield


@dataclass
class Place:
    """One machine's address, and what runs there now."""

    name: str
    machine: Machine
    host: str
    port: int
    engine: Engine | None = None
    api: Api | None = None
    tasks: list[asyncio.Task[None]] = field(default_factory=list)
    server: QuietServer | None = None

    @property
    def url(self) -> str:
        """Where it is reached."""
        return f"http://{self.host}:{self.port}"


class Fleet:
    """Emulated engines, one for each machine.

    Args:
        machines: what they are.
        model: the name they serve under.
        batching: limits of a batch.
        time_scale: emulated seconds in one second of the clock.
        lease_s: how long caches are kept for another machine, in emulated seconds.
        transfer_overhead_s: of sending a cache, in emulated seconds.
        recompute: see `Handover`.
        host: where they listen.
        first_port: the first engine's port, the others' follow; 0 for any that are free.
    """

    def __init__(
        self,
        machines: tuple[Machine, ...],
        model: str,
        *,
        batching: Batching | None = None,
        time_scale: float = 1.0,
        lease_s: float = 30.0,
        transfer_overhead_s: float = 0.0,
        recompute: bool = False,
        host: str = "127.0.0.1",
        first_port: int = 0,
    ) -> None:
        self.model = model
        self._batching = batching or Batching()
        self._time_scale = time_scale
        self._lease_s = lease_s
        self._handover = Handover(transfer_overhead_s, recompute=recompute)
        self.places = [
            Place(f"{machine.role_name}-{number}", machine, host, first_port + number if first_port else 0)
            for number, machine in enumerate(machines)
        ]

    def __getitem__(self, name: str) -> Place:
        return next(place for place in self.places if place.name == name)

    def engine(self, name: str) -> Engine:
        """The engine that runs at ``name``."""
        engine = self[name].engine
        assert engine is not None, f"{name} is not running"
        return engine

    async def start(self, name: str) -> None:
        """Start an engine, empty, on its port.

        Raises:
            OSError: if the port is taken.
        """
        place = self[name]
        listener = socket.socket(proto=socket.IPPROTO_TCP)  # named, or asyncio leaves Nagle's algorithm on
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((place.host, place.port))
        place.port = listener.getsockname()[1]
        engine = Engine(name, place.machine.profile, self._batching, self._time_scale, self._lease_s)
        api = Api(engine, self._handover, self.model, lambda: self.crash(name))
        config = uvicorn.Config(api.app, log_level="critical", access_log=False, lifespan="off", backlog=4096)
        place.engine, place.api, place.server = engine, api, QuietServer(config)
        self._handover.alive[engine.engine_id] = engine
        self._handover.modes[engine.engine_id] = "decode" if place.machine.role == TOKEN else "prefill"
        serving = asyncio.create_task(place.server.serve(sockets=[listener]))
        place.tasks = [asyncio.create_task(engine.run()), serving]
        while not place.server.started:
            await asyncio.sleep(0.002)

    def kill(self, name: str) -> None:
        """End an engine as if its process had been killed: connections break, what it held is lost."""
        place = self[name]
        if place.server is None or place.engine is None:
            return
        for listener in place.server.servers:
            listener.close()
        for connection in list(place.server.server_state.connections):
            transport = getattr(connection, "transport", None)
            if transport is not None:
                transport.abort()
        place.server.should_exit = place.server.force_exit = True
        place.tasks[0].cancel()
        del self._handover.alive[place.engine.engine_id]
        place.server = place.api = place.engine = None

    def crash(self, name: str) -> None:
        """End an engine's core: what is under way is answered with an error, then the server ends, too."""
        place = self[name]
        if place.api is None or place.engine is None:
            return
        place.api.core_died()
        place.tasks[0].cancel()
        asyncio.get_running_loop().call_later(CRASH_S, self._kill_if, place.engine)

    def terminate(self, name: str, *, in_silence: bool = False) -> None:
        """Tell an engine to end, as SIGTERM does vLLM: it takes no more connections and aborts what it works on.

        ``in_silence``, it does not say so: vLLM, when its core is the first to go.
        """
        place = self[name]
        if place.server is not None and place.api is not None:
            if not in_silence:
                place.api.abort_all()
            for listener in place.server.servers:
                listener.close()
            for connection in list(place.server.server_state.connections):
                connection.shutdown()  # those that are idle close
            place.tasks[0].cancel()

    def _kill_if(self, engine: Engine) -> None:
        for place in self.places:
            if place.engine is engine:
                self.kill(place.name)

    async def stop(self) -> None:
        """End all engines."""
        tasks = [task for place in self.places for task in place.tasks]
        for place in self.places:
            self.kill(place.name)
        await asyncio.gather(*tasks, return_exceptions=True)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Fleet]:
        """All engines, started, and stopped in the end."""
        try:
            for place in self.places:
                await self.start(place.name)
            yield self
        finally:
            await self.stop()

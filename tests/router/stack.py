"""A router before emulated engines, all in one event loop."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import wraps
from typing import Any

import aiohttp
import uvicorn

from splitgym.emulator import Fleet, expected_text
from splitgym.emulator.fleet import QuietServer
from splitgym.machines import build_machines, parse_machines
from splitgym.router import Router, RouterConfig, create_app
from splitgym.router.server import bind
from splitgym.sim import books as b

MODEL, HARDWARE = "llama2-70b", "h100-80gb"
SCALE = 50.0  # emulated seconds in one of the clock: a prompt takes about 1 ms, a token 0.6 ms
PROMPT = list(range(100, 164))
FIRST_AND_LAST = """
from splitgym.policies import BasePolicy

class FirstAndLast(BasePolicy):
    "The first prompt machine and the last token machine: split wherever that is possible."

    never_blocks = True

    def route(self, view):
        return int(view.prompt_mask.argmax()), int(view.token_mask.nonzero()[0][-1])
"""
FAST_SAFETY = {"connect_timeout_s": 0.5, "silence_timeout_s": 2.0, "failures_to_open": 2, "drain_timeout_s": 5.0}


def in_loop(scenario: Callable[..., Coroutine[Any, Any, None]], limit_s: float = 60.0) -> Callable[..., None]:
    """A test that is a coroutine; it may not take longer than ``limit_s``."""

    @wraps(scenario)
    def test(*arguments: Any, **named: Any) -> None:
        async def limited() -> None:
            async with asyncio.timeout(limit_s):
                await scenario(*arguments, **named)

        asyncio.run(limited())

    return test


@dataclass
class Answer:
    """What a client got."""

    status: int
    text: str
    headers: Any

    @property
    def json(self) -> Any:
        return json.loads(self.text)

    @property
    def events(self) -> list[Any]:
        lines = [line[6:] for line in self.text.split("\n") if line.startswith("data: ") and line != "data: [DONE]"]
        return [json.loads(line) for line in lines]

    @property
    def said(self) -> str:
        """The tokens of a completion, streamed or not."""
        parts = self.events if self.text.startswith("data: ") else [self.json]
        return "".join(choice["text"] for part in parts for choice in part.get("choices", []))

    @property
    def is_complete(self) -> bool:
        return self.text.endswith("data: [DONE]\n\n") and "error" not in self.text


@dataclass
class RouterStack:
    """A router that serves, and a client of it."""

    router: Router
    url: str
    client: aiohttp.ClientSession

    async def post(self, path: str, body: Any, **headers: str) -> Answer:
        async with self.client.post(self.url + path, json=body, headers=headers) as answer:
            return Answer(answer.status, await answer.text(), answer.headers)

    async def get(self, path: str, **headers: str) -> Answer:
        async with self.client.get(self.url + path, headers=headers) as answer:
            return Answer(answer.status, await answer.text(), answer.headers)

    async def complete(self, tokens: int = 8, prompt: Any = PROMPT, stream: bool = True, **fields: Any) -> Answer:
        body = {"model": self.router.config.name, "prompt": prompt, "max_tokens": tokens, "stream": stream}
        return await self.post("/v1/completions", body | fields)

    def counted(self, name: str, **labels: str) -> float:
        return self.router.metrics._registry.get_sample_value(f"splitgym_router_{name}", labels) or 0.0

    @property
    def retries(self) -> float:
        metrics = next(iter(self.router.metrics.retries.collect())).samples
        return sum(sample.value for sample in metrics if sample.name.endswith("_total"))

    @property
    def fallbacks(self) -> float:
        metrics = next(iter(self.router.metrics.fallbacks.collect())).samples
        return sum(sample.value for sample in metrics if sample.name.endswith("_total"))

    async def at_rest(self) -> None:
        """Wait until nothing is left anywhere: no booking, no KV memory, no request."""
        for _ in range(500):
            if not self.leftovers():
                return
            await asyncio.sleep(0.01)
        raise AssertionError(f"left over: {self.leftovers()}")

    def leftovers(self) -> dict[str, float]:
        """What should be 0 once all clients are gone."""
        columns = ("PENDING_PROMPTS", "PENDING_TOKENS", "PENDING_S", "DECODES", "COMING", "CONTEXT")
        columns += ("REMAINING", "BOOKED_KV", "COMING_CONTEXT")
        found = {name: float(abs(self.router.books.rows[:, getattr(b, name)]).sum()) for name in columns}
        found |= {
            f"in flight at {engine.name}": float(self.router.books.in_flight(engine.index))
            for engine in self.router.engines
        }
        found["requests"] = self.counted("requests_running")
        found["clients"] = float(self.router.limits.clients)
        return {name: value for name, value in found.items() if value > 1e-6}


@dataclass
class Stack(RouterStack):
    """The engines, too."""

    fleet: Fleet

    def leftovers(self) -> dict[str, float]:
        found = super().leftovers()
        for place in self.fleet.places:
            if place.engine is not None:
                found[f"KV tokens of {place.name}"] = float(place.engine.used)
                work = len(place.engine.queue) + len(place.engine.decodes) + place.engine.coming
                found[f"work of {place.name}"] = float(work)
        return {name: value for name, value in found.items() if value > 1e-6}


@asynccontextmanager
async def stack(
    machines: str = "prompt=2:h100-80gb,token=2:h100-80gb",
    *,
    scale: float = SCALE,
    engine_lease_s: float = 30.0,
    recompute: bool = False,
    **config: Any,
) -> AsyncIterator[Stack]:
    """Engines, a router before them and a client; ``config`` is the router's."""
    fleet = Fleet(
        build_machines(parse_machines(machines), MODEL, 8),
        MODEL,
        time_scale=scale,
        lease_s=engine_lease_s,
        recompute=recompute,
    )
    async with fleet.running():
        engines = [
            {"name": place.name, "url": place.url, "role": place.machine.role_name, "hardware": HARDWARE}
            for place in fleet.places
        ]
        settings: dict[str, Any] = {"model": MODEL, "time_scale": scale, "engines": engines}
        settings["policy"] = {"name": "round-robin", "tick_s": None}
        settings["telemetry"] = {"interval_s": 0.05, "timeout_s": 0.5}
        settings["safety"] = FAST_SAFETY | config.pop("safety", {})
        router = Router(RouterConfig.model_validate(settings | config))
        async with served(router) as (url, client):
            yield Stack(router, url, client, fleet)


@asynccontextmanager
async def served(router: Router) -> AsyncIterator[tuple[str, aiohttp.ClientSession]]:
    """The address at which a router serves in this event loop, and a client."""
    listener = bind("127.0.0.1", 0)
    server = QuietServer(uvicorn.Config(create_app(router), log_level="critical", access_log=False))
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    while not server.started:
        await asyncio.sleep(0.005)
    try:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as client:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}", client
    finally:
        server.should_exit = True
        await serving


def said_to(prompt: Any, tokens: int) -> str:
    return expected_text(prompt, tokens)

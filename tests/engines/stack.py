"""A router before two vLLM engines."""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from splitgym.router import Router, RouterConfig
from splitgym.router.telemetry import read_metrics
from tests.engines.vllm_engine import LEASE_S, MODEL, VllmEngine
from tests.router.stack import FIRST_AND_LAST, Answer, RouterStack, in_loop, served

GREEDY: dict[str, Any] = {"temperature": 0, "ignore_eos": True}

long_loop = partial(in_loop, limit_s=500.0)
"""A test that is a coroutine before real engines."""


@dataclass
class RealStack(RouterStack):
    """With a way past the router, to the engines themselves."""

    engines: tuple[VllmEngine, ...]

    async def say(self, prompt: Any, tokens: int = 12, stream: bool = True, **fields: Any) -> Answer:
        """What the router's client gets."""
        return await self.complete(tokens, prompt, stream, **GREEDY | fields)

    async def alone(self, prompt: Any, tokens: int = 12, engine: int = 0) -> str:
        """What one engine says by itself."""
        body = {"model": MODEL, "prompt": prompt, "max_tokens": tokens} | GREEDY
        async with self.client.post(f"{self.engines[engine].url}/v1/completions", json=body) as answer:
            assert answer.status == 200, await answer.text()
            return str((await answer.json())["choices"][0]["text"])

    async def loads(self) -> tuple[tuple[float, float, float], ...]:
        """Running, waiting and the share of KV memory, of each engine."""
        return tuple([await self._load(engine) for engine in self.engines])

    async def _load(self, engine: VllmEngine) -> tuple[float, float, float]:
        async with self.client.get(f"{engine.url}/metrics") as answer:
            said = read_metrics(await answer.read())
            assert said is not None
            return said

    async def engines_at_rest(self, within_s: float = LEASE_S / 2) -> None:
        """Wait until no engine works or keeps a cache; by default sooner than a lease would end."""
        async with asyncio.timeout(within_s):
            while any(any(load) for load in await self.loads()):
                await asyncio.sleep(0.1)

    async def transfers(self) -> float:
        """Of the token engine, as it counts them."""
        async with self.client.get(f"{self.engines[1].url}/metrics") as answer:
            return _value(await answer.text(), "vllm:nixl_xfer_time_seconds_count")


def _value(page: str, name: str) -> float:
    found = re.search(rf"^{name}(?:{{.*}})? (\S+)$", page, re.MULTILINE)
    return 0.0 if found is None else float(found[1])


@asynccontextmanager
async def real_stack(
    engines: tuple[VllmEngine, ...],
    folder: Path,
    roles: tuple[str, str] = ("prompt", "token"),
    policy: str | None = None,
    **config: Any,
) -> AsyncIterator[RealStack]:
    """A router before ``engines`` and a client; ``config`` is the router's. By default requests are split."""
    if policy is None:
        (folder / "policy.py").write_text(FIRST_AND_LAST, "utf-8")
        policy = f"{folder / 'policy.py'}:FirstAndLast"
    rows = [
        {"name": engine.name, "url": engine.url, "role": role, "hardware": "h100-80gb"}
        for engine, role in zip(engines, roles, strict=True)
    ]
    settings: dict[str, Any] = {"model": "llama2-70b", "served_model": MODEL, "engines": rows}
    settings["policy"] = {"name": policy, "tick_s": None}
    settings["telemetry"] = {"interval_s": 0.2, "timeout_s": 5.0}
    settings["prediction"] = {"bytes_per_token": 1.0, "mean_output_tokens": [64.0]}
    settings["safety"] = {"failures_to_open": 2, "silence_timeout_s": 60.0} | config.pop("safety", {})
    router = Router(RouterConfig.model_validate(settings | config))
    async with served(router) as (url, client):
        yield RealStack(router, url, client, engines)


async def until(condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
    """Look every 5 ms."""
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.005)


def random_prompt(seed: int, tokens: int) -> list[int]:
    """Token ids without special ones."""
    draw = random.Random(seed)
    return [draw.randrange(6, 512) for _ in range(tokens)]

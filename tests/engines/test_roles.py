"""Engines that trade places under load: vLLM with the NIXL connector can do either phase, the router decides."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from splitgym.view import PROMPT, READY, TOKEN
from tests.engines.stack import RealStack, long_loop, random_prompt, real_stack, until
from tests.engines.vllm_engine import VllmEngine
from tests.export.conftest import Bundles

pytestmark = [pytest.mark.engines, pytest.mark.timeout(1200)]

KEY = {"Authorization": "Bearer admin"}
CLIENTS = 4
FLIPS = (("prompt-0", "mixed"), ("token-1", "prompt"), ("prompt-0", "token"))


@long_loop
async def test_roles_are_flipped_under_load(
    engines: tuple[VllmEngine, ...], tmp_path: Path, bundle_of: Bundles
) -> None:
    """A trained bundle decides; prompt-0 becomes mixed, token-1 prompt, prompt-0 token. Nobody notices."""
    async with real_stack(engines, tmp_path, policy=str(bundle_of("routing")), admin_key="admin") as s:
        prompts = [random_prompt(400 + index, 60 + 50 * index) for index in range(20)]
        expected = [await s.alone(prompt, 40) for prompt in prompts]
        over = asyncio.Event()
        shares = [(prompts[number::CLIENTS], expected[number::CLIENTS]) for number in range(CLIENTS)]
        clients = [asyncio.create_task(ask_on(s, *share, over)) for share in shares]
        for engine, role in FLIPS:
            await asyncio.sleep(1.0)
            answer = await s.post("/admin/roles", {"engine": engine, "role": role}, **KEY)
            assert answer.status == 202, answer.text
            index = int(engine[-1])
            await until(lambda index=index: s.router.books.lifecycle_of(index) == READY)
        met = s.counted("requests_total", status="200")
        await until(lambda: s.counted("requests_total", status="200") >= met + 2 * CLIENTS)
        over.set()
        wrong = [wrong for client in clients for wrong in await client]
        assert wrong == [] and s.retries == 0 and s.fallbacks == 0
        assert [s.router.books.role_of(index) for index in (0, 1)] == [TOKEN, PROMPT]
        assert sum(s.counted("role_changes_total", engine=e, role=r, result="done") for e, r in FLIPS) == len(FLIPS)
        await s.at_rest()
        await s.engines_at_rest()


async def ask_on(s: RealStack, prompts: list[list[int]], expected: list[str], over: asyncio.Event) -> list[str]:
    """Ask one after the other until it is over; returns the answers that are wrong."""
    wrong = []
    while not over.is_set():
        for number, (prompt, said) in enumerate(zip(prompts, expected, strict=True)):
            answer = await s.say(prompt, 40, stream=number % 2 == 0)
            if (answer.status, answer.said) != (200, said):
                wrong.append(answer.text)
    return wrong

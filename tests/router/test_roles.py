"""Live repurposing: roles change under load, and nobody notices."""

from __future__ import annotations

import asyncio

import pytest

from splitgym.view import DRAINING, MIXED, PROMPT, READY, TOKEN
from tests.router.stack import PROMPT as TOKENS
from tests.router.stack import in_loop, said_to, stack

KEY = {"Authorization": "Bearer admin"}
FOUR = "prompt=2:h100-80gb,token=2:h100-80gb"


@pytest.mark.parametrize("protocol", ["vllm-nixl", "sglang"])
@in_loop
async def test_role_flips_under_load(protocol: str) -> None:
    async with stack(FOUR, protocol=protocol, admin_key="admin") as s:
        running = [asyncio.create_task(s.complete(80, prompt=[n] * 30)) for n in range(20)]
        await asyncio.sleep(0.02)
        answer = await s.post("/admin/roles", {"engine": "token-3", "role": "prompt"}, **KEY)
        assert (answer.status, answer.json["role"]) == (202, "prompt")
        running += [asyncio.create_task(s.complete(80, prompt=[n] * 30)) for n in range(20, 40)]
        answers = await asyncio.gather(*running)
        assert [answer.said for answer in answers] == [said_to([n] * 30, 80) for n in range(40)]
        async with asyncio.timeout(5):
            while s.router.books.lifecycle_of(3) != READY:
                await asyncio.sleep(0.01)
        assert s.router.books.role_of(3) == PROMPT
        assert s.counted("role_changes_total", engine="token-3", role="prompt", result="done") == 1
        assert (await s.complete(4)).said == said_to(TOKENS, 4)
        await s.at_rest()


@in_loop
async def test_draining_machine_gets_nothing_of_its_old_phase() -> None:
    async with stack(FOUR, scale=1.0) as s:
        task = asyncio.create_task(s.complete(30))
        await asyncio.sleep(0.2)
        machine = next(m for m in (2, 3) if s.router.books.has_work_of(m, TOKEN))
        assert s.router.roles.change(machine, PROMPT)
        assert s.router.books.lifecycle_of(machine) == DRAINING
        view = s.router.books.view(0, 10, 5.0)
        assert not view.token_mask[machine] and view.token_mask[5 - machine]
        assert not s.router.roles.change(machine, TOKEN)  # one at a time
        assert (await task).said == said_to(TOKENS, 30)
        await asyncio.sleep(0.1)
        assert s.router.books.lifecycle_of(machine) == READY


@in_loop
async def test_becoming_mixed_is_at_once_and_a_phase_keeps_an_engine() -> None:
    async with stack("prompt=1:h100-80gb,token=1:h100-80gb", admin_key="admin") as s:
        answer = await s.post("/admin/roles", {"engine": "prompt-0", "role": "token"}, **KEY)
        assert answer.status == 409 and "keep an engine" in answer.json["error"]["message"]
        answer = await s.post("/admin/roles", {"engine": "prompt-0", "role": "mixed"}, **KEY)
        assert (answer.status, s.router.books.role_of(0)) == (202, MIXED)
        answer = await s.post("/admin/roles", {"engine": "promt-0", "role": "mixed"}, **KEY)
        assert answer.status == 404 and "did you mean 'prompt-0'?" in answer.json["error"]["message"]
        engines = (await s.get("/admin/engines", **KEY)).json
        assert [(engine["name"], engine["role"], engine["lifecycle"]) for engine in engines] == [
            ("prompt-0", "mixed", "ready"),
            ("token-1", "token", "ready"),
        ]


@in_loop
async def test_engine_that_refuses_keeps_its_role() -> None:
    async with stack(FOUR, protocol="sglang") as s:
        s.fleet.engine("token-3").used = 5  # not idle, whatever the router thinks
        assert s.router.roles.change(3, PROMPT)
        async with asyncio.timeout(5):
            while s.router.books.lifecycle_of(3) != READY:
                await asyncio.sleep(0.01)
        s.fleet.engine("token-3").used = 0
        assert s.router.books.role_of(3) == TOKEN
        assert s.counted("role_changes_total", engine="token-3", role="prompt", result="failed") == 1
        assert (await s.complete(4)).said == said_to(TOKENS, 4)


@in_loop
async def test_a_pool_policy_changes_roles_at_ticks() -> None:
    policy = {"name": "splitwise+proportional", "tick_s": 2.0}
    async with stack("prompt=3:h100-80gb,token=1:h100-80gb", policy=policy) as s:
        for _ in range(30):
            await asyncio.gather(*(s.complete(40, prompt=[1, 2, 3]) for _ in range(8)))
            if sum(s.router.books.role_of(m) == TOKEN for m in range(4)) > 1:
                break
        assert sum(s.router.books.role_of(m) == TOKEN for m in range(4)) > 1
        await s.at_rest()

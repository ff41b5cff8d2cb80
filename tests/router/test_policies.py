"""Policies that fail, hang or talk nonsense; another one while requests run; one that is only listened to."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from splitgym.errors import SplitgymError
from splitgym.router.decide import Decider, NoChoice, _is_permitted
from splitgym.router.metrics import Metrics
from splitgym.view import MIXED, TOKEN, Decision
from tests.router.stack import PROMPT, in_loop, said_to, stack

BAD = """
import math, threading
from splitgym.view import Decision

class Raises:
    def decide(self, view):
        raise RuntimeError("no")

class Hangs:
    def decide(self, view):
        threading.Event().wait(30)

class Outside:
    def decide(self, view):
        return Decision(99, -3)

class WrongPool:
    def decide(self, view):
        return Decision(2, 0)  # a token machine for the prompt, a prompt machine for the tokens

class NotWhole:
    def decide(self, view):
        return Decision(math.nan, "0")

class Nothing:
    def decide(self, view):
        return None

class RolesFromNowhere:
    def decide(self, view):
        return Decision(0, 2, ((7, 1), (0, 9)))
"""
REASONS = {
    "Raises": "exception",
    "Hangs": "timeout",
    "Outside": "nonsense",
    "WrongPool": "nonsense",
    "NotWhole": "nonsense",
    "Nothing": "exception",  # its wrapper finds that
    "RolesFromNowhere": "nonsense",
}


@pytest.fixture
def bad(tmp_path: Path) -> str:
    path = tmp_path / "bad.py"
    path.write_text(BAD, "utf-8")
    return str(path)


@pytest.mark.parametrize("name", REASONS)
@in_loop
async def test_fallback_decides(bad: str, name: str) -> None:
    policy = {"name": f"{bad}:{name}", "fallback": "lmetric", "timeout_ms": 30.0, "tick_s": None}
    async with stack(policy=policy) as s:
        answers = await asyncio.gather(*(s.complete(4) for _ in range(5)))
        assert [(answer.status, answer.said) for answer in answers] == [(200, said_to(PROMPT, 4))] * 5
        assert s.counted("fallbacks_total", reason=REASONS[name]) == 5
        await s.at_rest()


@in_loop
async def test_hung_policy_costs_its_time_once(bad: str) -> None:
    """While it has not come back, the fallback decides at once."""
    policy = {"name": f"{bad}:Hangs", "timeout_ms": 300.0, "tick_s": None}
    async with stack(policy=policy) as s:
        loop = asyncio.get_running_loop()
        await s.complete(1)
        started_s = loop.time()
        for _ in range(5):
            assert (await s.complete(1)).status == 200
        assert loop.time() - started_s < 5 * 0.3
        assert s.counted("fallbacks_total", reason="timeout") == 6


@in_loop
async def test_failing_policy_at_ticks(bad: str) -> None:
    policy = {"name": f"{bad}:Raises", "tick_s": 1.0}  # emulated
    async with stack(policy=policy) as s:
        await asyncio.sleep(0.2)
        assert s.counted("fallbacks_total", reason="exception") >= 2


KEY = {"Authorization": "Bearer admin"}


@in_loop
async def test_hot_swap_under_load(bad: str) -> None:
    """No stream notices: neither a good policy, nor a bad one, nor one that does not exist."""
    policy = {"name": "round-robin", "tick_s": None, "python_files": True}
    async with stack(policy=policy, admin_key="admin") as s:
        running = [asyncio.create_task(s.complete(60, prompt=[n] * 30)) for n in range(30)]
        for number, name in enumerate(["splitwise-tuned", f"{bad}:Raises", "no-such-policy", "lmetric+threshold"]):
            answer = await s.post("/admin/policy", {"policy": name}, **KEY)
            assert answer.status == (400 if name == "no-such-policy" else 200)
            running += [asyncio.create_task(s.complete(60, prompt=[100 + number, n])) for n in range(10)]
            await asyncio.sleep(0.02)
        answers = await asyncio.gather(*running)
        prompts: list[Any] = [[n] * 30 for n in range(30)] + [[100 + k, n] for k in range(4) for n in range(10)]
        assert [answer.said for answer in answers] == [said_to(prompt, 60) for prompt in prompts]
        assert (await s.get("/admin/policy", **KEY)).json["policy"] == "lmetric+threshold"
        await s.at_rest()


@in_loop
async def test_shadow_is_listened_to_and_may_fail(bad: str) -> None:
    async with stack(admin_key="admin", policy={"name": "round-robin", "tick_s": None, "python_files": True}) as s:
        for name in ("least-kv", f"{bad}:Raises", f"{bad}:Hangs", None):
            answer = await s.post("/admin/shadow", {"policy": name}, **KEY)
            assert answer.status == 200
            for _ in range(3):
                assert (await s.complete(2)).said == said_to(PROMPT, 2)
        assert answer.json == {"policy": "round-robin", "shadow": None}


@in_loop
async def test_admin_may_not_load_python_files_unless_told(bad: str) -> None:
    async with stack(admin_key="admin") as s:
        answer = await s.post("/admin/policy", {"policy": f"{bad}:Raises"}, **KEY)
        assert answer.status == 403
        assert s.router.decider.policy_name == "round-robin"


@in_loop
async def test_nobody_finds_machines() -> None:
    async with stack() as s:
        view = s.router.books.view(0, 10, 5.0)
        view.prompt_mask[:] = False
        with pytest.raises(NoChoice):
            await s.router.decider.decide(view)


@in_loop
async def test_fallback_must_be_built_in(bad: str) -> None:
    async with stack() as s:
        with pytest.raises(SplitgymError, match="built-in heuristic"):
            Decider(s.router.decider._cluster, "lmetric", f"{bad}:Raises", 0.1, 0, Metrics())
        with pytest.raises(SplitgymError, match=r"^policy\.fallback: .*'lmetrik'.*'lmetric'"):
            Decider(s.router.decider._cluster, "lmetric", "lmetrik", 0.1, 0, Metrics())


@in_loop
async def test_a_decision_may_name_a_machine_that_it_opens() -> None:
    async with stack() as s:
        view = s.router.books.view(0, 10, 5.0)
        for decision, expected in (
            (Decision(2, 3), False),
            (Decision(2, 3, ((2, MIXED),)), True),
            (Decision(2, 3, ((2, TOKEN),)), False),
            (Decision(0, 3, ((0, TOKEN),)), False),
            (Decision(1, 0, ((0, TOKEN),)), True),
        ):
            assert _is_permitted(decision, view) is expected


@in_loop
async def test_an_oracle_is_refused() -> None:
    async with stack(admin_key="admin") as s:
        answer = await s.post("/admin/policy", {"policy": "oracle-length"}, **KEY)
        assert answer.status == 400 and "knows what no router can" in answer.json["error"]["message"]


@in_loop
async def test_propensities() -> None:
    async with stack() as s:
        for name, expected in (("lmetric", 1.0), ("random", 0.25), ("power-of-two", None)):
            await s.router.decider.swap(name)
            choice = await s.router.decider.decide(s.router.books.view(0, 10, 5.0))
            assert choice.propensity == expected

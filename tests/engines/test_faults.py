"""The fault table with real engines: no client hangs, no token is wrong, nothing stays booked or pinned."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import pytest

from splitgym.sim import books as b
from splitgym.view import DOWN, READY
from tests.engines.stack import RealStack, long_loop, random_prompt, real_stack, until
from tests.engines.vllm_engine import MOST_RUNNING, VllmEngine
from tests.router.stack import Answer

pytestmark = [pytest.mark.engines, pytest.mark.timeout(1500)]

Engines = tuple[VllmEngine, ...]
LONG_TOKENS = 6000  # several iterations of a prompt phase
OTHER_PROMPT, OTHER_TOKEN = ("mixed", "token"), ("prompt", "mixed")


def ask(s: RealStack, seed: int, length: int = 300, tokens: int = 12, stream: bool = True) -> asyncio.Task[Answer]:
    return asyncio.create_task(s.say(random_prompt(seed, length), tokens, stream))


async def at_rest(s: RealStack, within_s: float = 15.0) -> None:
    """Of the router's books; of the engines that live, too."""
    await s.at_rest()
    if all(engine.is_running for engine in s.engines):
        await s.engines_at_rest(within_s)


# --- an engine is killed -------------------------------------------------------------------------------------------


@long_loop
async def test_prompt_engine_killed_while_requests_are_queued(engines: Engines, tmp_path: Path) -> None:
    async with real_stack(engines, tmp_path, OTHER_TOKEN) as s:
        count = MOST_RUNNING + 8
        expected = [await s.alone(random_prompt(seed, LONG_TOKENS), engine=1) for seed in range(count)]
        tasks = [ask(s, seed, LONG_TOKENS) for seed in range(count)]
        while (await s.loads())[0][1] < 3:
            await asyncio.sleep(0.05)
        engines[0].kill()
        answers = await asyncio.gather(*tasks)
        assert [(answer.status, answer.said) for answer in answers] == [(200, said) for said in expected]
        assert s.retries >= 3
        await at_rest(s)


@long_loop
async def test_prompt_engine_killed_in_the_prompt_phase_and_back(engines: Engines, tmp_path: Path) -> None:
    async with real_stack(engines, tmp_path, OTHER_TOKEN) as s:
        expected = await s.alone(random_prompt(20, 300))
        engines[0].freeze_core()
        task = ask(s, 20)
        await until(lambda: s.router.books.in_flight(0) > 0)
        await asyncio.sleep(0.3)
        engines[0].kill()
        answer = await task
        assert (answer.status, answer.said) == (200, expected) and s.retries >= 1
        await until(lambda: s.router.books.lifecycle_of(0) == DOWN)
        engines[0].start()
        await asyncio.to_thread(engines[0].wait)
        await until(lambda: s.router.books.lifecycle_of(0) == READY)
        met = await s.transfers()
        assert (await ask(s, 21)).said == await s.alone(random_prompt(21, 300))
        assert await s.transfers() == met + 1
        await at_rest(s)


@long_loop
async def test_prompt_engine_killed_between_the_phases(engines: Engines, tmp_path: Path) -> None:
    """The token engine cannot fetch the cache, and serves the request by itself."""
    async with real_stack(engines, tmp_path, OTHER_TOKEN) as s:
        expected = await s.alone(random_prompt(30, 300))
        await ask(s, 31)  # they have met
        task = await between(s, 30)
        engines[0].kill()
        engines[1].resume()
        answer = await task
        assert (answer.status, answer.said) == (200, expected)
        assert s.counted("retries_total", reason="error event") == 1
        await at_rest(s)


@long_loop
async def test_token_engine_killed_between_the_phases(engines: Engines, tmp_path: Path) -> None:
    """The prompt engine keeps the cache until its lease ends, and serves the request by itself."""
    async with real_stack(engines, tmp_path, OTHER_PROMPT) as s:
        expected = await s.alone(random_prompt(40, 300))
        task = await between(s, 40)
        engines[1].kill()
        answer = await task
        assert (answer.status, answer.said) == (200, expected) and s.retries >= 1
        await at_rest(s)


@pytest.mark.parametrize("how", ["killed", "core"])
@long_loop
async def test_token_engine_dies_in_decode(engines: Engines, tmp_path: Path, how: str) -> None:
    """A stream ends with an error event; where nothing was sent, the other engine says it all."""
    async with real_stack(engines, tmp_path, OTHER_PROMPT) as s:
        tokens = 1500
        expected = await s.alone(random_prompt(50, 300), tokens)
        streamed, whole = ask(s, 50, tokens=tokens), ask(s, 50, tokens=tokens, stream=False)
        await until(lambda: s.counted("tbt_seconds_count") > 40)
        if how == "killed":
            engines[1].kill()
        else:
            engines[1].kill_core()
        broken, answer = await streamed, await whole
        assert broken.status == 200 and "[DONE]" not in broken.text
        assert broken.events[-1]["error"]["type"] == "server_error"
        said = "".join(choice["text"] for event in broken.events[:-1] for choice in event["choices"])
        assert 0 < len(said) < len(expected) and expected.startswith(said)
        assert (answer.status, answer.said) == (200, expected)
        assert s.counted("broken_streams_total") == 1
        await s.at_rest()


@long_loop
async def test_no_engine_of_a_phase_and_back(engines: Engines, tmp_path: Path) -> None:
    async with real_stack(engines, tmp_path) as s:
        expected = await s.alone(random_prompt(60, 300))
        engines[1].kill()
        assert (await ask(s, 60)).status in (502, 503)
        await until(lambda: s.router.books.lifecycle_of(1) == DOWN)
        answer = await ask(s, 60)
        assert (answer.status, answer.headers["retry-after"]) == (503, "1")
        engines[1].start()
        await asyncio.to_thread(engines[1].wait)
        await until(lambda: s.router.books.lifecycle_of(1) == READY)
        assert (await ask(s, 60)).said == expected
        await s.at_rest()


# --- an engine does not answer, or asks for patience ---------------------------------------------------------------


@long_loop
async def test_cache_is_not_fetched_after_its_lease(engines: Engines, tmp_path: Path) -> None:
    """The token engine stands still for longer than the router thinks the lease lasts."""
    lease = {"lease_s": 6.0, "lease_margin_s": 3.0, "attempts": 9}
    async with real_stack(engines, tmp_path, safety=lease) as s:
        expected = await s.alone(random_prompt(70, 300))
        task = await between(s, 70)
        await until(lambda: s.counted("retries_total", reason="lease over") >= 2)
        engines[1].resume()
        answer = await task
        assert (answer.status, answer.said) == (200, expected)
        assert s.router.books.lifecycle_of(1) == READY
        await at_rest(s)


@long_loop
async def test_silent_engine_is_left(engines: Engines, tmp_path: Path) -> None:
    async with real_stack(engines, tmp_path, OTHER_TOKEN, safety={"silence_timeout_s": 3.0}) as s:
        expected = await s.alone(random_prompt(80, 300))
        engines[0].hang()
        answer = await ask(s, 80)
        assert (answer.status, answer.said) == (200, expected)
        assert s.counted("retries_total", reason="silent") >= 1
        engines[0].resume()
        await at_rest(s)


@long_loop
async def test_engine_told_to_end(engines: Engines, tmp_path: Path) -> None:
    """SIGTERM, as of a rolling restart: what runs there is cut short, and begins anew where nothing was sent."""
    async with real_stack(engines, tmp_path, OTHER_PROMPT) as s:
        tokens = 1500
        expected = await s.alone(random_prompt(90, 300), tokens)
        task = ask(s, 90, tokens=tokens, stream=False)
        await until(lambda: s.counted("decision_seconds_count") > 0 and s.router.books.in_flight(1) > 0)
        await asyncio.sleep(0.5)
        engines[1].send(signal.SIGTERM)
        async with asyncio.timeout(30):  # not the 60 s for which an engine may be silent
            answer = await task
        assert answer.json["choices"][0]["finish_reason"] == "length"
        assert (answer.status, answer.said, s.retries) == (200, expected, 1)
        await s.at_rest()


# --- the client goes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["queued", "prompt", "between", "decode", "decode unstreamed"])
@long_loop
async def test_client_gone(engines: Engines, tmp_path: Path, stage: str) -> None:
    """Whatever its engines hold is given back sooner than a lease would end."""
    async with real_stack(engines, tmp_path) as s:
        await ask(s, 100)  # engines that have met: until then a cache may stay until its lease ends
        await at_rest(s)
        others = [ask(s, seed, LONG_TOKENS) for seed in range(110, 122)] if stage == "queued" else []
        if stage == "queued":
            while (await s.loads())[0][1] < 2:
                await asyncio.sleep(0.02)
        if stage == "prompt":
            engines[0].freeze_core()
        if stage == "between":
            task = await between(s, 101)
        else:
            task = ask(s, 101, tokens=3000, stream="unstreamed" not in stage)
        if "decode" in stage:
            seen = s.counted("tbt_seconds_count")
            await until(lambda: s.counted("tbt_seconds_count") > seen + 10)
        elif stage != "between":
            await until(lambda: s.router.books.in_flight(0) > 0)
            await asyncio.sleep(0.3)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await asyncio.sleep(0.2)
        for engine in engines:
            engine.resume()
        assert {answer.status for answer in await asyncio.gather(*others)} <= {200}
        await at_rest(s)
        assert s.counted("requests_total", status="499") == 1
        assert (await ask(s, 102)).said == await s.alone(random_prompt(102, 300))


async def between(s: RealStack, seed: int) -> asyncio.Task[Answer]:
    """A request whose prompt phase is over and whose cache cannot be fetched: the token engine's core stands still."""
    s.engines[1].freeze_core()
    task = ask(s, seed)
    await until(lambda: s.router.books.rows[1, b.DECODES] > 0)
    await asyncio.sleep(0.3)
    return task

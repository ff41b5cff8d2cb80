"""The fault table: whatever breaks, no client hangs, no token is wrong, nothing stays booked."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace

import pytest

from splitgym.emulator.handover import PeerUnreachable
from splitgym.view import DOWN, READY
from tests.router.stack import FIRST_AND_LAST, PROMPT, Stack, in_loop, said_to, stack

ONE_EACH = "prompt=1:h100-80gb,token=1:h100-80gb"
LONG = [7] * 2000  # several of them wait in the prompt engine's queue
SLOW = 1.0  # real time: a prompt of 2000 tokens takes 0.13 s, a token 0.03 s


async def until(condition, timeout_s: float = 5.0) -> None:  # type: ignore[no-untyped-def]
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.002)


@in_loop
async def test_engine_killed_while_requests_are_queued() -> None:
    async with stack(scale=SLOW) as s:
        tasks = [asyncio.create_task(s.complete(2, prompt=LONG)) for _ in range(6)]
        await until(lambda: len(s.fleet.engine("prompt-0").queue) >= 2)
        s.fleet.kill("prompt-0")
        answers = await asyncio.gather(*tasks)
        assert [(answer.status, answer.said) for answer in answers] == [(200, said_to(LONG, 2))] * 6
        assert s.retries >= 2
        await s.at_rest()


@in_loop
async def test_engine_killed_in_the_prompt_phase() -> None:
    async with stack(scale=SLOW) as s:
        task = asyncio.create_task(s.complete(2, prompt=LONG))
        await until(lambda: s.fleet.engine("prompt-0").running_prompts)
        s.fleet.kill("prompt-0")
        answer = await task
        assert (answer.status, answer.said, s.retries) == (200, said_to(LONG, 2), 1)
        await s.at_rest()


@in_loop
async def test_token_engine_killed_between_the_phases() -> None:
    """Nothing has been sent, so the request begins anew; the first cache is given up when its lease ends."""
    async with stack(scale=SLOW, engine_lease_s=1.0) as s:
        task = asyncio.create_task(s.complete(2, prompt=LONG))
        await until(lambda: s.fleet.engine("prompt-0").running_prompts)
        s.fleet.kill("token-2")
        answer = await task
        assert (answer.status, answer.said, s.retries) == (200, said_to(LONG, 2), 1)
        await s.at_rest()


@pytest.mark.parametrize("recompute", [False, True])
@in_loop
async def test_prompt_engine_killed_between_the_phases(recompute: bool) -> None:
    """The token engine cannot fetch: a 500 after 5 s, or the right tokens; the router begins anew, or need not."""
    async with stack(scale=20.0, recompute=recompute) as s:
        token = s.fleet.engine("token-2")
        token.used = token.capacity  # no room for the cache yet
        task = asyncio.create_task(s.complete(2))
        await until(lambda: token.coming)
        s.fleet.kill("prompt-0")
        token._give_back(token.capacity)
        answer = await task
        assert (answer.status, answer.said) == (200, said_to(PROMPT, 2))
        await s.at_rest()


@in_loop
async def test_engine_killed_while_it_decodes_ends_the_stream_with_an_error() -> None:
    async with stack(ONE_EACH, scale=SLOW) as s:
        task = asyncio.create_task(s.complete(50))
        await until(lambda: any(decode.done >= 3 for decode in s.fleet.engine("token-1").decodes))
        s.fleet.kill("token-1")
        answer = await task
        assert answer.status == 200  # the headers were out
        error = answer.events[-1]["error"]
        assert error["type"] == "server_error" and not answer.is_complete
        said = "".join(choice["text"] for event in answer.events[:-1] for choice in event["choices"])
        assert said and said_to(PROMPT, 50).startswith(said)
        assert s.counted("broken_streams_total") == 1 and s.counted("requests_total", status="502") == 1
        await s.at_rest()


@in_loop
async def test_engine_killed_while_it_decodes_starts_over_where_nothing_was_sent() -> None:
    async with stack(scale=SLOW) as s:
        task = asyncio.create_task(s.complete(20, stream=False))
        await until(lambda: any(decode.done >= 3 for decode in s.fleet.engine("token-2").decodes))
        s.fleet.kill("token-2")
        answer = await task
        assert (answer.status, answer.said, s.retries) == (200, said_to(PROMPT, 20), 1)
        await s.at_rest()


@pytest.mark.parametrize("stream", [True, False])
@in_loop
async def test_core_that_dies_while_it_decodes_is_no_end_of_the_answer(stream: bool) -> None:
    """Its server ends the stream with an error event and ``[DONE]``, as if it were complete."""
    async with stack(scale=SLOW) as s:
        task = asyncio.create_task(s.complete(20, stream=stream))
        await until(lambda: any(decode.done >= 3 for decode in s.fleet.engine("token-2").decodes))
        s.fleet.crash("token-2")
        answer = await task
        if stream:
            assert answer.events[-1]["error"]["type"] == "server_error" and not answer.is_complete
            assert "[DONE]" not in answer.text and s.counted("requests_total", status="502") == 1
        else:
            assert (answer.status, answer.said, s.retries) == (200, said_to(PROMPT, 20), 1)
        await s.at_rest()


@pytest.mark.parametrize(("name", "prompt"), [("token-2", PROMPT), ("prompt-0", LONG)])
@in_loop
async def test_engine_that_ends_in_silence_is_not_waited_for(name: str, prompt: list[int]) -> None:
    """It closes its port and leaves its connections open, in silence: that is given up long before other silence."""
    async with stack(scale=SLOW, safety={"silence_timeout_s": 50.0, "gone_timeout_s": 0.3}) as s:
        task = asyncio.create_task(s.complete(20, prompt=prompt, stream=False))
        engine = s.fleet.engine(name)
        await until(lambda: engine.running_prompts or any(decode.done >= 3 for decode in engine.decodes))
        s.fleet.terminate(name, in_silence=True)
        async with asyncio.timeout(10):
            answer = await task
        assert (answer.status, answer.said, s.retries) == (200, said_to(prompt, 20), 1)
        assert not s.router.engines[0].calls and not s.router.engines[2].calls
        s.fleet.kill(name)
        await s.at_rest()


@pytest.mark.parametrize("how", ["stream", "assembled", "relayed whole"])
@in_loop
async def test_engine_told_to_end_leaves_no_answer_cut_short(how: str) -> None:
    """What it leaves unfinished ends like a complete answer, but for the reason: "abort"."""
    fields = {"suffix": "x"} if how == "relayed whole" else {}
    async with stack(scale=SLOW) as s:
        task = asyncio.create_task(s.complete(20, stream=how == "stream", **fields))
        engine = s.fleet.engine("token-2")
        await until(lambda: any(decode.done >= 3 for decode in engine.decodes))
        s.fleet.terminate("token-2")
        answer = await task
        if how == "stream":
            assert answer.events[-1]["error"]["type"] == "server_error" and "[DONE]" not in answer.text
            assert "abort" not in answer.text.partition('"error"')[0]
        else:
            assert (answer.status, answer.said, s.retries) == (200, said_to(PROMPT, 20), 1)
        s.fleet.kill("token-2")
        await s.at_rest()


@in_loop
async def test_engine_that_ends_gracefully_is_waited_for() -> None:
    """It takes no more connections, and goes on with those that it has."""
    async with stack(scale=SLOW, safety={"gone_timeout_s": 0.3}) as s:
        task = asyncio.create_task(s.complete(60))
        engine = s.fleet.engine("token-2")
        await until(lambda: any(decode.done >= 3 for decode in engine.decodes))
        server = s.fleet["token-2"].server
        assert server is not None
        for listener in server.servers:
            listener.close()
        for connection in list(server.server_state.connections):
            connection.shutdown()
        await until(lambda: s.router.books.lifecycle_of(2) == DOWN)
        answer = await task
        assert (answer.said, answer.is_complete, s.retries) == (said_to(PROMPT, 60), True, 0)


@in_loop
async def test_engine_whose_streams_are_errors_is_taken_out() -> None:
    """Their status is 200, since it is sent before the engine knows."""
    async with stack(telemetry={"interval_s": 60.0}) as s:  # which would find its health in order
        api = s.fleet["token-2"].api

        async def fail(*_: object) -> None:
            raise PeerUnreachable("no")

        api._handover = SimpleNamespace(start=fail)  # type: ignore[union-attr, assignment]
        answers = await asyncio.gather(*(s.complete(4) for _ in range(8)))
        assert [answer.said for answer in answers] == [said_to(PROMPT, 4)] * 8
        assert s.counted("retries_total", reason="error event") == 4
        assert s.router.books.lifecycle_of(2) == DOWN


@in_loop
async def test_an_engine_that_could_not_fetch_serves_by_itself_where_it_is_the_last(tmp_path: Path) -> None:
    """The cache's owner is dead, which the token engine is the first to know."""
    (tmp_path / "p.py").write_text(FIRST_AND_LAST, "utf-8")
    policy = {"name": f"{tmp_path / 'p.py'}:FirstAndLast", "tick_s": None}
    machines = "prompt=1:h100-80gb,mixed=1:h100-80gb"
    async with stack(machines, scale=20.0, policy=policy, safety={"failures_to_open": 9}) as s:
        token = s.fleet.engine("mixed-1")
        token.used = token.capacity  # no room for the cache yet
        task = asyncio.create_task(s.complete(2))
        await until(lambda: token.coming)
        s.fleet.kill("prompt-0")
        token._give_back(token.capacity)
        answer = await task
        assert (answer.status, answer.said) == (200, said_to(PROMPT, 2))
        await s.at_rest()


@in_loop
async def test_all_engines_of_a_phase_down() -> None:
    async with stack(ONE_EACH) as s:
        s.fleet.kill("token-1")
        first = await s.complete(2)
        assert first.status in (502, 503)
        await until(lambda: s.router.books.lifecycle_of(1) == DOWN)
        answer = await s.complete(2)
        assert (answer.status, answer.json["error"]["code"]) == (503, "service_unavailable")
        assert answer.headers["retry-after"] == "1"
        assert (await s.get("/health")).status == 503


@in_loop
async def test_engine_back() -> None:
    async with stack(ONE_EACH) as s:
        s.fleet.kill("token-1")
        await until(lambda: s.router.books.lifecycle_of(1) == DOWN)
        await s.fleet.start("token-1")
        await until(lambda: s.router.books.lifecycle_of(1) == READY)
        assert (await s.complete(4)).said == said_to(PROMPT, 4)
        assert (await s.get("/health")).status == 200


@in_loop
async def test_slow_engine_is_waited_for() -> None:
    async with stack(ONE_EACH) as s:
        s.fleet.engine("token-1").slowness = 200.0
        answer = await s.complete(4)
        assert (answer.status, answer.said, s.retries) == (200, said_to(PROMPT, 4), 0)


@in_loop
async def test_hung_engine_is_left() -> None:
    async with stack(safety={"silence_timeout_s": 0.3}) as s:
        s.fleet.engine("prompt-0").free_to_run.clear()
        answer = await s.complete(4)
        assert (answer.status, answer.said) == (200, said_to(PROMPT, 4))
        assert s.counted("retries_total", reason="silent") == 1


@in_loop
async def test_all_engines_hung() -> None:
    async with stack(ONE_EACH, safety={"silence_timeout_s": 0.2, "failures_to_open": 9}) as s:
        s.fleet.engine("token-1").free_to_run.clear()
        answer = await s.complete(4)
        assert answer.status == 504
        s.fleet.engine("token-1").free_to_run.set()
        await s.at_rest()


@in_loop
async def test_cache_is_not_fetched_after_its_lease() -> None:
    """The token engine has no room until the lease is over: the tokens would be wrong, with status 200."""
    lease = {"lease_s": 10.0, "lease_margin_s": 5.0}
    async with stack(ONE_EACH, scale=20.0, engine_lease_s=10.0, safety=lease) as s:
        token = s.fleet.engine("token-1")
        token.used = token.capacity
        task = asyncio.create_task(s.complete(4))
        await asyncio.sleep(0.7)  # 14 emulated seconds
        assert s.counted("retries_total", reason="lease over") >= 1
        token._give_back(token.capacity)
        answer = await task
        assert (answer.status, answer.said) == (200, said_to(PROMPT, 4))
        await s.at_rest()


@in_loop
async def test_without_the_routers_deadline_the_tokens_would_be_wrong() -> None:
    """The emulated engines do behave as vLLM was seen to: the test above tests something."""
    async with stack(ONE_EACH, scale=20.0, engine_lease_s=10.0, safety={"lease_s": 1e6}) as s:
        token = s.fleet.engine("token-1")
        token.used = token.capacity
        task = asyncio.create_task(s.complete(4))
        await asyncio.sleep(0.7)
        token._give_back(token.capacity)
        answer = await task
        assert answer.status == 200 and answer.said != said_to(PROMPT, 4)


@in_loop
async def test_blind_scraper_keeps_what_it_knew() -> None:
    async with stack(ONE_EACH) as s:
        s.fleet["token-1"].api.metrics_are_blind = True
        await asyncio.sleep(0.3)
        assert s.router.telemetry.age_s(s.router.engines[1]) > 0.2 > s.router.telemetry.age_s(s.router.engines[0])
        assert not s.router.engines[1].is_down
        assert (await s.complete(4)).said == said_to(PROMPT, 4)


async def start_stream(s: Stack, tokens: int, prompt: list[int], stream: bool = True) -> asyncio.Task[object]:
    return asyncio.create_task(s.complete(tokens, prompt=prompt, stream=stream))


@pytest.mark.parametrize("stage", ["queued", "prompt", "between", "decode", "decode-unstreamed"])
@in_loop
async def test_client_gone_at(stage: str) -> None:
    async with stack(ONE_EACH, scale=SLOW, engine_lease_s=60.0) as s:
        prompt, token = s.fleet.engine("prompt-0"), s.fleet.engine("token-1")
        others = [await start_stream(s, 2, LONG) for _ in range(2)] if stage == "queued" else []
        if others:
            await until(lambda: prompt.running_prompts and prompt.queue)
        if stage == "between":
            token.used = token.capacity  # the cache cannot be fetched yet
        task = await start_stream(s, 200, PROMPT, stream=not stage.endswith("unstreamed"))
        if stage == "queued":
            await until(lambda: any(sequence.prompt_tokens == len(PROMPT) for sequence in prompt.queue))
        elif stage == "prompt":
            await until(lambda: prompt.running_prompts)
        elif stage == "between":
            await until(lambda: token.coming)
        else:
            await until(lambda: any(decode.done >= 3 for decode in token.decodes))
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await asyncio.gather(*others)
        if stage == "between":
            token._give_back(token.capacity)
        await s.at_rest()
        assert s.counted("requests_total", status="499") == 1


@in_loop
async def test_client_gone_before_the_decode_is_dispatched_frees_the_cache() -> None:
    """The token engine is called and the call aborted, which tells the prompt engine to free its memory."""
    async with stack(ONE_EACH, scale=SLOW, engine_lease_s=60.0) as s:
        post = s.router.flow._client.post
        blocked = asyncio.Event()

        def stalled(engine, path, body, headers):  # type: ignore[no-untyped-def]
            if engine.name == "token-1" and not blocked.is_set():
                blocked.set()
                return _Never()
            return post(engine, path, body, headers)

        s.router.flow._client.post = stalled
        task = await start_stream(s, 20, PROMPT)
        await blocked.wait()
        assert s.fleet.engine("prompt-0").used > 0
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await s.at_rest()


class _Never:
    async def __aenter__(self) -> None:
        await asyncio.sleep(3600)

    async def __aexit__(self, *_: object) -> None:
        pass

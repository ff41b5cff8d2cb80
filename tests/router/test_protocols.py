"""Requests served well, by every protocol, with the right tokens."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from splitgym.emulator import chat_prompt
from splitgym.emulator.api import Api
from tests.router.stack import MODEL, PROMPT, in_loop, said_to, stack


def listen(api: Api) -> list[tuple[dict[str, Any], str]]:
    """The bodies and request ids of what an engine is asked from now on."""
    understand, heard = api._understand, []

    def listening(body, request):  # type: ignore[no-untyped-def]
        heard.append((dict(body), request.headers["x-request-id"]))
        return understand(body, request)

    api._understand = listening
    return heard


@in_loop
async def test_completions_and_chats_streamed_or_not() -> None:
    async with stack() as s:
        for stream in (True, False):
            answer = await s.complete(8, stream=stream)
            assert (answer.status, answer.said) == (200, said_to(PROMPT, 8))
            body = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 5, "stream": stream}
            answer = await s.post("/v1/chat/completions", body)
            expected = said_to(chat_prompt(("user", "hi")), 5)
            if stream:
                deltas = [event["choices"][0]["delta"] for event in answer.events]
                assert "".join(delta["content"] for delta in deltas) == expected
                assert answer.is_complete
            else:
                assert answer.json["choices"][0]["message"] == {"role": "assistant", "content": expected}
                assert answer.json["object"] == "chat.completion"
                assert answer.json["usage"]["completion_tokens"] == 5
            assert len(answer.headers["x-request-id"]) == 32
        await s.at_rest()


@in_loop
async def test_vllm_prompt_engine_is_asked_as_it_must_be() -> None:
    async with stack("prompt=1:h100-80gb,token=1:h100-80gb") as s:
        at_prompt, at_token = [listen(place.api) for place in s.fleet.places]
        options = {"include_usage": True}
        answer = await s.complete(6, min_tokens=6, stream_options=options, temperature=0.5, user="somebody")
        assert answer.said == said_to(PROMPT, 6)
        (prompt, prompt_id), (token, token_id) = at_prompt[0], at_token[0]
        assert (prompt["max_tokens"], prompt["stream"]) == (1, False)
        assert not {"stream_options", "min_tokens", "min_completion_tokens"} & prompt.keys()
        keep = prompt["kv_transfer_params"]
        assert (keep["do_remote_decode"], keep["do_remote_prefill"], keep["remote_engine_id"]) == (True, False, None)
        assert (token["max_tokens"], token["stream"], token["stream_options"]) == (6, True, options)
        assert token["kv_transfer_params"]["remote_engine_id"] == s.fleet.engine("prompt-0").engine_id
        assert prompt["temperature"] == token["temperature"] == 0.5
        assert prompt_id == token_id == answer.headers["x-request-id"]


@in_loop
async def test_prompt_engine_without_params_leaves_the_prompt_to_the_token_engine() -> None:
    async with stack("prompt=1:h100-80gb,token=1:h100-80gb") as s:
        s.fleet._handover.params_of = lambda engine, lease: None  # it stopped early
        answer = await s.complete(4)
        assert (answer.said, s.retries) == (said_to(PROMPT, 4), 0)


@in_loop
async def test_requests_that_cannot_be_split_go_to_one_machine() -> None:
    async with stack("prompt=1:h100-80gb,token=1:h100-80gb") as s:
        at_prompt, at_token = [listen(place.api) for place in s.fleet.places]
        for stream in (True, False):
            answer = await s.complete(4, stream=stream, echo=True)
            assert answer.said == said_to(PROMPT, 4)
        assert at_prompt == []
        assert [(body["stream"], "kv_transfer_params" in body) for body, _ in at_token] == [
            (True, False),
            (False, False),
        ]
        await s.at_rest()


@in_loop
async def test_plain_engines() -> None:
    async with stack("mixed=3:h100-80gb", protocol="plain", policy={"name": "least-kv", "tick_s": None}) as s:
        answers = await asyncio.gather(*(s.complete(8, stream=bool(number % 2)) for number in range(12)))
        assert {answer.said for answer in answers} == {said_to(PROMPT, 8)}
        await s.at_rest()


@in_loop
async def test_sglang_engines_meet_in_a_room() -> None:
    async with stack(protocol="sglang") as s:
        answers = await asyncio.gather(*(s.complete(8, stream=bool(number % 2)) for number in range(12)))
        assert {answer.said for answer in answers} == {said_to(PROMPT, 8)}
        await s.at_rest()


@in_loop
async def test_many_at_once_on_tuned_splitwise() -> None:
    patient = {"connect_timeout_s": 30.0, "failures_to_open": 99}  # all are asked at once, on however busy a machine
    async with stack(policy={"name": "splitwise-tuned", "tick_s": 5.0}, safety=patient) as s:
        prompts = [[number] * (20 + number) for number in range(100)]
        answers = await asyncio.gather(*(s.complete(8, prompt=prompt) for prompt in prompts))
        assert [answer.said for answer in answers] == [said_to(prompt, 8) for prompt in prompts]
        assert s.counted("requests_total", status="200") == 100
        await s.at_rest()


@in_loop
async def test_models_health_and_metrics() -> None:
    async with stack() as s:
        assert [model["id"] for model in (await s.get("/v1/models")).json["data"]] == [MODEL]
        health = await s.get("/health")
        assert (health.status, health.json["serves"]) == (200, True)
        await s.complete(4)
        page = (await s.get("/metrics")).text
        for name in ("decision_seconds", "fallbacks", "in_flight", "ttft_seconds", "tbt_seconds", "role_changes"):
            assert f"splitgym_router_{name}" in page
        unknown = await s.get("/v1/nothing")
        assert (unknown.status, json.loads(unknown.text)["error"]["code"]) == (404, "not_found")

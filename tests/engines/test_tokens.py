"""Two engines say what one says, whatever is decided and however it is asked."""

from __future__ import annotations

import asyncio
from pathlib import Path

import openai
import pytest

from tests.engines.stack import GREEDY, RealStack, long_loop, random_prompt, real_stack
from tests.engines.vllm_engine import MODEL, VllmEngine
from tests.export.conftest import Bundles

pytestmark = [pytest.mark.engines, pytest.mark.timeout(1200)]

Engines = tuple[VllmEngine, ...]
LENGTHS = (1, 2, 50, 127, 128, 129, 256, 300, 1000, 2500)  # blocks have 128 tokens
HELLO = [{"role": "user", "content": "w10 w20 w30"}]


@long_loop
async def test_tokens_are_a_single_engines(engines: Engines, tmp_path: Path) -> None:
    """Half of the prompts are first seen split, half by the single engine, whose prefix cache then has them."""
    async with real_stack(engines, tmp_path) as s:
        met = await s.transfers()
        for seed, length in enumerate(LENGTHS):
            prompt = random_prompt(seed, length)
            before = await s.alone(prompt) if seed % 2 else None
            answers = [await s.say(prompt, stream=stream) for stream in (True, False)]
            expected = before or await s.alone(prompt)
            assert [answer.said for answer in answers] == [expected] * 2, length
            assert answers[0].is_complete and answers[1].json["usage"]["completion_tokens"] == 12
        assert await s.transfers() - met >= len(LENGTHS)
        await nothing_is_left(s)


@long_loop
async def test_a_trained_bundle_decides_for_many_at_once(engines: Engines, tmp_path: Path, bundle_of: Bundles) -> None:
    async with real_stack(engines, tmp_path, policy=str(bundle_of("routing"))) as s:
        prompts = [random_prompt(100 + index, 20 + 37 * index) for index in range(24)]
        expected = [await s.alone(prompt) for prompt in prompts]
        met = await s.transfers()
        answers = await asyncio.gather(*(s.say(prompt) for prompt in prompts))
        assert [answer.said for answer in answers] == expected
        assert await s.transfers() - met == len(prompts)
        assert s.retries == 0 and s.fallbacks == 0
        await nothing_is_left(s)


@long_loop
async def test_one_machine_serves_whole_what_cannot_be_split(engines: Engines, tmp_path: Path) -> None:
    async with real_stack(engines, tmp_path) as s:
        prompts = [random_prompt(200, 40), random_prompt(201, 60)]
        expected = [await s.alone(prompt, engine=1) for prompt in prompts]
        met = await s.transfers()
        answer = await s.say(prompts, stream=False)
        assert [choice["text"] for choice in answer.json["choices"]] == expected
        assert await s.transfers() == met
        await nothing_is_left(s)


@long_loop
async def test_the_openai_client(engines: Engines, tmp_path: Path) -> None:
    async with real_stack(engines, tmp_path) as s, openai.AsyncOpenAI(base_url=f"{s.url}/v1", api_key="x") as client:
        alone = openai.AsyncOpenAI(base_url=f"{s.engines[0].url}/v1", api_key="x")
        asked = {"model": MODEL, "messages": HELLO, "max_completion_tokens": 9, "temperature": 0}
        asked["extra_body"] = {"ignore_eos": True}
        expected = (await alone.chat.completions.create(**asked)).choices[0].message
        whole = (await client.chat.completions.create(**asked)).choices[0]
        assert (whole.message.role, whole.message.content) == ("assistant", expected.content)
        stream = await client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
        events = [event async for event in stream]
        assert "".join(event.choices[0].delta.content or "" for event in events if event.choices) == expected.content
        assert events[-1].usage is not None and events[-1].usage.completion_tokens == 9
        text = await client.completions.create(
            model=MODEL, prompt="w5 w6 w7", max_tokens=5, logprobs=2, extra_body=GREEDY
        )
        assert text.choices[0].text == await s.alone("w5 w6 w7", 5)
        assert text.choices[0].logprobs is not None and len(text.choices[0].logprobs.tokens or ()) == 5
        with pytest.raises(openai.BadRequestError, match="temperature"):
            await client.completions.create(model=MODEL, prompt="w5", temperature=-3)
        await alone.close()
        await nothing_is_left(s)


@long_loop
async def test_an_end_of_sequence_in_the_prompt_phase(engines: Engines, tmp_path: Path) -> None:
    """The first token ends the answer: both engines must say so."""
    async with real_stack(engines, tmp_path) as s:
        prompt = random_prompt(300, 150)
        first = (await s.alone(prompt, 1)).strip()
        answer = await s.say(prompt, stop=[first])
        assert (answer.status, answer.said.strip(), answer.is_complete) == (200, "", True)
        assert answer.events[-1]["choices"][0]["finish_reason"] == "stop"
        await nothing_is_left(s)


async def nothing_is_left(s: RealStack) -> None:
    await s.at_rest()
    await s.engines_at_rest()

"""The official client, unchanged."""

from __future__ import annotations

import openai
import pytest

from splitgym.emulator import chat_prompt
from tests.router.stack import MODEL, in_loop, said_to, stack

HELLO = [{"role": "user", "content": "Say something."}]


@in_loop
async def test_completions_and_chats() -> None:
    async with stack(client_keys=("key",)) as s, openai.AsyncOpenAI(base_url=f"{s.url}/v1", api_key="key") as client:
        whole = await client.completions.create(model=MODEL, prompt="Once", max_tokens=6)
        assert whole.choices[0].text == said_to("Once", 6)
        assert whole.usage is not None and whole.usage.completion_tokens == 6
        stream = await client.completions.create(model=MODEL, prompt="Once", max_tokens=6, stream=True)
        assert "".join([event.choices[0].text async for event in stream]) == said_to("Once", 6)

        said = said_to(chat_prompt(("user", "Say something.")), 6)
        chat = await client.chat.completions.create(model=MODEL, messages=HELLO, max_completion_tokens=6)
        assert (chat.choices[0].message.role, chat.choices[0].message.content) == ("assistant", said)
        assert chat.choices[0].finish_reason == "length"
        events = await client.chat.completions.create(
            model=MODEL, messages=HELLO, max_completion_tokens=6, stream=True, stream_options={"include_usage": True}
        )
        seen = [event async for event in events]
        assert "".join(event.choices[0].delta.content or "" for event in seen if event.choices) == said
        assert seen[-1].usage is not None and seen[-1].usage.completion_tokens == 6
        assert [model.id async for model in client.models.list()] == [MODEL]
        await s.at_rest()


@in_loop
async def test_errors_are_the_clients_own() -> None:
    async with stack(client_keys=("key",), safety={"failures_to_open": 1}) as s:
        client = openai.AsyncOpenAI(base_url=f"{s.url}/v1", api_key="key", max_retries=0)
        with pytest.raises(openai.NotFoundError, match="not served here"):
            await client.completions.create(model="other", prompt="Once")
        with pytest.raises(openai.AuthenticationError):
            await client.with_options(api_key="other").completions.create(model=MODEL, prompt="Once")
        with pytest.raises(openai.BadRequestError, match="max_tokens"):
            await client.completions.create(model=MODEL, prompt="Once", max_tokens=0)
        stream = await client.completions.create(model=MODEL, prompt="Once", max_tokens=2000, stream=True)
        with pytest.raises(openai.APIError, match="the answer is not complete"):
            async for _ in stream:
                s.fleet.kill("token-2")
                s.fleet.kill("token-3")
        with pytest.raises(openai.InternalServerError):
            await client.completions.create(model=MODEL, prompt="Once")
        await client.close()

"""SGLang's disaggregation: the same body goes to both engines at once, which meet in a room."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncGenerator
from typing import Any
from urllib.parse import urlsplit

from splitgym.router.engines import Client, Engine, EngineFailed, Refused
from splitgym.router.protocols.base import Attempt, whole_events
from splitgym.view import PROMPT

Failure = asyncio.Future[EngineFailed | Refused]


class SGLang:
    """Both at once; the token engine's answer is the client's."""

    splits = True
    unsplits = False

    async def stream(self, attempt: Attempt) -> AsyncGenerator[bytes]:
        """See `PhaseProtocol`. The prompt side is never cancelled: it ends by itself."""
        config = attempt.prompt.config
        body = attempt.ask.streamed(
            bootstrap_host=config.bootstrap_host or urlsplit(config.url).hostname,
            bootstrap_port=config.bootstrap_port,
            bootstrap_room=secrets.randbits(63),
        )
        failure: Failure = asyncio.get_running_loop().create_future()
        attempt.in_background(_prompt_side(attempt, body, failure))
        events = _token_side(attempt, body)
        first = asyncio.ensure_future(anext(events))
        try:
            waited: set[asyncio.Future[Any]] = {first, failure}
            await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
            if not first.done():
                raise failure.result()
            yield first.result()
            async for more in events:
                yield more
        finally:
            first.cancel()
            await asyncio.wait({first})
            await events.aclose()

    async def change_role(self, client: Client, engine: Engine, role: int) -> None:
        """``/pd_role_switch``, which an engine refuses unless it is idle."""
        body = json.dumps({"new_role": "prefill" if role == PROMPT else "decode"}).encode()
        answer = await client.post_json(engine, "/pd_role_switch", body, {})
        if answer.get("success") is False:
            raise EngineFailed("role refused", engine.name)


async def _token_side(attempt: Attempt, body: bytes) -> AsyncGenerator[bytes]:
    async with attempt.client.post(attempt.token, attempt.ask.path, body, attempt.headers) as answer:
        async for events in whole_events(answer, attempt.token):
            yield events


async def _prompt_side(attempt: Attempt, body: bytes, failure: Failure) -> None:
    """Read what nobody needs, so that the engine is not held up."""
    try:
        async with attempt.client.post(attempt.prompt, attempt.ask.path, body, attempt.headers) as answer:
            while await answer.content.readany():
                pass
    except (EngineFailed, Refused) as error:
        if not failure.done():
            failure.set_result(error)

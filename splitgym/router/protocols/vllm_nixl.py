"""vLLM with the NIXL connector: the prompt engine answers with parameters, the token engine fetches by them.

What is seen with vLLM 0.32 and guarded against here: parameters are used once and never after their lease, since a
cache fetched too late answers with wrong tokens and status 200; parameters without an engine's id are never sent,
since they end the token engine's process; and where parameters are not used after all, the token engine is called and
the call aborted, or the cache stays in the prompt engine's memory until its lease ends.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack
from typing import Any

from splitgym.router.engines import Client, Engine, EngineFailed, Refused
from splitgym.router.protocols.base import Attempt, before, on_one_machine, whole_events

_ASK_TO_KEEP = {
    "do_remote_decode": True,
    "do_remote_prefill": False,
    "remote_engine_id": None,
    "remote_block_ids": None,
    "remote_host": None,
    "remote_port": None,
}

_RELEASE_S = 2.0
"""How long the call that is to be aborted may take to reach the engine."""


class VllmNixl:
    """Prompt first, then tokens."""

    splits = True
    unsplits = True

    def stream(self, attempt: Attempt) -> AsyncGenerator[bytes]:
        """See `PhaseProtocol`."""
        if attempt.prompt is attempt.token or attempt.ask.one_machine:
            return on_one_machine(attempt)
        return self._split(attempt)

    async def change_role(self, client: Client, engine: Engine, role: int) -> None:
        """Every engine can do both: the router decides which does what."""

    async def _split(self, attempt: Attempt) -> AsyncGenerator[bytes]:
        ask, token, client = attempt.ask, attempt.token, attempt.client
        body = ask.prompt_phase(kv_transfer_params=_ASK_TO_KEEP)
        answer = await client.post_json(attempt.prompt, ask.path, body, attempt.headers)
        deadline_s = asyncio.get_running_loop().time() + attempt.lease_s
        attempt.prompt_ended()
        params = _usable(answer.get("kv_transfer_params"))
        if params is None:  # the token engine processes the prompt itself
            async for events in on_one_machine(attempt):
                yield events
            return
        is_fetching = False
        try:
            body = ask.streamed(kv_transfer_params=params)
            async with AsyncExitStack() as opened:
                calling = opened.enter_async_context(client.post(token, ask.path, body, attempt.headers))
                stream = await before(deadline_s, token, calling)
                is_fetching = True
                async for events in whole_events(stream, token, deadline_s):
                    yield events
        except EngineFailed:
            raise
        except (Refused, asyncio.CancelledError):
            if not is_fetching:
                attempt.in_background(_release(attempt, params))
            raise


def _usable(params: Any) -> dict[str, Any] | None:
    named = isinstance(params, dict) and params.get("remote_engine_id") and params.get("remote_block_ids")
    return params if named else None


async def _release(attempt: Attempt, params: dict[str, Any]) -> None:
    """Have the token engine take the cache, and abort that: it tells the prompt engine to free its memory."""
    body = attempt.ask.prompt_phase(stream=True, kv_transfer_params=params)
    try:
        async with (
            asyncio.timeout(_RELEASE_S),
            attempt.client.post(attempt.token, attempt.ask.path, body, attempt.headers),
        ):
            pass
    except (EngineFailed, Refused, TimeoutError):
        pass  # then its lease ends

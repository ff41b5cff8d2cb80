"""What the protocols have in common: one attempt, on the machines that were chosen, as a stream of events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import aiohttp

from splitgym.router.ask import Ask
from splitgym.router.engines import Client, Engine, EngineFailed

_Result = TypeVar("_Result")

_DONE = b"data: [DONE]"
_ERRORS = (b'data: {"error"', b'data: {"object": "error"', b'data: {"object":"error"')
"""How an error event begins. Nothing within a text does: its quotes are escaped."""
_ABORTS = (b'"finish_reason":"abort"', b'"finish_reason": "abort"')
"""What an engine that is told to end says last of a request that it leaves unfinished."""


@dataclass(frozen=True)
class Attempt:
    """One try at a request. Nothing of it is used again in the next one."""

    ask: Ask
    prompt: Engine
    token: Engine
    client: Client
    headers: dict[str, str]  # of the calls to the engines: the same request id on both
    lease_s: float  # of the clock, margin taken off
    prompt_ended: Callable[[], None]
    in_background: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]]  # runs on when the client has gone


class PhaseProtocol(Protocol):
    """How a pair of engines is made to serve one request."""

    splits: bool  # whether two engines may share a request
    unsplits: bool  # whether one engine can serve both phases

    def stream(self, attempt: Attempt) -> AsyncGenerator[bytes]:
        """Whole server-sent events, one or more at a time; ends after ``[DONE]``.

        Raises:
            EngineFailed: if an engine failed; whether events have come before is for the caller to know.
            Refused: if an engine says that the request is wrong.
        """
        ...

    async def change_role(self, client: Client, engine: Engine, role: int) -> None:
        """Tell an idle engine its new role.

        Raises:
            EngineFailed: if it does not take it.
            Refused: the same.
        """
        ...


async def on_one_machine(attempt: Attempt) -> AsyncGenerator[bytes]:
    """Both phases on the token machine."""
    ask = attempt.ask
    async with attempt.client.post(attempt.token, ask.path, ask.streamed(), attempt.headers) as answer:
        async for events in whole_events(answer, attempt.token):
            yield events


async def whole_events(
    answer: aiohttp.ClientResponse, engine: Engine, first_by_s: float | None = None
) -> AsyncGenerator[bytes]:
    """The events of an answer, never a part of one.

    vLLM answers a stream with status 200 before it knows whether it can serve it, ends one that fails with an error
    event and ``[DONE]``, and one that it leaves unfinished because it is told to end with the reason "abort" and
    ``[DONE]``: only other events show that the engine works.

    Args:
        answer: whose content.
        engine: whose answer.
        first_by_s: the event loop's time by which the first must have come.

    Raises:
        EngineFailed: if the first is late, one is an error or an abort, or the last is not ``[DONE]``.
    """
    held = b""
    is_first = True
    done = False
    content = answer.content
    while True:
        if is_first and first_by_s is not None:
            chunk = await before(first_by_s, engine, content.readany())
        else:
            chunk = await content.readany()
        if not chunk:
            break
        if held or not chunk.endswith(b"\n\n"):
            held, chunk = _cut(held + chunk)
            if not chunk:
                continue
        error_at = _error_at(chunk)
        if error_at >= 0:
            if error_at:
                yield chunk[:error_at]
            raise EngineFailed("aborted" if is_aborted(chunk) else "error event", engine.name)
        if is_first:
            is_first = False
            engine.succeeded()
        done = done or _DONE in chunk
        yield chunk
    if not done:
        raise EngineFailed("broken off", engine.name)


async def before(deadline_s: float, engine: Engine, work: Awaitable[_Result]) -> _Result:
    """The result of ``work``, which must be there by the event loop's time ``deadline_s``.

    Raises:
        EngineFailed: if it is not.
    """
    try:
        async with asyncio.timeout_at(deadline_s) as lease:
            return await work
    except TimeoutError:
        if not lease.expired():  # one of the work's own
            raise
        raise EngineFailed("lease over", engine.name, is_ill=False) from None


def _error_at(events: bytes) -> int:
    """Where the first event begins that says that an answer is not complete, or -1."""
    if b'"error"' not in events and b'"abort"' not in events:  # as good as always
        return -1
    marked = [at for mark in _ERRORS + _ABORTS if (at := events.find(mark)) >= 0]
    return events.rfind(b"data: ", 0, min(marked) + len(b"data: ")) if marked else -1


def is_aborted(answer: bytes) -> bool:
    """Whether an answer in one piece is not complete."""
    return any(mark in answer for mark in _ABORTS)


def _cut(text: bytes) -> tuple[bytes, bytes]:
    """What comes after the last whole event, and what before."""
    end = text.rfind(b"\n\n") + 2
    return (text[end:], text[:end]) if end > 1 else (text, b"")

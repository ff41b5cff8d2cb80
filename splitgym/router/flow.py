"""A request's way: decide, book, try, start over while nothing has been sent, settle."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from contextlib import aclosing
from typing import Any

from splitgym.router.ask import Ask, BadRequest
from splitgym.router.assemble import Assembly
from splitgym.router.books import Booking, RouterBooks
from splitgym.router.config import RouterConfig
from splitgym.router.decide import Choice, Decider, NoChoice, copied
from splitgym.router.decision_log import DecisionLog, Record
from splitgym.router.engines import Client, Engine, EngineFailed
from splitgym.router.metrics import Metrics
from splitgym.router.protocols import Attempt, PhaseProtocol
from splitgym.router.protocols.base import is_aborted
from splitgym.router.roles import Roles
from splitgym.view import ARRIVAL, READY, ClusterView, Decision

_NOT_ANSWERED = 599


class Flow:
    """Serves asks.

    Args:
        config: the limits of patience.
        books: what is assigned where.
        engines: whom to ask, in the order of the machines.
        client: how.
        protocol: in which words.
        decider: who decides.
        roles: who carries out role changes.
        metrics: what is counted.
        log: where decisions go.
        clock: seconds, by which tokens are timed.
    """

    def __init__(
        self,
        config: RouterConfig,
        books: RouterBooks,
        engines: tuple[Engine, ...],
        client: Client,
        protocol: PhaseProtocol,
        decider: Decider,
        roles: Roles,
        metrics: Metrics,
        log: DecisionLog | None,
        clock: Callable[[], float],
    ) -> None:
        self._config = config
        self._books = books
        self._engines = engines
        self._client = client
        self._protocol = protocol
        self._decider = decider
        self._roles = roles
        self._metrics = metrics
        self._log = log
        self._clock = clock
        self._deciding = asyncio.Lock()
        self._background: set[asyncio.Task[None]] = set()

    # --- decisions ----------------------------------------------------------------------------------------------

    async def tick(self) -> None:
        """Ask for role changes."""
        async with self._deciding:
            view = copied(self._books.tick_view())
            choice = await self._decider.decide(view)
            if self._log is not None:
                self._log.close(self._log.open(view, choice))
        self._change_roles(choice)

    async def _assign(self, ask: Ask, failed: list[int]) -> tuple[Booking, Record | None]:
        """Decide and book, one request after the other: each sees what the last was given."""
        async with self._deciding:
            view = copied(self._books.view(ARRIVAL, ask.prompt_tokens, ask.predicted_output_tokens))
            self._narrow(view, failed)
            if not view.prompt_mask.any() or not view.token_mask.any():
                raise NoChoice
            choice = await self._decider.decide(view)
            self._change_roles(choice)
            prompt, token = self._carried_out(ask, choice.decision)
            record = None if self._log is None else self._log.open(view, choice)
            booking = self._books.assign(prompt, token, ask.prompt_tokens, ask.predicted_output_tokens)
        return booking, record

    def _narrow(self, view: ClusterView, failed: list[int]) -> None:
        """Take out engines that have failed this request, and those that a change of role makes useless now.

        Where all have failed, only the last is taken out: an engine that could not fetch a cache may work by itself.
        """
        for mask in (view.prompt_mask, view.token_mask):
            for excluded in (failed, failed[-1:]):
                others = mask.copy()
                others[excluded] = False
                if others.any():
                    mask[:] = others
                    break
            if not self._protocol.unsplits:
                for machine in range(len(mask)):
                    mask[machine] &= self._books.lifecycle_of(machine) == READY

    def _carried_out(self, ask: Ask, decision: Decision) -> tuple[int, int]:
        """The machines that take part: one where the protocol or the request cannot be split."""
        prompt, token = int(decision.prompt_machine), int(decision.token_machine)
        if not self._protocol.splits:
            return prompt, prompt
        return (token, token) if ask.one_machine and self._protocol.unsplits else (prompt, token)

    def _change_roles(self, choice: Choice) -> None:
        for machine, role in choice.decision.role_changes:
            self._roles.change(int(machine), int(role))

    # --- a request ----------------------------------------------------------------------------------------------

    async def events(self, ask: Ask, request_id: str, authorization: str | None) -> AsyncGenerator[bytes]:
        """The answer, as whole events, or as one piece where it is relayed whole.

        An empty part says that what came before is void; it comes only where the client does not see events.

        Raises:
            BadRequest: 503 if no engine may be asked; 502 or 504 if all attempts failed.
            EngineFailed: if one fails when events have been handed out.
            Refused: if an engine says that the request is wrong.
        """
        headers = {"X-Request-Id": request_id}
        if authorization is not None:
            headers["Authorization"] = authorization
        self._books.arrived(ask.prompt_tokens, ask.predicted_output_tokens)
        arrived_s = self._clock()
        failed: list[int] = []  # engines, the last one last
        reason = "no engine is up"
        for number in range(self._config.safety.attempts):
            try:
                booking, record = await self._assign(ask, failed)
            except NoChoice:
                raise BadRequest(503, f"{reason}; try again later", "service_unavailable") from None
            times = _Times(arrived_s)
            status, failure = 499, ""
            try:
                attempt = self._attempt(ask, booking, headers if not number else _of_attempt(headers, number))
                parts = self._whole(attempt) if ask.is_relayed_whole else self._protocol.stream(attempt)
                async with aclosing(parts) as stream:
                    async for part in stream:
                        self._saw(part, booking, times)
                        yield part
                status = 200
                return
            except EngineFailed as error:
                status, failure = _NOT_ANSWERED, error.kind
                reason = str(error)
                if times.parts and ask.streams:
                    raise
                yield b""
                self._metrics.retries.labels(error.kind).inc()
                failed += [engine.index for engine in self._engines if engine.name == error.engine]
            finally:
                self._books.settle(booking)
                self._close(record, request_id, number, ask, status, failure, times)
        raise BadRequest(504 if "silent" in reason else 502, f"{reason}; all attempts failed", "bad_gateway")

    def _attempt(self, ask: Ask, booking: Booking, headers: dict[str, str]) -> Attempt:
        safety, scale = self._config.safety, self._config.time_scale
        return Attempt(
            ask=ask,
            prompt=self._engines[booking.prompt_machine],
            token=self._engines[booking.token_machine],
            client=self._client,
            headers=headers,
            lease_s=(safety.lease_s - safety.lease_margin_s) / scale,
            prompt_ended=lambda: self._books.prompt_ended(booking),
            in_background=self._in_background,
        )

    async def _whole(self, attempt: Attempt) -> AsyncGenerator[bytes]:
        async with attempt.client.post(
            attempt.token, attempt.ask.path, attempt.ask.as_asked(), attempt.headers
        ) as answer:
            body = await answer.read()
            if is_aborted(body):
                raise EngineFailed("aborted", attempt.token.name)
            yield body

    def _saw(self, part: bytes, booking: Booking, times: _Times) -> None:
        now_s = self._clock()
        count = _tokens_in(part)
        if not times.parts:
            times.first_s = now_s
            self._metrics.ttft_s.observe(now_s - times.arrived_s)
            count = max(count, 1)
        elif count:
            self._metrics.tbt_s.observe((now_s - times.last_s) / count)
        times.last_s = now_s
        times.parts += 1
        times.tokens += count
        self._books.tokens_came(booking, count)

    def _close(
        self, record: Record | None, request_id: str, number: int, ask: Ask, status: int, failure: str, times: _Times
    ) -> None:
        ended_s = self._clock()
        if status == 200:
            self._metrics.e2e_s.observe(ended_s - times.arrived_s)
        if record is None or self._log is None:
            return
        record.request_id, record.attempt = request_id, number
        record.predicted_output_tokens = ask.predicted_output_tokens
        record.status, record.failure = status, failure
        record.ttft_s = times.first_s - times.arrived_s
        record.e2e_s = ended_s - times.arrived_s
        record.output_tokens = times.tokens
        self._log.close(record)

    # --- what runs on -------------------------------------------------------------------------------------------

    def _in_background(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        return task

    async def close(self) -> None:
        """Wait for what runs on."""
        await asyncio.gather(*self._background, return_exceptions=True)


class _Times:
    """When an attempt's tokens came, on the process's clock."""

    def __init__(self, arrived_s: float) -> None:
        self.arrived_s = arrived_s
        self.first_s = self.last_s = float("nan")
        self.parts = 0
        self.tokens = 0


def _of_attempt(headers: dict[str, str], number: int) -> dict[str, str]:
    """Another request id: an engine may not be done yet with the first attempt's."""
    return headers | {"X-Request-Id": f"{headers['X-Request-Id']}-{number}"}


def _tokens_in(part: bytes) -> int:
    """Events with a choice that is not a chat's opening one. Within a text, a quote is escaped: none is miscounted."""
    empty = part.count(b'"choices":[]') + part.count(b'"choices": []')
    opening = part.count(b'"delta":{"role"') + part.count(b'"delta": {"role"')
    return part.count(b'"choices":') - empty - opening


async def assembled(events: AsyncIterator[bytes], ask: Ask) -> bytes:
    """One answer of events, or the piece that there is.

    Raises:
        BadRequest: 502 if an event is not what it should be.
    """
    if ask.is_relayed_whole:
        return b"".join([part async for part in events])
    assembly = Assembly(ask.is_chat)
    try:
        async for part in events:
            if part:
                assembly.add(part)
            else:
                assembly = Assembly(ask.is_chat)
    except (ValueError, AttributeError, TypeError):
        raise BadRequest(502, "an engine's answer could not be understood", "bad_gateway") from None
    return assembly.answer()

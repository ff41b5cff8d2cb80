"""One emulated engine: continuous batching in iterations that take as long as the latency law says.

The discipline is the simulator's `splitwise` (docs/simulator.md): decodes passed over too often, prompts first come
first served, the other decodes. A sequence whose prompt was processed elsewhere joins once its KV-cache has been
sent, and gets all its tokens here, as with vLLM's NIXL connector.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import uuid
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from splitgym.emulator.leases import Lease, Leases
from splitgym.hardware import HardwareProfile
from splitgym.hardware.latency import iteration_s
from splitgym.sim.cluster import Batching

MOST_LAG_S = 0.05
"""An iteration that ends late lets the next begin when it should have ended, up to this much ago."""

_numbers = itertools.count()


@dataclass(eq=False)
class Sequence:
    """A request inside an engine. ``tokens`` gets the index of each output token."""

    prompt_tokens: int
    output_tokens: int
    digest: int
    keep_cache: bool = False  # of its prompt phase, for another machine to fetch
    tokens: asyncio.Queue[int] = field(default_factory=asyncio.Queue)
    number: int = field(default_factory=lambda: next(_numbers))
    lease: Lease | None = None  # what its cache is kept under, once its prompt phase is over
    done: int = 0  # output tokens so far
    reserved: int = 0  # KV tokens
    passed_over: int = 0
    aborted: bool = False

    @property
    def need(self) -> int:
        """KV tokens it reserves."""
        return self.prompt_tokens + (1 if self.keep_cache else self.output_tokens)


class Engine:
    """One machine.

    Args:
        name: for people.
        profile: whose latency law times the iterations.
        batching: limits of a batch.
        time_scale: emulated seconds in one second of the clock.
        lease_s: how long caches are kept for another machine, in emulated seconds.
    """

    def __init__(
        self,
        name: str,
        profile: HardwareProfile,
        batching: Batching,
        time_scale: float = 1.0,
        lease_s: float = 30.0,
    ) -> None:
        self.name = name
        self.engine_id = uuid.uuid4().hex
        self.profile = profile
        self.time_scale = time_scale
        self.capacity = profile.kv_capacity_tokens
        self.slowness = 1.0  # a straggler's factor
        self.free_to_run = asyncio.Event()
        self.free_to_run.set()
        self.used = 0  # KV tokens reserved
        self.leases = Leases(lease_s / time_scale, self._give_back)
        self.queue: deque[Sequence] = deque()
        self.decodes: list[Sequence] = []  # in order of arrival
        self.running_prompts: list[Sequence] = []
        self.coming = 0  # sequences whose cache is on its way
        self._batching = batching
        self._law = profile.law.packed()
        self._wake = asyncio.Event()
        self._duration_s([], [])  # loads what is compiled
        self._room: deque[tuple[Sequence, asyncio.Future[None]]] = deque()  # who waits for memory for a cache

    # --- what the interface calls -------------------------------------------------------------------------------

    def submit(self, sequence: Sequence) -> None:
        """Take in a request whose prompt is to be processed here.

        Raises:
            ValueError: if it can never fit.
        """
        self.check_fits(sequence)
        self.queue.append(sequence)
        self._wake.set()

    async def fetch(self, sequence: Sequence, read: Callable[[], Awaitable[int | None]]) -> None:
        """Take in a request whose cache is another machine's: room first, then ``read`` it, then decode.

        Args:
            sequence: the request.
            read: returns, when the cache is here, what its tokens follow from; ``None`` if its prompt is to be
                processed here.

        Raises:
            ValueError: if it can never fit.
        """
        self.check_fits(sequence)
        self.coming += 1
        try:
            await self._reserve(sequence)
            digest = await read()
        except BaseException:
            self.abort(sequence)
            raise
        finally:
            self.coming -= 1
        if digest is None:
            self._free(sequence)
            self.submit(sequence)
            return
        sequence.digest = digest
        self._join(sequence)

    def abort(self, sequence: Sequence) -> None:
        """The client has gone."""
        if sequence.aborted:
            return
        sequence.aborted = True
        with contextlib.suppress(ValueError):
            self.queue.remove(sequence)
        with contextlib.suppress(ValueError):
            self.decodes.remove(sequence)
        if sequence not in self.running_prompts and sequence.lease is None:
            self._free(sequence)

    @property
    def is_idle(self) -> bool:
        """Whether nothing is in it, caches kept for others included."""
        return not (self.queue or self.decodes or self.running_prompts or self.coming or self.used)

    @property
    def kv_held(self) -> int:
        """KV tokens in use, reservations not counted."""
        decoding = sum(sequence.prompt_tokens + sequence.done for sequence in self.decodes)
        prompts = sum(sequence.prompt_tokens + 1 for sequence in self.running_prompts)
        return decoding + prompts + self.leases.tokens

    # --- the machine --------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Work, for ever."""
        loop = asyncio.get_running_loop()
        ended_s = loop.time()
        while True:
            prompts, decodes = self._form_batch()
            if not prompts and not decodes:
                self._wake.clear()
                await self._wake.wait()
                ended_s = loop.time()
                continue
            start_s = max(ended_s, loop.time() - MOST_LAG_S)
            ended_s = start_s + self._duration_s(prompts, decodes) * self.slowness / self.time_scale
            await asyncio.sleep(max(ended_s - loop.time(), 0.0))
            await self.free_to_run.wait()
            self._hand_out(prompts, decodes)

    def _form_batch(self) -> tuple[list[Sequence], list[Sequence]]:
        limits = self._batching
        forced = [sequence for sequence in self.decodes if sequence.passed_over >= limits.max_preemptions]
        forced = forced[: min(limits.max_batch_size, limits.max_batch_tokens)]
        prompts: list[Sequence] = []
        tokens = len(forced)
        while self.queue and len(forced) + len(prompts) < limits.max_batch_size:
            first = self.queue[0]
            if (forced or prompts) and tokens + first.prompt_tokens > limits.max_batch_tokens:
                break
            if first.need > self.capacity - self.used:
                break
            self.queue.popleft()
            first.reserved = first.need
            self.used += first.need
            prompts.append(first)
            tokens += first.prompt_tokens
        self.running_prompts = prompts
        size = len(forced) + len(prompts)
        room = max(min(limits.max_batch_size - size, limits.max_batch_tokens - tokens), 0)
        if len(self.decodes) - len(forced) <= room:
            served = list(self.decodes)
        else:
            others = [sequence for sequence in self.decodes if sequence.passed_over < limits.max_preemptions]
            served = forced + others[:room]
            for sequence in others[room:]:
                sequence.passed_over += 1
        for sequence in served:
            sequence.passed_over = 0
        return prompts, served

    def _duration_s(self, prompts: list[Sequence], decodes: list[Sequence]) -> float:
        """Emulated seconds of an iteration."""
        lengths = [sequence.prompt_tokens for sequence in prompts]
        attention = sum(length * length for length in lengths)
        context = sum(sequence.prompt_tokens + sequence.done for sequence in decodes)
        return float(iteration_s(self._law, sum(lengths), len(lengths), attention, 0, len(decodes), context))

    def _hand_out(self, prompts: list[Sequence], decodes: list[Sequence]) -> None:
        """A token for each decode, then the first tokens of the prompts."""
        self.running_prompts = []
        for sequence in decodes:
            if not sequence.aborted:
                self._give_token(sequence)
        self.decodes = [sequence for sequence in self.decodes if sequence.done < sequence.output_tokens]
        for sequence in prompts:
            if sequence.aborted:
                self._free(sequence)
                continue
            if sequence.keep_cache:
                sequence.lease = self.leases.grant(sequence.reserved, sequence.prompt_tokens, sequence.digest)
                sequence.tokens.put_nowait(0)
                continue
            self._give_token(sequence)
            if sequence.done < sequence.output_tokens:
                self._join(sequence)

    def _give_token(self, sequence: Sequence) -> None:
        sequence.tokens.put_nowait(sequence.done)
        sequence.done += 1
        if sequence.done == sequence.output_tokens:
            self._free(sequence)

    def _join(self, sequence: Sequence) -> None:
        self.decodes.append(sequence)
        self.decodes.sort(key=lambda other: other.number)
        self._wake.set()

    # --- memory -------------------------------------------------------------------------------------------------

    def check_fits(self, sequence: Sequence) -> None:
        """Refuse what can never be served.

        Raises:
            ValueError: then.
        """
        if sequence.need > self.capacity:
            raise ValueError(f"{sequence.need} tokens; this model's maximum context length is {self.capacity}")

    async def _reserve(self, sequence: Sequence) -> None:
        free: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._room.append((sequence, free))
        self._give_back(0)
        await free

    def _free(self, sequence: Sequence) -> None:
        tokens, sequence.reserved = sequence.reserved, 0
        self._give_back(tokens)

    def _give_back(self, tokens: int) -> None:
        self.used -= tokens
        while self._room and (self._room[0][1].done() or self._room[0][0].need <= self.capacity - self.used):
            sequence, free = self._room.popleft()
            if not free.done():
                sequence.reserved = sequence.need
                self.used += sequence.need
                free.set_result(None)
        self._wake.set()

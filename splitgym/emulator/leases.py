"""KV-caches kept for another machine to fetch, each under a lease, as with vLLM's NIXL connector."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from dataclasses import dataclass

from splitgym.emulator.text import wrong


@dataclass(frozen=True)
class Lease:
    """A cache that is kept."""

    number: int
    kv_tokens: int  # kept
    prompt_tokens: int
    digest: int  # what its tokens follow from


class Leases:
    """The caches of one machine.

    Args:
        lease_s: how long one is kept, in seconds of the clock.
        give_back: called with the tokens of a cache that is given up.
    """

    def __init__(self, lease_s: float, give_back: Callable[[int], None]) -> None:
        self._lease_s = lease_s
        self._give_back = give_back
        self._kept: dict[int, tuple[Lease, asyncio.TimerHandle]] = {}
        self._numbers = itertools.count(1)

    @property
    def tokens(self) -> int:
        """KV tokens kept."""
        return sum(lease.kv_tokens for lease, _ in self._kept.values())

    def grant(self, kv_tokens: int, prompt_tokens: int, digest: int) -> Lease:
        """Keep a cache until it is fetched, or the lease ends."""
        lease = Lease(next(self._numbers), kv_tokens, prompt_tokens, digest)
        timer = asyncio.get_running_loop().call_later(self._lease_s, self.release, lease.number)
        self._kept[lease.number] = (lease, timer)
        return lease

    def read(self, number: int) -> tuple[int, int]:
        """What the tokens of a fetched cache follow from, and its prompt tokens.

        A cache whose lease has ended, or that was fetched before, is another request's by now: its tokens are wrong,
        and nothing says so.
        """
        if number not in self._kept:
            return wrong(number), 1
        lease, _ = self._kept[number]
        return lease.digest, lease.prompt_tokens

    def release(self, number: int) -> None:
        """Give a cache up; nothing happens where that is done already."""
        kept = self._kept.pop(number, None)
        if kept is not None:
            lease, timer = kept
            timer.cancel()
            self._give_back(lease.kv_tokens)

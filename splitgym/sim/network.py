"""The network `shared`: transfers share the links at both ends equally, at rates that change as others come and go.

All transfers from one machine to another have the same rate, so it is kept for such pairs. What a transfer that began
with the pair would have sent grows alike for all of them; each ends when that reaches its goal. When one starts or
ends, only pairs at its two ends change their rate.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from heapq import heapify, heappop, heappush

import simpy

from splitgym.sim.clock import TRANSFER_END, Clock


@dataclass(slots=True, eq=False)
class _Pair:
    source: int
    destination: int
    since_s: float
    sent_bytes: float = 0.0  # by then, of a transfer that began with the pair
    bytes_per_s: float = 0.0
    end_s: float = 0.0  # of its first transfer to end
    goals: list[tuple[float, int]] = field(default_factory=list)  # a heap: a transfer ends when so much is sent

    def send(self, now_s: float) -> None:
        """Up to now."""
        self.sent_bytes += self.bytes_per_s * (now_s - self.since_s)
        self.since_s = now_s


class SharedNetwork:
    """Transfers on their way; a rate is the lesser of what sender and receiver have for each of theirs.

    Args:
        clock: of the run.
        link_bytes_per_s: of each machine.
    """

    def __init__(self, clock: Clock, link_bytes_per_s: Sequence[float]) -> None:
        self._clock = clock
        self._link_bytes_per_s = link_bytes_per_s
        self._pairs: dict[tuple[int, int], _Pair] = {}
        self._arrive: dict[int, Callable[[], None]] = {}  # what each transfer's end does
        self._sent = [0] * len(link_bytes_per_s)  # transfers a machine sends
        self._received = [0] * len(link_bytes_per_s)
        self._due: simpy.Event | None = None  # the first transfer's end

    def begin(self, request: int, source: int, destination: int, size_bytes: float, arrive: Callable[[], None]) -> None:
        """Send ``size_bytes`` from now on and call ``arrive`` when they are there."""
        now_s = self._clock.now
        pair = self._pairs.setdefault((source, destination), _Pair(source, destination, now_s))
        pair.send(now_s)
        heappush(pair.goals, (pair.sent_bytes + size_bytes, request))
        self._arrive[request] = arrive
        self._share(source, destination, 1)

    def withdraw(self, request: int) -> None:
        """Send no more of it."""
        pair = next(pair for pair in self._pairs.values() if any(goal[1] == request for goal in pair.goals))
        pair.goals = [goal for goal in pair.goals if goal[1] != request]
        heapify(pair.goals)
        if not pair.goals:
            del self._pairs[pair.source, pair.destination]
        del self._arrive[request]
        self._share(pair.source, pair.destination, -1)  # which changes this pair's rate in any case

    def _end(self, pair: _Pair, _: simpy.Event) -> None:
        self._due = None
        pair.sent_bytes, request = heappop(pair.goals)
        pair.since_s = self._clock.now
        if not pair.goals:
            del self._pairs[pair.source, pair.destination]
        self._share(pair.source, pair.destination, -1)
        self._arrive.pop(request)()

    def _share(self, source: int, destination: int, change: int) -> None:
        """One more or less is sent between these two: settle the pairs whose rate that changes."""
        now_s = self._clock.now
        self._sent[source] += change
        self._received[destination] += change
        for pair in self._pairs.values():
            bytes_per_s = min(
                self._link_bytes_per_s[pair.source] / self._sent[pair.source],
                self._link_bytes_per_s[pair.destination] / self._received[pair.destination],
            )
            if bytes_per_s != pair.bytes_per_s:
                pair.send(now_s)
                pair.bytes_per_s = bytes_per_s
                pair.end_s = now_s + max(pair.goals[0][0] - pair.sent_bytes, 0.0) / bytes_per_s
        self._plan()

    def _plan(self) -> None:
        if self._due is not None:
            self._clock.cancel(self._due)
            self._due = None
        if self._pairs:
            pair = min(self._pairs.values(), key=lambda pair: (pair.end_s, pair.destination, pair.goals[0][1]))
            self._due = self._clock.at(pair.end_s, TRANSFER_END, pair.destination, pair.goals[0][1])
            self._due.callbacks.append(partial(self._end, pair))

"""The network `shared`: transfers share the links at both ends equally, at rates that change as others come and go."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import simpy

from splitgym.sim.clock import TRANSFER_END, Clock


@dataclass(slots=True, eq=False)
class _Flow:
    source: int
    destination: int
    left_bytes: float
    since_s: float  # when that much was left
    arrive: Callable[[], None]
    bytes_per_s: float = 0.0
    due: simpy.Event | None = None


class SharedNetwork:
    """Transfers on their way; a rate is the lesser of what sender and receiver have for each of theirs.

    Args:
        clock: of the run.
        link_bytes_per_s: of each machine.
    """

    def __init__(self, clock: Clock, link_bytes_per_s: Sequence[float]) -> None:
        self._clock = clock
        self._link_bytes_per_s = link_bytes_per_s
        self._flows: dict[int, _Flow] = {}
        self._sent = [0] * len(link_bytes_per_s)  # transfers a machine sends
        self._received = [0] * len(link_bytes_per_s)

    def begin(self, request: int, source: int, destination: int, size_bytes: float, arrive: Callable[[], None]) -> None:
        """Send ``size_bytes`` from now on and call ``arrive`` when they are there."""
        self._flows[request] = _Flow(source, destination, size_bytes, self._clock.now, arrive)
        self._sent[source] += 1
        self._received[destination] += 1
        self._share(source, destination)

    def _end(self, request: int, _: simpy.Event) -> None:
        flow = self._flows.pop(request)
        self._sent[flow.source] -= 1
        self._received[flow.destination] -= 1
        self._share(flow.source, flow.destination)
        flow.arrive()

    def _share(self, source: int, destination: int) -> None:
        """Settle the transfers whose rate changes with what these two send and receive, in order of requests."""
        now_s = self._clock.now
        for request in sorted(self._flows):
            flow = self._flows[request]
            if flow.source != source and flow.destination != destination:
                continue
            bytes_per_s = min(
                self._link_bytes_per_s[flow.source] / self._sent[flow.source],
                self._link_bytes_per_s[flow.destination] / self._received[flow.destination],
            )
            if bytes_per_s == flow.bytes_per_s:
                continue
            flow.left_bytes = max(flow.left_bytes - flow.bytes_per_s * (now_s - flow.since_s), 0.0)
            flow.since_s = now_s
            flow.bytes_per_s = bytes_per_s
            if flow.due is not None:
                self._clock.cancel(flow.due)
            end_s = now_s + flow.left_bytes / bytes_per_s
            flow.due = self._clock.at(end_s, TRANSFER_END, flow.destination, request)
            flow.due.callbacks.append(partial(self._end, request))

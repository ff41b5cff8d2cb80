"""SimPy's clock with events at absolute times, in the contract's order: time, kind, machine, request, sequence."""

from __future__ import annotations

from collections.abc import Callable
from heapq import heapify, heappush

import simpy
from simpy.events import EventPriority

# Kinds, in the order in which they happen at one instant. Handlers only mark machines runnable; batches form in
# MACHINE_START, the last kind, so that simultaneous arrivals share a batch.
ITERATION_END, TRANSFER_END, LEASE_END, ROLE_READY, FAULT, ARRIVAL, CONTROL_TICK, MACHINE_START = range(8)


class Clock(simpy.Environment):
    """A SimPy environment whose events are put at absolute times.

    SimPy adds a delay to the present, which misses the intended time by a rounding, and orders what happens at one
    instant by its own priorities. Here the priority is the contract's key in one integer (SimPy's own events, that
    start a process, have 0 or 1 and so come first).
    """

    def at(self, time_s: float, kind: int, machine: int = 0, request: int = 0) -> simpy.Event:
        """An event at ``time_s``."""
        event = simpy.Event(self)
        self.trigger(event, time_s, kind, machine, request)
        return event

    def call(
        self, action: Callable[[], None], time_s: float, kind: int, machine: int = 0, request: int = 0
    ) -> simpy.Event:
        """Have ``action`` done at ``time_s``."""
        event = self.at(time_s, kind, machine, request)
        event.callbacks.append(lambda _: action())
        return event

    def holds_besides(self, event: simpy.Event | None) -> bool:
        """Whether anything but ``event`` is to happen; that a process is over is nothing."""
        return any(entry[3] is not event and not isinstance(entry[3], simpy.Process) for entry in self._queue)

    def cancel(self, event: simpy.Event) -> None:
        """Let ``event`` not happen."""
        self._queue[:] = [entry for entry in self._queue if entry[3] is not event]
        heapify(self._queue)

    def trigger(self, event: simpy.Event, time_s: float, kind: int, machine: int = 0, request: int = 0) -> None:
        """Let ``event`` happen at ``time_s``."""
        event._ok = True
        event._value = None
        priority = EventPriority(((kind << 20 | machine) << 32 | request) + 2)
        heappush(self._queue, (time_s, priority, next(self._eid), event))

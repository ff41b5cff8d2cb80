"""What happens next: binary heaps over arrays of TIMED records, and tournaments of the machines.

Keys of events are the contract's (kind, machine, request).
"""

from __future__ import annotations

import numpy as np

from splitgym.jit import inner_njit
from splitgym.sim.clock import ARRIVAL, CONTROL_TICK, ITERATION_END, LEASE_END, MACHINE_START, TRANSFER_END
from splitgym.sim.compiled.state import NEVER_S, Records, State


@inner_njit
def event_key(kind: int, machine: int, request: int) -> int:
    """What orders events of one instant."""
    return (kind << 20 | machine) << 32 | request


@inner_njit
def key_kind(key: int) -> int:
    """The kind in a key."""
    return key >> 52


@inner_njit
def key_machine(key: int) -> int:
    """The machine in a key."""
    return (key >> 32) & 0xFFFFF


@inner_njit
def key_request(key: int) -> int:
    """The request in a key."""
    return key & 0xFFFFFFFF


@inner_njit
def push(heap: Records, count: int, time_s: float, key: int) -> None:
    """Add an entry to the ``count`` of ``heap``."""
    place = count
    while place > 0:
        parent = (place - 1) >> 1
        above_s, above_key = heap[parent].time_s, heap[parent].key
        if above_s < time_s or (above_s == time_s and above_key < key):
            break
        heap[place].time_s = above_s
        heap[place].key = above_key
        place = parent
    heap[place].time_s = time_s
    heap[place].key = key


@inner_njit
def pop(heap: Records, count: int) -> None:
    """Take the first entry away from the ``count`` of ``heap``."""
    last = count - 1
    time_s, key = heap[last].time_s, heap[last].key
    place = 0
    while True:
        child = 2 * place + 1
        if child >= last:
            break
        child_s, child_key = heap[child].time_s, heap[child].key
        if child + 1 < last:
            other_s, other_key = heap[child + 1].time_s, heap[child + 1].key
            if other_s < child_s or (other_s == child_s and other_key < child_key):
                child += 1
                child_s, child_key = other_s, other_key
        if time_s < child_s or (time_s == child_s and key < child_key):
            break
        heap[place].time_s = child_s
        heap[place].key = child_key
        place = child
    heap[place].time_s = time_s
    heap[place].key = key


@inner_njit
def cancel(s: State, kind: int, machine: int, request: int) -> bool:
    """What is planned is not to happen; returns whether it was planned."""
    run, heap, key = s.run[0], s.events, event_key(kind, machine, request)
    place = 0
    while place < run.events and heap[place].key != key:
        place += 1
    if place == run.events:
        return False
    while place > 0:  # to the top, from where it is taken
        parent = (place - 1) >> 1
        heap[place].time_s, heap[place].key = heap[parent].time_s, heap[parent].key
        place = parent
    pop(heap, run.events)
    run.events -= 1
    return True


@inner_njit
def plan(s: State, time_s: float, kind: int, machine: int, request: int) -> None:
    """An event is to happen at ``time_s``."""
    run = s.run[0]
    push(s.events, run.events, time_s, event_key(kind, machine, request))
    run.events += 1


@inner_njit
def plan_start(s: State, m: int) -> None:
    """A machine is to form a batch, in the order of machines, when everything else of this instant has happened."""
    run = s.run[0]
    push(s.starts, run.starts, run.now_s, m)
    run.starts += 1


@inner_njit
def make_runnable(s: State, m: int) -> None:
    """Let an idle machine form a batch once everything of this instant has happened."""
    machine = s.machines[m]
    if machine.is_idle:
        machine.is_idle = False
        plan_start(s, m)


@inner_njit
def plan_iteration_end(s: State, m: int, time_s: float) -> None:
    """The iteration of a machine is to end at ``time_s``; NEVER_S: there is none."""
    set_time(s.iterations, m, time_s)


@inner_njit
def set_time(ends: Records, m: int, time_s: float) -> None:
    """Set a machine's time in a tournament.

    A node holds the earlier of the two below it, of equals the lower machine; node 1 the first.
    """
    node = (len(ends) >> 1) + m
    ends[node].time_s = time_s
    while node > 1:
        left = node & ~1
        first = left + (ends[left + 1].time_s < ends[left].time_s)
        node >>= 1
        ends[node].time_s = ends[first].time_s
        ends[node].key = ends[first].key


@inner_njit
def plan_lease_end(s: State, r: int) -> None:
    """A cache waits for room from now on. Leases are of one length: those that began first end first."""
    run, request = s.run[0], s.requests[r]
    request.lease_end_s = run.now_s + run.kv_lease_s
    request.next_leased = -1
    if run.first_leased < 0:
        run.first_leased = r
        run.next_lease_end_s = request.lease_end_s
    else:
        s.requests[run.last_leased].next_leased = r
    run.last_leased = r


@inner_njit
def forget_lease_end(s: State, r: int) -> None:
    """The cache waits no more. The first of the chain is always one that waits."""
    run = s.run[0]
    s.requests[r].lease_end_s = np.nan
    first = run.first_leased
    while first >= 0 and np.isnan(s.requests[first].lease_end_s):
        first = s.requests[first].next_leased
    run.first_leased = first
    run.next_lease_end_s = s.requests[first].lease_end_s if first >= 0 else NEVER_S


@inner_njit
def next_event(s: State) -> tuple[float, int]:
    """When the next event happens, NEVER_S if none does, and its kind."""
    run = s.run[0]
    time_s, kind = s.iterations[1].time_s, ITERATION_END
    if run.events > 0:
        event = s.events[0]
        if event.time_s < time_s:
            time_s, kind = event.time_s, key_kind(event.key)
    if run.is_shared:
        end_s = s.flow_ends[1].time_s
        if end_s < time_s or (end_s == time_s and kind > TRANSFER_END):
            time_s, kind = end_s, TRANSFER_END
    if run.next_lease_end_s < time_s or (run.next_lease_end_s == time_s and kind > LEASE_END):
        time_s, kind = run.next_lease_end_s, LEASE_END
    if run.next_arrival_s < time_s or (run.next_arrival_s == time_s and kind > ARRIVAL):
        time_s, kind = run.next_arrival_s, ARRIVAL
    if run.next_tick_s < time_s or (run.next_tick_s == time_s and kind > CONTROL_TICK):
        time_s, kind = run.next_tick_s, CONTROL_TICK
    if run.starts > 0 and run.now_s < time_s:
        time_s, kind = run.now_s, MACHINE_START
    return time_s, kind

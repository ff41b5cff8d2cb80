"""The network `shared`, as in `splitgym.sim.network`, over records.

The transfers of a pair of machines are chained in the order in which they end, the pairs of a machine by sender and by
receiver. Each receiver knows which of its pairs has a transfer that ends first; these are a tournament.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from splitgym.jit import inner_njit, njit
from splitgym.sim.clock import TRANSFER_END
from splitgym.sim.compiled.events import event_key, key_request, plan, pop, set_time
from splitgym.sim.compiled.slots import LINKS, call, state_at
from splitgym.sim.compiled.state import NEVER_S, State

IntArray = npt.NDArray[np.int64]

ENTER, END = range(2)
"""What `links_at` does."""


@inner_njit
def begin_flow(s: State, r: int, size_bytes: float, overhead_s: float) -> None:
    """Send ``size_bytes`` once the overhead is over."""
    s.flows[r].goal_bytes = size_bytes
    if overhead_s > 0:
        plan(s, s.run[0].now_s + overhead_s, TRANSFER_END, s.requests[r].token_machine, r)
    else:
        call(s, LINKS, ENTER, -1, r, 0)


@inner_njit
def end_next(s: State) -> int:
    """The next event of a transfer: whose cache is there, or -1 where an overhead is over and its bytes follow."""
    run = s.run[0]
    if run.is_shared and s.flow_ends[1].time_s < NEVER_S:
        m, other = s.flow_ends[1].key, s.events[0]
        key = event_key(TRANSFER_END, m, s.pairs[s.machines[m].first_to_end].first)
        if run.events == 0 or is_before(s.flow_ends[1].time_s, key, other.time_s, other.key):
            return call(s, LINKS, END, -1, -1, s.machines[m].first_to_end)
    r = key_request(s.events[0].key)
    pop(s.events, run.events)
    run.events -= 1
    if not run.is_shared:
        return r
    call(s, LINKS, ENTER, -1, r, 0)
    return -1


@njit
def links_at(a: IntArray, what: int, _m: int, r: int, number: int) -> int:
    """ENTER: a transfer enters its links; END: the first of a pair ends, whose number it is: returns whose it is."""
    s = state_at(a)
    if what == END:
        return end_flow(s, number)
    enter_link(s, r)
    return r


@inner_njit
def enter_link(s: State, r: int) -> None:
    """Its bytes are sent from now on."""
    source, destination = s.requests[r].cache_machine, s.requests[r].token_machine
    k = s.machines[source].first_sent
    while k >= 0 and s.pairs[k].destination != destination:
        k = s.pairs[k].next_sent
    if k < 0:
        k = add_pair(s, source, destination)
    send_up_to_now(s, k)
    pair, flow = s.pairs[k], s.flows[r]
    flow.goal_bytes += pair.sent_bytes
    before, after = -1, pair.first
    while after >= 0 and is_before(s.flows[after].goal_bytes, after, flow.goal_bytes, r):
        before, after = after, s.flows[after].next
    flow.next = after
    if before < 0:
        pair.first = r
    else:
        s.flows[before].next = r
    share(s, source, destination, 1)


@inner_njit
def end_flow(s: State, k: int) -> int:
    """The first transfer of a pair ends: returns whose it is."""
    pair = s.pairs[k]
    r = pair.first
    pair.sent_bytes = s.flows[r].goal_bytes
    pair.since_s = s.run[0].now_s
    pair.first = s.flows[r].next
    if pair.first < 0:
        remove_pair(s, k)
    share(s, pair.source, pair.destination, -1)
    return r  # type: ignore[no-any-return]


@inner_njit
def share(s: State, source: int, destination: int, change: int) -> None:
    """One more or less is sent between these two: settle the pairs whose rate that changes."""
    sender, receiver = s.machines[source], s.machines[destination]
    sender.sent += change
    receiver.received += change
    k = sender.first_sent
    while k >= 0:
        pair = s.pairs[k]
        other = s.machines[pair.destination]
        rate = min(sender.link_bytes_per_s / sender.sent, other.link_bytes_per_s / other.received)
        if set_rate(s, k, rate) and pair.destination != destination:
            first = s.pairs[other.first_to_end]
            if k == other.first_to_end or is_before(pair.end_s, pair.first, first.end_s, first.first):
                find_first(s, pair.destination)
        k = pair.next_sent
    k = receiver.first_received
    while k >= 0:
        other = s.machines[s.pairs[k].source]
        set_rate(s, k, min(other.link_bytes_per_s / other.sent, receiver.link_bytes_per_s / receiver.received))
        k = s.pairs[k].next_received
    find_first(s, destination)


@inner_njit
def set_rate(s: State, k: int, bytes_per_s: float) -> bool:
    """Returns whether that changes the pair's rate, so that its first transfer ends at another time."""
    pair = s.pairs[k]
    if pair.bytes_per_s == bytes_per_s:
        return False
    send_up_to_now(s, k)
    pair.bytes_per_s = bytes_per_s
    pair.end_s = s.run[0].now_s + max(s.flows[pair.first].goal_bytes - pair.sent_bytes, 0.0) / bytes_per_s
    return True


@inner_njit
def drop_flow(s: State, r: int) -> None:
    """Send no more of it: of a transfer that is on the links."""
    source, destination = s.requests[r].cache_machine, s.requests[r].token_machine
    k = s.machines[source].first_sent
    while s.pairs[k].destination != destination:
        k = s.pairs[k].next_sent
    pair = s.pairs[k]
    if pair.first == r:
        pair.first = s.flows[r].next
    else:
        before = pair.first
        while s.flows[before].next != r:
            before = s.flows[before].next
        s.flows[before].next = s.flows[r].next
    if pair.first < 0:
        remove_pair(s, k)
    share(s, source, destination, -1)


@inner_njit
def find_first(s: State, m: int) -> None:
    """Which of the pairs that send to a machine has the transfer that ends first."""
    first = k = s.machines[m].first_received
    while k >= 0:
        if is_before(s.pairs[k].end_s, s.pairs[k].first, s.pairs[first].end_s, s.pairs[first].first):
            first = k
        k = s.pairs[k].next_received
    s.machines[m].first_to_end = first
    set_time(s.flow_ends, m, s.pairs[first].end_s if first >= 0 else NEVER_S)


@inner_njit
def is_before(value: float, key: int, other: float, other_key: int) -> bool:
    """Whether the first of two comes first: by value, then by key."""
    return value < other or (value == other and key < other_key)


@inner_njit
def send_up_to_now(s: State, k: int) -> None:
    """What a pair has sent."""
    pair, now_s = s.pairs[k], s.run[0].now_s
    pair.sent_bytes += pair.bytes_per_s * (now_s - pair.since_s)
    pair.since_s = now_s


# --- pairs of machines ----------------------------------------------------------------------------------------------


@inner_njit
def add_pair(s: State, source: int, destination: int) -> int:
    """The first transfer between these two is to begin."""
    run, sender, receiver = s.run[0], s.machines[source], s.machines[destination]
    k = run.first_free_pair
    pair = s.pairs[k]
    run.first_free_pair = pair.next_sent
    pair.source, pair.destination, pair.first = source, destination, -1
    pair.since_s, pair.sent_bytes, pair.bytes_per_s = run.now_s, 0.0, 0.0
    pair.next_sent, pair.next_received = sender.first_sent, receiver.first_received
    sender.first_sent = receiver.first_received = k
    return k  # type: ignore[no-any-return]


@inner_njit
def remove_pair(s: State, k: int) -> None:
    """Nothing is sent between these two any more."""
    run, pair = s.run[0], s.pairs[k]
    sender, receiver = s.machines[pair.source], s.machines[pair.destination]
    if sender.first_sent == k:
        sender.first_sent = pair.next_sent
    else:
        other = sender.first_sent
        while s.pairs[other].next_sent != k:
            other = s.pairs[other].next_sent
        s.pairs[other].next_sent = pair.next_sent
    if receiver.first_received == k:
        receiver.first_received = pair.next_received
    else:
        other = receiver.first_received
        while s.pairs[other].next_received != k:
            other = s.pairs[other].next_received
        s.pairs[other].next_received = pair.next_received
    pair.next_sent = run.first_free_pair
    run.first_free_pair = k

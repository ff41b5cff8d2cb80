"""Taking a request out of the middle of a chain of requests."""

from __future__ import annotations

from splitgym.jit import seldom_njit
from splitgym.sim.compiled.state import State

FIRST, ABSENT = -1, -2
"""In place of the member before."""


@seldom_njit
def member_before(s: State, first: int, r: int) -> int:
    """The member before ``r`` in the chain from ``first``, FIRST or ABSENT."""
    before, member = FIRST, first
    while member >= 0:
        if member == r:
            return before
        before, member = member, s.requests[member].next
    return ABSENT


@seldom_njit
def take_from_queue(s: State, m: int, r: int) -> bool:
    """Take a request out of the queue of ``m``, if it is there."""
    machine, following = s.machines[m], s.requests[r].next
    before = member_before(s, machine.queue_first, r)
    if before == ABSENT:
        return False
    if before == FIRST:
        machine.queue_first = following
    else:
        s.requests[before].next = following
    if following < 0:
        machine.queue_last = before
    machine.queued -= 1
    return True


@seldom_njit
def take_from_inbox(s: State, m: int, r: int) -> bool:
    """Take a request out of the inbox of ``m``, if it is there."""
    machine, following = s.machines[m], s.requests[r].next
    before = member_before(s, machine.inbox_first, r)
    if before == ABSENT:
        return False
    if before == FIRST:
        machine.inbox_first = following
    else:
        s.requests[before].next = following
    if following < 0:
        machine.inbox_last = before
    return True


@seldom_njit
def take_from_joining(s: State, m: int, r: int) -> bool:
    """Take a request out of the joining list of ``m``, if it is there."""
    machine, following = s.machines[m], s.requests[r].next
    before = member_before(s, machine.joining_first, r)
    if before == ABSENT:
        return False
    if before == FIRST:
        machine.joining_first = following
    else:
        s.requests[before].next = following
    if following < 0:
        machine.joining_last = before
    machine.joining -= 1
    return True


@seldom_njit
def take_from_batch(s: State, m: int, r: int) -> bool:
    """Take a prompt out of the iteration of ``m``, if it is there. The chain may go on behind the batch."""
    machine = s.machines[m]
    before, member = FIRST, machine.batch_first
    for _ in range(machine.batch_prompts):
        if member == r:
            if before == FIRST:
                machine.batch_first = s.requests[r].next
            else:
                s.requests[before].next = s.requests[r].next
            machine.batch_prompts -= 1
            return True
        before, member = member, s.requests[member].next
    return False


@seldom_njit
def take_from_unplaced(s: State, r: int) -> None:
    """Take a request out of those that wait for a machine to come back, if it is there."""
    run, following = s.run[0], s.requests[r].next
    before = member_before(s, run.unplaced_first, r)
    if before == ABSENT:
        return
    if before == FIRST:
        run.unplaced_first = following
    else:
        s.requests[before].next = following
    if following < 0:
        run.unplaced_last = before

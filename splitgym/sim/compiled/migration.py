"""Draining with migration, as in `splitgym.sim.migration`, over records."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from splitgym.jit import inner_njit, njit
from splitgym.sim import books as b
from splitgym.sim.compiled import log as lg
from splitgym.sim.compiled.assignment import enter_queue, leave_books
from splitgym.sim.compiled.chains import take_from_inbox
from splitgym.sim.compiled.decoding import remove_decode, whole_tokens
from splitgym.sim.compiled.events import make_runnable
from splitgym.sim.compiled.first_tokens import (
    is_answered_late,
    no_longer_starting,
    reported_tokens,
    tokens_at_start,
    weight_to_next_token,
)
from splitgym.sim.compiled.memory import let_in, wait_for_room
from splitgym.sim.compiled.notes import note_change
from splitgym.sim.compiled.slots import state_at
from splitgym.sim.compiled.state import State
from splitgym.view import PROMPT, READY, TOKEN

IntArray = npt.NDArray[np.int64]

LEAVE_PHASES, MOVE_DECODES, REDIRECT = range(3)
"""What `migration_at` does."""


@njit
def migration_at(a: IntArray, what: int, m: int, r: int, _number: int) -> int:
    """`leave_phases`, `move_decodes` (returns whether there were any) or `redirect`."""
    s = state_at(a)
    if what == LEAVE_PHASES:
        leave_phases(s, m)
    elif what == REDIRECT:
        redirect(s, r)
    elif move_decodes(s, m):
        return 1
    return 0


@inner_njit
def leave_phases(s: State, m: int) -> None:
    """A role change: what waits is given to others at once, decodes at the next boundary (`move_decodes`)."""
    machine = s.machines[m]
    if machine.loses_prompts:
        hand_over_prompts(s, m)
    if machine.loses_tokens:
        for other in range(len(s.machines)):
            if other != m:
                r = s.machines[other].queue_first
                while r >= 0:
                    if s.requests[r].token_machine == m:
                        redirect(s, r)
                    r = s.requests[r].next
                make_runnable(s, other)  # it may have waited for room here
        r = machine.inbox_first
        while r >= 0:
            following = s.requests[r].next
            d = freest(s, r) if s.requests[r].cache_machine != m else -1  # one that is here is moved once it decodes
            if d >= 0:
                take_from_inbox(s, m, r)
                s.books[m, b.WAITING] -= 1
                rebook(s, r, d, b.DECODES, b.CONTEXT)
                wait_for_room(s, d, r)
                let_in(s, d)
            r = following
        make_runnable(s, m)


@inner_njit
def hand_over_prompts(s: State, m: int) -> None:
    """Prompts that wait, not those in work, nor decodes to be computed again."""
    machine = s.machines[m]
    first = kept_first = kept_last = -1  # those that wait, the last first; those that stay
    r = machine.queue_first
    while r >= 0:
        request = s.requests[r]
        following = request.next
        if request.was_preempted:
            request.next = -1
            if kept_last < 0:
                kept_first = r
            else:
                s.requests[kept_last].next = r
            kept_last = r
        else:
            request.next = first
            first = r
            machine.queued -= 1
        r = following
    machine.queue_first, machine.queue_last = kept_first, kept_last
    r, first = first, -1
    while r >= 0:  # and turned round again
        leave_books(s, r, m)
        following = s.requests[r].next
        s.requests[r].next = first
        r, first = following, r
    note_change(s, m)
    r = first
    while r >= 0:
        request = s.requests[r]
        following = request.next
        other = least_pending(s, r, m)
        was_late = is_answered_late(s, r)
        request.prompt_machine = other
        change = (1 if is_answered_late(s, r) else 0) - (1 if was_late else 0)
        if change != 0:
            s.books[request.token_machine, b.TOKEN_WEIGHTED] += change * request.prompt_weight
        if other != m:
            count_move(s, r, other)
        enter_queue(s, r, other, 0)
        r = following


@inner_njit
def least_pending(s: State, r: int, m: int) -> int:
    """Where a prompt goes that is to leave ``m``, which is draining; ``m`` where there is no other."""
    request = s.requests[r]
    best = m
    for other in range(len(s.machines)):
        row = s.books[other]
        need = whole_tokens(s, r) if request.token_machine == other else request.prompt_tokens + 1
        if row[b.LIFECYCLE] != READY or row[b.ROLE] == TOKEN or need > s.machines[other].kv_capacity_tokens:
            continue
        if best == m or row[b.PENDING_TOKENS] < s.books[best, b.PENDING_TOKENS]:
            best = other
    return best


@inner_njit
def redirect(s: State, r: int) -> None:
    """Its prompt phase is not over: its token phase is to be elsewhere."""
    d = freest(s, r)
    if d >= 0:
        rebook(s, r, d, b.COMING, b.COMING_CONTEXT)


@inner_njit
def is_leaving(s: State, m: int) -> bool:
    """Whether its token phases are moved."""
    return s.machines[m].loses_tokens and s.run[0].migrates  # type: ignore[no-any-return]


@inner_njit
def move_decodes(s: State, m: int) -> bool:
    """At an iteration boundary: caches of decodes are to be sent, in order of arrival; whether there are any."""
    machine, row = s.machines[m], s.books[m]
    some = False
    r = next_decode(s, m, -1)
    while r >= 0:
        request = s.requests[r]
        d = freest(s, r)
        if d >= 0:
            some = True
            remove_decode(s, m, r)
            request.is_moved = True
            request.generated = request.output_tokens - (request.ends_at - machine.decode_clock)
            if request.generated == 0:
                no_longer_starting(s, m, r)
            machine.outgoing += 1
            row[b.RUNNING] -= 1
            row[b.TOKEN_WEIGHT] -= weight_to_next_token(s, r)
            rebook(s, r, d, b.DECODES, b.CONTEXT)
            row[b.BOOKED_KV] += reported_tokens(s, r)
            wait_for_room(s, d, r)
            let_in(s, d)
        r = next_decode(s, m, r)
    return some


@inner_njit
def next_decode(s: State, m: int, after: int) -> int:
    """The first decode that arrived after another, -1 if there is none."""
    machine = s.machines[m]
    first = -1
    for i in range(machine.first_end, machine.first_end + machine.decodes):
        r = s.ends[i].key
        if r > after and (first < 0 or r < first):
            first = r
    return first


@inner_njit
def freest(s: State, r: int) -> int:
    """Where a token phase goes that has to go elsewhere; -1 if there is no such machine."""
    whole, request = whole_tokens(s, r), s.requests[r]
    best = -1
    most = 0.0
    for m in range(len(s.machines)):
        row, capacity = s.books[m], s.machines[m].kv_capacity_tokens
        if row[b.LIFECYCLE] != READY or row[b.ROLE] == PROMPT or capacity < whole:
            continue
        if m in (request.cache_machine, request.prompt_machine):
            continue
        room = capacity - row[b.BOOKED_KV]
        if best < 0 or room > most:
            best, most = m, room
    return best


@inner_njit
def rebook(s: State, r: int, d: int, counted: int, context: int) -> None:
    """Its token phase is another machine's; these columns of the books count it."""
    request = s.requests[r]
    m = request.token_machine
    tokens, predicted = reported_tokens(s, r), request.predicted
    weighted = request.token_weight * (whole_tokens(s, r) - tokens)
    if tokens_at_start(s, r) == request.prompt_tokens:  # its token machine makes the first, or the next, of them
        weighted += request.prompt_weight
    remaining = predicted - (tokens - request.prompt_tokens)
    note_change(s, m)
    note_change(s, d)
    old, new = s.books[m], s.books[d]
    old[counted] -= 1
    old[context] -= tokens
    old[b.REMAINING] -= remaining
    old[b.BOOKED_KV] -= request.prompt_tokens + predicted
    old[b.TOKEN_WEIGHTED] -= weighted
    new[counted] += 1
    new[context] += tokens
    new[b.REMAINING] += remaining
    new[b.BOOKED_KV] += request.prompt_tokens + predicted
    new[b.TOKEN_WEIGHTED] += weighted
    if old[b.DECODES] + old[b.COMING] == 0:  # whatever rounding left
        old[b.REMAINING] = old[b.TOKEN_WEIGHT] = old[b.TOKEN_WEIGHTED] = 0.0
    request.token_machine = d
    count_move(s, r, d)


@inner_njit
def count_move(s: State, r: int, m: int) -> None:
    """A request has been given to another machine."""
    s.run[0].migrations += 1
    lg.log(s, lg.MOVED, m, r)

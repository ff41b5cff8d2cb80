"""Leases of caches that wait for room, as in `splitgym.sim.leases`, over records."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from splitgym.jit import inner_njit, njit
from splitgym.sim import books as b
from splitgym.sim.compiled import log as lg
from splitgym.sim.compiled.chains import take_from_inbox
from splitgym.sim.compiled.events import forget_lease_end, make_runnable, plan_lease_end
from splitgym.sim.compiled.first_tokens import tokens_at_start, unbook_cache
from splitgym.sim.compiled.memory import free, held_until_sent
from splitgym.sim.compiled.notes import note_change
from splitgym.sim.compiled.slots import state_at
from splitgym.sim.compiled.state import NEVER_S, State

IntArray = npt.NDArray[np.int64]


@inner_njit
def start_lease(s: State, r: int) -> None:
    """Its prompt phase is over; if its cache has to wait for room, then no longer than this."""
    if s.run[0].kv_lease_s < NEVER_S and s.machines[s.requests[r].token_machine].inbox_last == r:
        plan_lease_end(s, r)


@njit
def leases_at(a: IntArray, _what: int, _m: int, _r: int, _number: int) -> int:
    """The first lease ends."""
    end_lease(state_at(a))
    return 0


@inner_njit
def end_lease(s: State) -> None:
    """The cache whose lease ends now is dropped; the request waits on its token machine to be computed again."""
    run = s.run[0]
    r = run.first_leased
    forget_lease_end(s, r)
    request = s.requests[r]
    source, token = request.prompt_machine, request.token_machine
    run.recomputations += 1
    lg.log(s, lg.CACHE_DROPPED, source, r)
    take_from_inbox(s, token, r)
    request.cache_machine, request.computed = token, request.prompt_tokens
    request.was_preempted = True
    request.generated = tokens_at_start(s, r) - request.prompt_tokens
    if not request.is_resumed:
        request.last_token_s = request.first_token_s
        request.tbt_max_s = 0.0
    put_back(s, token, r)
    note_change(s, token)
    make_runnable(s, token)
    held = request.prompt_tokens + 1
    note_change(s, source)
    s.books[source, b.KV_HELD] -= held
    if source != token:
        s.machines[source].outgoing -= 1
        if not s.run[0].token_machines_answer:
            unbook_cache(s, r)
    free(s, source, r, held_until_sent(s, source, r))


@inner_njit
def put_back(s: State, m: int, r: int) -> None:
    """Into the queue, before the first that arrived later."""
    machine = s.machines[m]
    machine.put_back += 1
    machine.queued += 1
    before, after = -1, machine.queue_first
    while 0 <= after < r:
        before, after = after, s.requests[after].next
    s.requests[r].next = after
    if before < 0:
        machine.queue_first = r
    else:
        s.requests[before].next = r
    if after < 0:
        machine.queue_last = r

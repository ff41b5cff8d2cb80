"""The token machine chosen when the prompt phase ends, as in `splitgym.sim.late_choice`, over records."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from splitgym.jit import inner_njit, njit, seldom_njit
from splitgym.sim import books as b
from splitgym.sim.books import BookArrays, narrow_view, renew_masks
from splitgym.sim.compiled import log as lg
from splitgym.sim.compiled.assignment import book_token_phase, enter_queue, fail
from splitgym.sim.compiled.decoding import whole_tokens
from splitgym.sim.compiled.events import plan_lease_end
from splitgym.sim.compiled.first_tokens import close_gap, yield_first_token
from splitgym.sim.compiled.iterations import begin_token_phase, end_prompt, leave_prompt_phase, need_here
from splitgym.sim.compiled.memory import let_in
from splitgym.sim.compiled.notes import note_change
from splitgym.sim.compiled.outages import may_wait
from splitgym.sim.compiled.slots import desk_at, state_at
from splitgym.sim.compiled.state import NEVER_S, NO_DECISION, State
from splitgym.sim.compiled.withdrawal import part_with
from splitgym.view import PROMPT_END

IntArray = npt.NDArray[np.int64]

ASK, ASSIGN, END_PROMPT, NARROW = range(4)
"""What `choices_at` does."""


@njit
def choices_at(a: IntArray, what: int, m: int, r: int, _number: int) -> int:
    """`ask_for_token_machine`, `assign` (a prompt machine, a token machine), `end_prompt_phase` or `narrow`."""
    s, desk = state_at(a), desk_at(a)
    if what == ASK:
        ask_for_token_machine(s, desk)
    elif what == ASSIGN:
        assign(s, desk, m, r)
    elif what == END_PROMPT:
        end_prompt_phase(s, m, r)
    else:
        narrow(s, desk)
    return 0


@inner_njit
def end_prompt_phase(s: State, m: int, r: int) -> None:
    """The prompt phase is over: its token machine is to be chosen now, unless there is no token phase."""
    request, run = s.requests[r], s.run[0]
    if request.output_tokens == 1 and not run.token_machines_answer:
        request.token_machine = m
        s.books[m, b.BOOKED_KV] -= request.prompt_tokens + 1
        book_token_phase(s, r, m)
        end_prompt(s, m, r)
        return
    leave_prompt_phase(s, m, r)
    s.machines[m].outgoing += 1
    request.next = -1
    if run.first_awaiting < 0:
        run.first_awaiting = r
    else:
        s.requests[run.last_awaiting].next = r
    run.last_awaiting = r


@inner_njit
def ask_for_token_machine(s: State, desk: BookArrays) -> None:
    """A decision is due for the first of those that await it; after the horizon nobody is asked."""
    run = s.run[0]
    r = run.first_awaiting
    d = default_token_machine(s, desk, r)
    if d >= 0 and not run.follow_up:
        run.pending = PROMPT_END
        run.pending_request = r
        if run.caches_prefixes:
            desk.hits[:] = 0.0
        return
    no_longer_awaiting(s)
    if d < 0:
        go_without(s, r)
    else:
        choose_token_machine(s, r, d)


@inner_njit
def no_longer_awaiting(s: State) -> None:
    """The first of those that await it has its decision."""
    run = s.run[0]
    run.first_awaiting = s.requests[run.first_awaiting].next
    if run.first_awaiting < 0:
        run.last_awaiting = -1


@inner_njit
def narrow(s: State, desk: BookArrays) -> None:
    """The view shows what is asked for alone."""
    run = s.run[0]
    r = run.pending_request
    narrow_view(run.pending, s.requests[r].prompt_machine if r >= 0 else -1, desk)


@inner_njit
def assign(s: State, desk: BookArrays, prompt: int, token: int) -> None:
    """Carry out the decision that is due about a request, which is permitted."""
    run = s.run[0]
    r, is_prompt_end = run.pending_request, run.pending == PROMPT_END
    run.pending = NO_DECISION
    run.pending_request = -1
    if is_prompt_end:
        no_longer_awaiting(s)
        choose_token_machine(s, r, token)
        return
    s.requests[r].prompt_machine = prompt
    lg.log(s, lg.ASSIGNED, prompt, r)
    if need_here(s, prompt, r) > s.machines[prompt].kv_capacity_tokens:
        fail(s, r)
    else:
        enter_queue(s, r, prompt, int(desk.hits[prompt]) if run.caches_prefixes else 0)


@seldom_njit
def choose_token_machine(s: State, r: int, d: int) -> None:
    """The cache is sent to ``d``, or stays there."""
    request, run = s.requests[r], s.run[0]
    m = request.prompt_machine
    lg.log(s, lg.CHOSEN, d, r)
    if whole_tokens(s, r) > s.machines[d].kv_capacity_tokens:
        fail(s, r)
        part_with(s, r)
        return
    request.token_machine = d
    s.machines[m].outgoing -= 1
    note_change(s, m)
    if d == m:
        s.books[m, b.BOOKED_KV] -= request.prompt_tokens + 1
        if run.token_machines_answer:
            if request.is_resumed:
                close_gap(s, r)
            yield_first_token(s, m, r)
    book_token_phase(s, r, d)
    if d == m and request.output_tokens > 1 and not run.is_vllm:
        wait_in_place(s, m, r)
    else:
        begin_token_phase(s, m, r)


@inner_njit
def default_token_machine(s: State, desk: BookArrays, r: int) -> int:
    """The permitted machine that holds the request with the most KV memory not booked, of equals the first; or -1."""
    renew_masks(s.requests[r].prompt_tokens, desk)
    whole = whole_tokens(s, r)
    best = -1
    most = 0.0
    for m in range(len(s.machines)):
        capacity = s.machines[m].kv_capacity_tokens
        if desk.token_mask[m] and capacity >= whole:
            room = capacity - s.books[m, b.BOOKED_KV]
            if best < 0 or room > most:
                best, most = m, room
    return best


@seldom_njit
def go_without(s: State, r: int) -> None:
    """No permitted machine can hold it: its cache is dropped; while a machine is down it begins again."""
    if not may_wait(s):
        fail(s, r)
    part_with(s, r)


@inner_njit
def wait_in_place(s: State, m: int, r: int) -> None:
    """Its token phase begins where its cache is, but room for the output is to be reserved (discipline `splitwise`).

    It stands before caches that are to come, after those that are here already.
    """
    machine, row, prompt_tokens = s.machines[m], s.books[m], s.requests[r].prompt_tokens
    row[b.COMING] -= 1
    row[b.COMING_CONTEXT] -= prompt_tokens + 1
    row[b.DECODES] += 1
    row[b.CONTEXT] += prompt_tokens + 1
    before, after = -1, machine.inbox_first
    while after >= 0 and s.requests[after].cache_machine == m:
        before, after = after, s.requests[after].next
    s.requests[r].next = after
    if before < 0:
        machine.inbox_first = r
    else:
        s.requests[before].next = r
    if after < 0:
        machine.inbox_last = r
    row[b.WAITING] += 1
    let_in(s, m)
    waiting = machine.inbox_first
    while waiting >= 0 and waiting != r:
        waiting = s.requests[waiting].next
    if waiting == r and s.run[0].kv_lease_s < NEVER_S:
        plan_lease_end(s, r)

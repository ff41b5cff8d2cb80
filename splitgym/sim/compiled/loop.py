"""The loop of a compiled run: to the next decision, through it, and on."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from splitgym.jit import inner_njit, merged_njit, njit, seldom_njit
from splitgym.sim.books import (
    BookArrays,
    count_arrival_rate,
    fill_request,
    fill_roles,
    fill_times,
    fill_work,
    renew_masks,
    show_reports,
    show_times,
)
from splitgym.sim.clock import ARRIVAL, CONTROL_TICK, FAULT, ITERATION_END, LEASE_END, MACHINE_START, TRANSFER_END
from splitgym.sim.compiled import log as lg
from splitgym.sim.compiled.assignment import book_token_phase, enter_queue, fail
from splitgym.sim.compiled.decoding import whole_tokens
from splitgym.sim.compiled.events import (
    key_kind,
    key_machine,
    key_request,
    next_event,
    plan,
    plan_iteration_end,
    pop,
)
from splitgym.sim.compiled.iterations import need_here
from splitgym.sim.compiled.kernel import MASKS_SEEN, NOTES_SEEN, Kernel, function_at
from splitgym.sim.compiled.late_choice import ASK, ASSIGN, NARROW
from splitgym.sim.compiled.machine import end_iteration, start_machine
from splitgym.sim.compiled.memory import end_transfer
from splitgym.sim.compiled.network import end_next
from splitgym.sim.compiled.notes import changed_since, note_scrapes
from splitgym.sim.compiled.outages import may_wait, place_waiting, wait_for_a_machine
from splitgym.sim.compiled.prefix import COUNT_HITS
from splitgym.sim.compiled.roles import CHANGE_ROLE, END_SWITCH, SETTLE
from splitgym.sim.compiled.slots import CHOICES, CHUNKED, LEASES, OUTAGES, PREFIXES, ROLES, call, desk_at, state_at
from splitgym.sim.compiled.state import LOG_CHUNK, NEVER_S, NO_DECISION, State
from splitgym.sim.compiled.totals import count_arrival
from splitgym.sim.faults import NOBODY
from splitgym.sim.rows import IN_FLIGHT
from splitgym.view import ARRIVAL as ARRIVAL_DECISION
from splitgym.view import PROMPT_END, TICK

BoolArray = npt.NDArray[np.bool_]
IntArray = npt.NDArray[np.int64]

OVER, DUE, LOG_IS_FULL, INVALID = range(4)
"""Why compiled code returns: nothing is left to decide, a decision is due, the log must be emptied, a bad decision."""


@merged_njit
def step(s: State, desk: BookArrays, time_s: float, kind: int) -> None:
    """One event, the next."""
    run = s.run[0]
    run.now_s = time_s
    if kind == ITERATION_END:
        m = s.iterations[1].key
        plan_iteration_end(s, m, NEVER_S)
        if run.is_vllm:
            call(s, CHUNKED, kind, m, -1, 0)
        else:
            end_iteration(s, m)
    elif kind == MACHINE_START:
        m = s.starts[0].key
        pop(s.starts, run.starts)
        run.starts -= 1
        if run.is_vllm:
            call(s, CHUNKED, kind, m, -1, 0)
        else:
            start_machine(s, m)
    elif kind == ARRIVAL:
        arrive(s, desk)
    elif kind == CONTROL_TICK:
        tick(s)
        if run.caches_prefixes:
            desk.hits[:] = 0.0
    elif kind == TRANSFER_END:
        r = end_next(s)
        if r >= 0:
            end_transfer(s, r)
    elif kind == LEASE_END:
        call(s, LEASES, kind, -1, -1, 0)
    else:
        key = s.events[0].key
        pop(s.events, run.events)
        run.events -= 1
        if kind == FAULT:
            call(s, OUTAGES, kind, key_machine(key), key_request(key), 0)
        else:
            call(s, ROLES, END_SWITCH, key_machine(key), -1, 0)
    if run.may_settle:
        call(s, ROLES, SETTLE, -1, -1, 0)


@inner_njit
def arrive(s: State, desk: BookArrays) -> None:
    """A request arrives, or is asked about again; a decision is due where it fits."""
    run = s.run[0]
    r = asked_again(s) if run.is_disturbed else -1
    if r < 0:
        if run.follow_up:
            run.arrivals_over = True
            run.next_arrival_s = NEVER_S
            return
        r = run.next_arrival
        request = s.requests[r]
        count_arrival_rate(run.now_s, request.prompt_tokens, request.predicted, desk.arrived, desk.window)
        count_arrival(s, r, run.now_s)
        lg.log(s, lg.ARRIVED, -1, r)
        if run.is_disturbed and request.deadline_s != NEVER_S:
            plan(s, run.now_s + request.deadline_s, FAULT, NOBODY, r)
        run.next_arrival += 1
        run.next_arrival_s = s.requests[r + 1].arrival_s if r + 1 < run.num_requests else NEVER_S
        if r + 1 == run.num_requests or run.next_arrival_s > run.horizon_s:
            run.arrivals_over = True
            run.next_arrival_s = NEVER_S
    ask_for(s, desk, r)


@seldom_njit
def asked_again(s: State) -> int:
    """The request that is asked about again now; -1: none is, it is an arrival."""
    run = s.run[0]
    if run.events == 0 or s.events[0].time_s != run.now_s or key_kind(s.events[0].key) != ARRIVAL:
        return -1
    r = key_request(s.events[0].key)
    pop(s.events, run.events)
    run.events -= 1
    return r


@inner_njit
def ask_for(s: State, desk: BookArrays, r: int) -> None:
    """A decision is due about a request where it fits; where a machine is down it waits, else it fails."""
    run, request = s.run[0], s.requests[r]
    if request.status != IN_FLIGHT:
        return
    renew_masks(request.prompt_tokens, desk)
    if whole_tokens(s, r) <= desk.masked[1] and not run.follow_up:
        run.pending = ARRIVAL_DECISION
        run.pending_request = r
        if run.caches_prefixes:
            call(s, PREFIXES, COUNT_HITS, -1, r, 0)
    elif run.follow_up or (run.is_disturbed and may_wait(s)):
        wait_for_a_machine(s, r)
    else:
        fail(s, r)


@inner_njit
def tick(s: State) -> None:
    """A decision about roles is due, unless nothing but ticks is left."""
    run = s.run[0]
    run.next_tick_s = NEVER_S
    if run.follow_up or (next_event(s)[0] == NEVER_S and not run.some_held):
        return
    if run.some_held:
        run.some_held = False
        place_waiting(s)
    run.pending = TICK
    run.ticks += 1
    run.next_tick_s = run.ticks * run.tick_s


@inner_njit
def withhold(s: State, is_refused: bool) -> None:
    """Refuse the request of which a decision is due, or hold it back: but not where nothing else is to happen."""
    run = s.run[0]
    r = run.pending_request
    run.pending = NO_DECISION
    run.pending_request = -1
    next_tick_s = run.next_tick_s
    run.next_tick_s = NEVER_S
    is_all_over = next_event(s)[0] == NEVER_S
    run.next_tick_s = next_tick_s
    if is_refused or is_all_over:
        fail(s, r)
        return
    lg.log(s, lg.HELD, -1, r)
    wait_for_a_machine(s, r)
    run.some_held = True


@merged_njit
def advance(s: State, desk: BookArrays) -> int:
    """Run to the next decision; returns OVER, DUE or LOG_IS_FULL."""
    run = s.run[0]
    while run.pending == NO_DECISION:
        if run.log_lines > LOG_CHUNK:
            return LOG_IS_FULL
        if run.first_awaiting >= 0:
            call(s, CHOICES, ASK, -1, -1, 0)
            continue
        next_s, kind = next_event(s)
        if run.follow_up:
            if run.unfinished == run.lost or next_s > run.last_s or next_s == NEVER_S:
                return OVER
        elif (run.arrivals_over and run.unfinished == run.lost) or next_s > run.horizon_s or next_s == NEVER_S:
            if run.horizon_s != NEVER_S:
                run.closed_s = run.horizon_s
            return OVER
        step(s, desk, next_s, kind)
    return DUE


@njit
def advance_at(a: IntArray) -> int:
    """`advance`, of the run at these addresses (`splitgym.sim.compiled.slots`)."""
    return advance(state_at(a), desk_at(a))


@inner_njit
def show(s: State, desk: BookArrays, with_times: bool) -> None:
    """Bring the view up to date for the decision that is due; without what `fill_times` writes if nobody reads it."""
    run = s.run[0]
    prompt_tokens, predicted, slo_class = 0, 0.0, 0
    if run.pending_request >= 0:
        request = s.requests[run.pending_request]
        prompt_tokens, predicted, slo_class = request.prompt_tokens, request.predicted, request.slo_class
    is_tick = run.pending == TICK
    renew_masks(prompt_tokens, desk)
    if run.is_stale:
        note_scrapes(s)
    first, end = changed_since(s, run.shown)
    for i in range(first, end):
        fill_work(s.notes[i], desk)
    if run.shown_masks != desk.masked[2]:
        for m in range(len(s.machines)):
            fill_roles(m, desk)
        run.shown_masks = desk.masked[2]
    run.shown = run.noted
    if run.is_stale:
        show_reports(run.now_s, desk)
    fill_request(is_tick, run.now_s, prompt_tokens, predicted, slo_class, desk)
    if with_times:
        predict(s, desk)
        show_times(desk)
    if run.chooses_late:
        call(s, CHOICES, NARROW, -1, -1, 0)


@inner_njit
def predict(s: State, desk: BookArrays) -> None:
    """`fill_times`, for the decision that is due."""
    run = s.run[0]
    prompt_tokens = s.requests[run.pending_request].prompt_tokens if run.pending_request >= 0 else 0
    fill_times(run.pending == TICK, run.now_s, prompt_tokens, desk)


@inner_njit
def assign(s: State, desk: BookArrays, prompt: int, token: int) -> None:
    """Carry out the decision that is due, which is permitted."""
    run = s.run[0]
    r = run.pending_request
    if run.chooses_late and r >= 0:
        call(s, CHOICES, ASSIGN, prompt, token, 0)
        return
    run.pending = NO_DECISION
    run.pending_request = -1
    if r < 0:
        return
    request = s.requests[r]
    request.prompt_machine = prompt
    request.token_machine = token
    lg.log(s, lg.ASSIGNED, prompt, r)
    whole = whole_tokens(s, r)
    room = s.machines[prompt].kv_capacity_tokens
    if need_here(s, prompt, r) > room or whole > s.machines[token].kv_capacity_tokens:
        fail(s, r)
        return
    enter_queue(s, r, prompt, int(desk.hits[prompt]) if run.caches_prefixes else 0)
    book_token_phase(s, r, token)


@inner_njit
def change(s: State, desk: BookArrays, m: int, role: int) -> bool:
    """Change a role, if that is permitted."""
    if not (0 <= m < len(s.machines) and 0 <= role < 3):
        return False
    renew_masks(0, desk)
    if not desk.role_mask[m, role]:
        return False
    call(s, ROLES, CHANGE_ROLE, m, role, 0)
    return True


@inner_njit
def carry_out(s: State, desk: BookArrays, prompt: int, token: int, new_roles: IntArray) -> bool:
    """Change roles and assign; ``False``, and the changes still to make in ``new_roles``, where it is not permitted."""
    count = len(s.machines)
    together = -1
    for m in range(count):
        together &= new_roles[m]
    if together >= 0:  # one of them, at least, is no -1
        for m in range(count):
            if new_roles[m] >= 0:
                if not change(s, desk, m, new_roles[m]):
                    return False
                new_roles[m] = -1
    if s.run[0].pending_request >= 0:
        renew_masks(s.requests[s.run[0].pending_request].prompt_tokens, desk)
        may_prompt = 0 <= prompt < count and desk.prompt_mask[prompt]
        may_token = 0 <= token < count and desk.token_mask[token]
        if s.run[0].chooses_late:  # then one of them counts
            may_prompt |= s.run[0].pending == PROMPT_END
            may_token |= s.run[0].pending != PROMPT_END
        if not (may_prompt and may_token):
            return False
    assign(s, desk, prompt, token)
    return True


@inner_njit
def ask(s: State, desk: BookArrays, kernel: Kernel, role_mask: BoolArray, new_roles: IntArray) -> tuple[int, int]:
    """What a heuristic decides now: the machines, and role changes in ``new_roles``.

    It is told which machines have changed since it was last asked, by what its memory says of that.
    """
    run, memory = s.run[0], kernel.state
    show(s, desk, kernel.reads_times)
    are_masks_known = memory[MASKS_SEEN] == desk.masked[2] and not run.chooses_late
    first, end = changed_since(s, int(memory[NOTES_SEEN]) if are_masks_known else 0)
    memory[NOTES_SEEN], memory[MASKS_SEEN] = run.noted, desk.masked[2]
    prompt, token = function_at(kernel.address)(
        run.pending,
        run.now_s,
        desk.machines,
        desk.request,
        desk.cluster,
        desk.prompt_mask,
        desk.token_mask,
        role_mask,
        s.notes[first:end],
        kernel.params,
        kernel.state,
        new_roles,
    )
    return prompt, token

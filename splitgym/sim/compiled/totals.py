"""Running totals of a compiled run: `splitgym.sim.ledger` over records."""

from __future__ import annotations

import numpy as np

from splitgym.jit import inner_njit
from splitgym.sim.compiled.events import pop, push
from splitgym.sim.compiled.state import State
from splitgym.sim.ledger import Meters


@inner_njit
def integrate(s: State, time_s: float) -> None:
    """Charge what is unfinished for the time since the last event."""
    run = s.run[0]
    dt_s = time_s - run.time_s
    run.time_in_system_s += run.unfinished * dt_s
    run.slowdown += run.weight * dt_s
    run.time_s = time_s


@inner_njit
def set_deadline(s: State, deadline_s: float, key: int) -> None:
    """Note a deadline; it is put into the heap when next the missed are counted, unless the token is there by then."""
    run = s.run[0]
    deadline = s.deadlines[run.deadlines]
    deadline.time_s = deadline_s
    deadline.key = key
    run.deadlines += 1


@inner_njit
def is_late(s: State, deadline_s: float, time_s: float) -> bool:
    """Whether a token at ``time_s`` misses its deadline, and that has not been counted before it came."""
    return s.run[0].missed_until_s <= deadline_s < time_s  # type: ignore[no-any-return]


@inner_njit
def count_missed(s: State, time_s: float) -> None:
    """Count deadlines before ``time_s`` whose token is not there. Keys are 2 · request, + 1 for the last token."""
    run, deadlines = s.run[0], s.deadlines
    for i in range(run.sorted_deadlines, run.deadlines):
        deadline_s, key = deadlines[i].time_s, deadlines[i].key
        if is_outstanding(s, key):
            push(deadlines, run.sorted_deadlines, deadline_s, key)
            run.sorted_deadlines += 1
    while run.sorted_deadlines > 0 and deadlines[0].time_s < time_s:
        key = deadlines[0].key
        pop(deadlines, run.sorted_deadlines)
        run.sorted_deadlines -= 1
        if is_outstanding(s, key):
            if key & 1:
                run.tbt_missed += 1
            else:
                run.ttft_missed += 1
    run.deadlines = run.sorted_deadlines
    run.missed_until_s = time_s


@inner_njit
def is_outstanding(s: State, key: int) -> bool:
    """Whether the token with a deadline is not there yet."""
    request = s.requests[key >> 1]
    return np.isnan(request.finish_s if key & 1 else request.first_token_s)  # type: ignore[no-any-return]


@inner_njit
def count_arrival(s: State, r: int, time_s: float) -> None:
    """A request arrives."""
    run, request = s.run[0], s.requests[r]
    integrate(s, time_s)
    run.arrived += 1
    run.unfinished += 1
    run.weight += request.prompt_weight
    set_deadline(s, time_s + request.ttft_allowed_s, 2 * r)


@inner_njit
def count_first_token(s: State, r: int, time_s: float) -> None:
    """The prompt phase ends."""
    run, request = s.run[0], s.requests[r]
    integrate(s, time_s)
    if is_late(s, request.arrival_s + request.ttft_allowed_s, time_s):
        run.ttft_missed += 1
    run.tokens_out += 1
    run.weight += request.token_weight - request.prompt_weight
    if request.token_weight > 0:
        set_deadline(s, time_s + request.token_phase_allowed_s, 2 * r + 1)


@inner_njit
def count_finish(s: State, r: int, time_s: float) -> None:
    """The last token is out."""
    run, request = s.run[0], s.requests[r]
    integrate(s, time_s)
    if request.token_weight > 0 and is_late(s, request.first_token_s + request.token_phase_allowed_s, time_s):
        run.tbt_missed += 1
    run.finished += 1
    run.unfinished -= 1
    run.weight -= request.token_weight


@inner_njit
def read_meters(s: State, time_s: float, with_missed: bool) -> Meters:
    """Totals up to ``time_s``, which is not before the last event.

    Without ``with_missed`` deadlines whose token is still to come are left for another time.
    """
    integrate(s, time_s)
    if with_missed:
        count_missed(s, time_s)
    run = s.run[0]
    return Meters(
        time_s,
        run.time_in_system_s,
        run.slowdown,
        run.ttft_missed,
        run.tbt_missed,
        run.prompt_energy_j + run.token_energy_j + (run.idle_w * time_s - run.not_idle_j),
        run.arrived,
        run.finished,
        run.tokens_out,
        run.prompt_energy_j,
        run.token_energy_j,
    )

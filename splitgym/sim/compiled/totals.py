"""Running totals of a compiled run: `splitgym.sim.ledger` over records."""

from __future__ import annotations

import numpy as np

from splitgym.jit import lean_njit
from splitgym.sim.compiled.events import pop, push
from splitgym.sim.compiled.state import State
from splitgym.sim.ledger import Meters


@lean_njit
def integrate(s: State, time_s: float) -> None:
    """Charge what is unfinished for the time since the last event."""
    run = s.run[0]
    dt_s = time_s - run.time_s
    run.time_in_system_s += run.unfinished * dt_s
    run.slowdown += run.weight * dt_s
    run.time_s = time_s


@lean_njit
def count_missed(s: State, time_s: float) -> None:
    """Count deadlines before ``time_s`` whose token was not there. Keys are 2 · request, + 1 for the last token."""
    run = s.run[0]
    while run.deadlines > 0 and s.deadlines[0].time_s < time_s:
        deadline_s, key = s.deadlines[0].time_s, s.deadlines[0].key
        pop(s.deadlines, run.deadlines)
        run.deadlines -= 1
        request = s.requests[key >> 1]
        if key & 1:
            if np.isnan(request.finish_s) or request.finish_s > deadline_s:
                run.tbt_missed += 1
        elif np.isnan(request.first_token_s) or request.first_token_s > deadline_s:
            run.ttft_missed += 1


@lean_njit
def count_arrival(s: State, r: int, time_s: float) -> None:
    """A request arrives."""
    run, request = s.run[0], s.requests[r]
    integrate(s, time_s)
    run.arrived += 1
    run.unfinished += 1
    run.weight += request.prompt_weight
    push(s.deadlines, run.deadlines, time_s + request.ttft_allowed_s, 2 * r)
    run.deadlines += 1


@lean_njit
def count_first_token(s: State, r: int, time_s: float) -> None:
    """The prompt phase ends."""
    run, request = s.run[0], s.requests[r]
    integrate(s, time_s)
    count_missed(s, time_s)
    run.tokens_out += 1
    run.weight += request.token_weight - request.prompt_weight
    if request.token_weight > 0:
        push(s.deadlines, run.deadlines, time_s + request.token_phase_allowed_s, 2 * r + 1)
        run.deadlines += 1


@lean_njit
def count_finish(s: State, r: int, time_s: float) -> None:
    """The last token is out."""
    run = s.run[0]
    integrate(s, time_s)
    count_missed(s, time_s)
    run.finished += 1
    run.unfinished -= 1
    run.weight -= s.requests[r].token_weight


@lean_njit
def read_meters(s: State, time_s: float) -> Meters:
    """Totals up to ``time_s``, which is not before the last event."""
    integrate(s, time_s)
    count_missed(s, time_s)
    run = s.run[0]
    return Meters(
        time_s,
        run.time_in_system_s,
        run.slowdown,
        run.ttft_missed,
        run.tbt_missed,
        run.busy_energy_j + run.idle_w * time_s,
        run.arrived,
        run.finished,
        run.tokens_out,
    )

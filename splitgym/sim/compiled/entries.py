"""What Python calls of a compiled run, which it names by its addresses (`splitgym.sim.compiled.slots`)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from splitgym.jit import njit
from splitgym.sim.compiled import loop
from splitgym.sim.compiled.kernel import Kernel
from splitgym.sim.compiled.loop import DUE, INVALID, OVER, ask, carry_out
from splitgym.sim.compiled.slots import ADVANCE, CODE, advance_by, desk_at, state_at
from splitgym.sim.compiled.state import NEVER_S, NO_DECISION
from splitgym.sim.compiled.totals import read_meters
from splitgym.sim.ledger import Meters
from splitgym.view import TICK

IntArray = npt.NDArray[np.int64]


@njit
def advance_to_view(a: IntArray) -> int:
    """Run to the next decision and bring the view up to date for it: DUE, OVER or LOG_IS_FULL."""
    status: int = advance_by(a[CODE + ADVANCE, 0])(a)
    if status == DUE:
        loop.show(state_at(a), desk_at(a), True)
    return status


@njit
def show(a: IntArray) -> None:
    """Bring the view up to date for the decision that is due."""
    loop.show(state_at(a), desk_at(a), True)


@njit
def decide(a: IntArray, prompt: int, token: int, new_roles: IntArray) -> bool:
    """`splitgym.sim.compiled.loop.carry_out`."""
    return carry_out(state_at(a), desk_at(a), prompt, token, new_roles)


@njit
def withhold(a: IntArray, is_refused: bool) -> None:
    """Refuse or hold back the request of which a decision is due, which is permitted."""
    loop.withhold(state_at(a), is_refused)


@njit
def change(a: IntArray, m: int, role: int) -> bool:
    """Change a role, if that is permitted."""
    return loop.change(state_at(a), desk_at(a), m, role)


@njit
def meters(a: IntArray, time_s: float) -> Meters:
    """Totals up to ``time_s``."""
    return read_meters(state_at(a), time_s, True)


@njit
def run_kernels(
    a: IntArray,
    at_arrival: Kernel,
    at_tick: Kernel,
    warming_up: Kernel,
    warming_up_at_tick: Kernel,
    warmup_s: float,
    chosen: IntArray,
    new_roles: IntArray,
) -> int:
    """Run to the end of the decisions: OVER, LOG_IS_FULL, or INVALID and the decision left to make."""
    s, desk = state_at(a), desk_at(a)
    run = s.run[0]
    new_roles[:] = -1
    while True:
        status = advance_by(a[CODE + ADVANCE, 0])(a)
        if status != DUE:
            return status  # type: ignore[no-any-return]
        is_tick = run.pending == TICK
        if run.now_s < warmup_s:
            kernel = warming_up_at_tick if is_tick else warming_up
        else:
            kernel = at_tick if is_tick else at_arrival
        prompt, token = ask(s, desk, kernel, desk.role_mask, new_roles)
        if not carry_out(s, desk, prompt, token, new_roles):
            chosen[0] = prompt
            chosen[1] = token
            return INVALID


@njit
def follow_up(a: IntArray, last_s: float) -> int:
    """Nothing more arrives or is decided: follow what is unfinished until ``last_s``; OVER or LOG_IS_FULL."""
    run = state_at(a).run[0]
    run.follow_up = True
    run.last_s = last_s
    run.pending = NO_DECISION
    status: int = advance_by(a[CODE + ADVANCE, 0])(a)
    if status == OVER:
        if run.horizon_s != NEVER_S:
            is_cut = run.unfinished > 0 and last_s != NEVER_S
            run.closed_s = last_s if is_cut else max(run.now_s, run.horizon_s)
        else:
            run.closed_s = run.now_s
    return status

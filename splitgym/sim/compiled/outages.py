"""What goes wrong, as in `splitgym.sim.outages`."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from splitgym.jit import inner_njit, njit, seldom_njit
from splitgym.sim import books as b
from splitgym.sim.clock import FAULT, ROLE_READY
from splitgym.sim.compiled import log as lg
from splitgym.sim.compiled.chains import take_from_unplaced
from splitgym.sim.compiled.events import cancel, plan_iteration_end, plan_start
from splitgym.sim.compiled.memory import offer_room
from splitgym.sim.compiled.notes import note_change
from splitgym.sim.compiled.prefix import GIVE_UP
from splitgym.sim.compiled.slots import PREFIXES, call, state_at
from splitgym.sim.compiled.state import NEVER_S, State
from splitgym.sim.compiled.withdrawal import ask_again, take_leave, withdraw
from splitgym.sim.faults import DOWN, NOBODY, PACE
from splitgym.sim.rows import ABANDONED, IN_FLIGHT
from splitgym.view import DOWN as IS_DOWN
from splitgym.view import DRAINING, READY, SWITCHING

IntArray = npt.NDArray[np.int64]


@njit
def outages_at(a: IntArray, what: int, m: int, r: int, _number: int) -> int:
    """A FAULT; or an iteration ends, and those withdrawn during it leave."""
    s = state_at(a)
    if what == FAULT:
        go_wrong(s, m, r)
    else:
        take_leave(s, m)
    return 0


@seldom_njit
def go_wrong(s: State, m: int, number: int) -> None:
    """Let happen what is to happen to a machine, by its number in `State.faults`, or to a request (NOBODY)."""
    if m == NOBODY:
        give_up(s, number)
        return
    change = s.faults[number]
    if change.kind == PACE:
        s.machines[m].pace = change.factor
    elif change.kind == DOWN:
        go_down(s, m)
    else:
        come_up(s, m)


@inner_njit
def go_down(s: State, m: int) -> None:
    """Its work and its caches are lost; requests that had or were to have either of its phases there begin again."""
    machine, run, lifecycle = s.machines[m], s.run[0], s.books[m, b.LIFECYCLE]
    if lifecycle == DRAINING:
        drain_no_more(s, m)
    elif lifecycle == SWITCHING:
        cancel(s, ROLE_READY, m, 0)
    s.books[m, b.LIFECYCLE] = IS_DOWN
    note_change(s, m)
    s.masked[0] = -1
    machine.loses_prompts = machine.loses_tokens = False
    machine.down_since_s = run.now_s
    lg.log(s, lg.DOWN, m, -1)
    take_leave(s, m)
    for r in range(run.arrived):
        if needs(s, r, m):
            withdraw(s, r, m)
    if machine.caches_prefixes:
        call(s, PREFIXES, GIVE_UP, m, -1, 0)
    if machine.is_busy:
        machine.is_busy = False
        machine.batch_prompts = machine.batch_decodes = 0
        plan_iteration_end(s, m, NEVER_S)
        plan_start(s, m)


@inner_njit
def drain_no_more(s: State, m: int) -> None:
    """Take a machine out of the chain of those that drain."""
    run = s.run[0]
    before, member = -1, run.first_draining
    while member != m:
        before, member = member, s.machines[member].next_draining
    following = s.machines[m].next_draining
    if before < 0:
        run.first_draining = following
    else:
        s.machines[before].next_draining = following
    if following < 0:
        run.last_draining = before


@inner_njit
def needs(s: State, r: int, m: int) -> bool:
    """Whether a request in flight has something on a machine, or something to come there."""
    request = s.requests[r]
    is_here = m in (request.token_machine, request.cache_machine)
    return is_here and request.status == IN_FLIGHT


@inner_njit
def come_up(s: State, m: int) -> None:
    """It is empty, and ready in the role that it last had or was to have."""
    s.books[m, b.LIFECYCLE] = READY
    note_change(s, m)
    s.masked[0] = -1
    lg.log(s, lg.UP, m, -1)
    lg.log_stretch(s, lg.OUTAGE, m, -1, s.machines[m].down_since_s, 0, 0)
    offer_room(s, m)
    place_waiting(s)


@seldom_njit
def place_waiting(s: State) -> None:
    """Ask again about the requests for which there was no machine."""
    run = s.run[0]
    r = run.unplaced_first
    while r >= 0:
        ask_again(s, r)
        r = s.requests[r].next
    run.unplaced_first = run.unplaced_last = -1


@seldom_njit
def wait_for_a_machine(s: State, r: int) -> None:
    """There is no machine for a request now."""
    run = s.run[0]
    s.requests[r].next = -1
    if run.unplaced_last < 0:
        run.unplaced_first = r
    else:
        s.requests[run.unplaced_last].next = r
    run.unplaced_last = r


@seldom_njit
def may_wait(s: State) -> bool:
    """Whether a request that fits nowhere now may later: a machine is down."""
    is_one_down = False
    for m in range(len(s.machines)):
        is_one_down |= s.books[m, b.LIFECYCLE] == IS_DOWN
    return is_one_down


@inner_njit
def give_up(s: State, r: int) -> None:
    """The client has waited long enough."""
    request = s.requests[r]
    if request.status != IN_FLIGHT:
        return
    request.status = ABANDONED
    s.run[0].lost += 1
    lg.log(s, lg.ABANDONED, -1, r)
    if request.prompt_machine < 0:
        take_from_unplaced(s, r)
    else:
        withdraw(s, r, -1)

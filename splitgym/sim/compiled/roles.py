"""Roles change at a cost, as in `splitgym.sim.roles`."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from splitgym.jit import inner_njit, njit
from splitgym.sim import books as b
from splitgym.sim.clock import ROLE_READY
from splitgym.sim.compiled import log as lg
from splitgym.sim.compiled.events import plan
from splitgym.sim.compiled.memory import lost_work_is_done, offer_room
from splitgym.sim.compiled.migration import LEAVE_PHASES
from splitgym.sim.compiled.notes import note_change
from splitgym.sim.compiled.outages import place_waiting
from splitgym.sim.compiled.prefix import GIVE_UP
from splitgym.sim.compiled.slots import MIGRATION, PREFIXES, call, state_at
from splitgym.sim.compiled.state import State
from splitgym.view import DRAINING, MIXED, PROMPT, READY, SWITCHING, TOKEN

IntArray = npt.NDArray[np.int64]

CHANGE_ROLE, SETTLE, END_SWITCH = range(3)
"""What `roles_at` does."""


@njit
def roles_at(a: IntArray, what: int, m: int, role: int, _number: int) -> int:
    """`change_role`, `settle` or `end_switch`."""
    s = state_at(a)
    if what == CHANGE_ROLE:
        change_role(s, m, role)
    elif what == SETTLE:
        settle(s)
    else:
        end_switch(s, m)
    return 0


@inner_njit
def change_role(s: State, m: int, role: int) -> None:
    """Becoming mixed only permits more and is done at once; giving up a phase drains, then takes ``switch_s``."""
    machine, row, run = s.machines[m], s.books[m], s.run[0]
    old = int(row[b.ROLE])
    row[b.ROLE] = role
    note_new_role(s, m)
    lg.log(s, lg.ROLE + role, m, -1)
    if s.run[0].unplaced_first >= 0:
        place_waiting(s)
    if role == MIXED:
        return
    row[b.LIFECYCLE] = DRAINING
    machine.loses_prompts = old != TOKEN and role != PROMPT
    machine.loses_tokens = old != PROMPT and role != TOKEN
    machine.next_draining = -1
    if run.last_draining < 0:
        run.first_draining = m
    else:
        s.machines[run.last_draining].next_draining = m
    run.last_draining = m
    if run.migrates:
        call(s, MIGRATION, LEAVE_PHASES, m, -1, 0)
    settle(s)


@inner_njit
def settle(s: State) -> None:
    """Let machines go on whose draining is over."""
    run = s.run[0]
    run.may_settle = False
    before = -1
    m = run.first_draining
    while m >= 0:
        machine = s.machines[m]
        following = machine.next_draining
        at_once = run.switch_s == 0
        is_empty = machine.kv_used_tokens == 0 and not machine.is_busy and machine.put_back == 0
        if lost_work_is_done(s, m) and (at_once or is_empty):
            if before < 0:
                run.first_draining = following
            else:
                s.machines[before].next_draining = following
            if following < 0:
                run.last_draining = before
            if at_once:
                become_ready(s, m)
            else:
                s.books[m, b.LIFECYCLE] = SWITCHING
                if machine.caches_prefixes:
                    call(s, PREFIXES, GIVE_UP, m, -1, 0)
                note_new_role(s, m)
                machine.switch_start_s = run.now_s
                lg.log(s, lg.SWITCHING, m, -1)
                plan(s, run.now_s + run.switch_s, ROLE_READY, m, 0)
        else:
            before = m
        m = following


@inner_njit
def end_switch(s: State, m: int) -> None:
    """The machine has restarted."""
    lg.log_stretch(s, lg.SWITCH, m, -1, s.machines[m].switch_start_s, 0, 0)
    become_ready(s, m)


@inner_njit
def become_ready(s: State, m: int) -> None:
    """It serves in its new role."""
    s.books[m, b.LIFECYCLE] = READY
    note_new_role(s, m)
    s.machines[m].loses_prompts = s.machines[m].loses_tokens = False
    lg.log(s, lg.READY, m, -1)
    offer_room(s, m)
    if s.run[0].unplaced_first >= 0:
        place_waiting(s)


@inner_njit
def note_new_role(s: State, m: int) -> None:
    """Role or lifecycle of a machine changes: masks are to be filled anew, too."""
    note_change(s, m)
    s.masked[0] = -1

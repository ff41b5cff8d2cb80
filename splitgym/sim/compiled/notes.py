"""Which machines have changed: one list, of which each reader remembers how far it has read.

A change is noted before it is made. Notes are numbered from 1. A reader keeps the number that `State.run`'s ``noted``
had when it looked, 0 if it never did.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from splitgym.jit import inner_njit, njit
from splitgym.sim import books as b
from splitgym.sim.compiled.slots import SCRAPES, call, state_at
from splitgym.sim.compiled.state import State
from splitgym.sim.telemetry import NEXT_S, scrape
from splitgym.view import DRAINING

IntArray = npt.NDArray[np.int64]


@inner_njit
def note_change(s: State, m: int) -> None:
    """The books' row of a machine is to change, and so will its features. Noted once until somebody reads it."""
    run, machine = s.run[0], s.machines[m]
    if run.is_stale:
        keep_report(s, m)
    if machine.noted < run.read:
        machine.noted = run.noted
        s.notes[len(s.machines) + run.noted - run.first_noted] = m
        run.noted += 1
    if s.books[m, b.LIFECYCLE] == DRAINING:
        run.may_settle = True


@inner_njit
def keep_report(s: State, m: int) -> bool:
    """Keep what a machine has said of itself since its last scrape, if there is a new one."""
    return s.run[0].now_s >= s.reports[m, NEXT_S] and call(s, SCRAPES, 0, m, -1, 0) > 0


@njit
def scrapes_at(a: IntArray, _what: int, m: int, _r: int, _number: int) -> int:
    """`scrape`: whether there is a new one."""
    s = state_at(a)
    row = s.books[m]
    is_new = scrape(s.reports[m], m, s.run[0].now_s, row[b.RUNNING], row[b.WAITING], row[b.KV_HELD])
    return 1 if is_new else 0


@inner_njit
def note_scrapes(s: State) -> None:
    """Bring all reports up to now; what is new there changes features, too."""
    for m in range(len(s.machines)):
        if keep_report(s, m):
            note_change(s, m)


@inner_njit
def changed_since(s: State, noted: int) -> tuple[int, int]:
    """Where in ``s.notes`` the machines stand that have changed since there were ``noted`` notes: from, and before.

    Some may stand there twice; it is all machines if that is long ago. To be used at once: later notes may be written
    over them.
    """
    run, count = s.run[0], len(s.machines)
    first, last = count + noted - run.first_noted, count + run.noted - run.first_noted
    run.read = run.noted
    if last + count > len(s.notes):  # before the next look there may be a note for each machine
        run.first_noted = run.noted
    return (first, last) if first >= count else (0, count)

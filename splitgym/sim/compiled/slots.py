"""A run by the addresses of its arrays, so that compiled code can be handed many runs, or one, at little cost."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numba import types

from splitgym.jit import merged_njit
from splitgym.sim.books import BookArrays
from splitgym.sim.compiled.pointers import addresses, arrays_of, bools_of, callable_at, floats_of, ints_of, pointer_at
from splitgym.sim.compiled.state import CHANGE, COPY, FLOW, LINE, MACHINE, PAIR, REQUEST, RUN, TIMED, State

IntArray = npt.NDArray[np.int64]

_DESK = len(State._fields)
NUM_ARRAYS = _DESK + len(BookArrays._fields)

ADVANCE, ROLES, RECEIVING, CHUNKED, LINKS, PREFIXES, SCRAPES, LEASES, MIGRATION, OUTAGES, CHOICES = range(11)
"""Parts of the code: the loop; what stands in it at many places; discipline `vllm`; what few runs need.

A part is compiled once, whoever calls it, and only where a run needs it: it is called by its address.
"""

CODE = NUM_ARRAYS
"""The row that holds the address of the first part; the others' follow, 0 where a run does not need them."""

NUM_ROWS = CODE + 11

ADVANCE_SIGNATURE = types.int64(types.int64[:, ::1])
PART_SIGNATURE = types.int64(types.int64[:, ::1], types.int64, types.int64, types.int64, types.int64)
"""Of the other parts: a run's rows, what to do, a machine, a request, a number."""

advance_by = callable_at(ADVANCE_SIGNATURE)
"""In compiled code: the loop at its address."""

part_by = callable_at(PART_SIGNATURE)
"""In compiled code: another part at its address."""

_requests_of, _machines_of, _run_of = arrays_of(REQUEST), arrays_of(MACHINE), arrays_of(RUN)
_timed_of, _lines_of, _changes_of = arrays_of(TIMED), arrays_of(LINE), arrays_of(CHANGE)
_flows_of, _pairs_of, _copies_of = arrays_of(FLOW), arrays_of(PAIR), arrays_of(COPY)


def run_rows(state: State, desk: BookArrays, code: list[int]) -> IntArray:
    """(NUM_ROWS, 3) the addresses of a run's arrays, and of the parts of its code."""
    return np.concatenate([addresses((*state, *desk)), [[address, 0, 0] for address in code]])


@merged_njit
def state_at(a: IntArray) -> State:
    """The state whose `addresses` are the first rows of ``a``."""
    return State(
        requests=_requests_of(pointer_at(a[0, 0]), (a[0, 1],)),
        machines=_machines_of(pointer_at(a[1, 0]), (a[1, 1],)),
        books=floats_of(pointer_at(a[2, 0]), (a[2, 1], a[2, 2])),
        laws=floats_of(pointer_at(a[3, 0]), (a[3, 1], a[3, 2])),
        masked=ints_of(pointer_at(a[4, 0]), (a[4, 1],)),
        notes=ints_of(pointer_at(a[5, 0]), (a[5, 1],)),
        run=_run_of(pointer_at(a[6, 0]), (a[6, 1],)),
        iterations=_timed_of(pointer_at(a[7, 0]), (a[7, 1],)),
        events=_timed_of(pointer_at(a[8, 0]), (a[8, 1],)),
        flows=_flows_of(pointer_at(a[9, 0]), (a[9, 1],)),
        starts=_timed_of(pointer_at(a[10, 0]), (a[10, 1],)),
        deadlines=_timed_of(pointer_at(a[11, 0]), (a[11, 1],)),
        ends=_timed_of(pointer_at(a[12, 0]), (a[12, 1],)),
        gaps=_timed_of(pointer_at(a[13, 0]), (a[13, 1],)),
        blocked=bools_of(pointer_at(a[14, 0]), (a[14, 1], a[14, 2])),
        log=_lines_of(pointer_at(a[15, 0]), (a[15, 1],)),
        residues=ints_of(pointer_at(a[16, 0]), (a[16, 1], a[16, 2])),
        pairs=_pairs_of(pointer_at(a[17, 0]), (a[17, 1],)),
        flow_ends=_timed_of(pointer_at(a[18, 0]), (a[18, 1],)),
        reports=floats_of(pointer_at(a[19, 0]), (a[19, 1], a[19, 2])),
        copies=_copies_of(pointer_at(a[20, 0]), (a[20, 1],)),
        first_copies=ints_of(pointer_at(a[21, 0]), (a[21, 1],)),
        prefix_first=ints_of(pointer_at(a[22, 0]), (a[22, 1],)),
        prefix_names=ints_of(pointer_at(a[23, 0]), (a[23, 1],)),
        faults=_changes_of(pointer_at(a[24, 0]), (a[24, 1],)),
        rows=a,
    )


@merged_njit
def desk_at(a: IntArray) -> BookArrays:
    """The books whose `addresses` are the rows of ``a`` after those of a state."""
    d = a[_DESK:]
    return BookArrays(
        rows=floats_of(pointer_at(d[0, 0]), (d[0, 1], d[0, 2])),
        facts=floats_of(pointer_at(d[1, 0]), (d[1, 1], d[1, 2])),
        laws=floats_of(pointer_at(d[2, 0]), (d[2, 1], d[2, 2])),
        baseline_law=floats_of(pointer_at(d[3, 0]), (d[3, 1],)),
        costs=floats_of(pointer_at(d[4, 0]), (d[4, 1],)),
        arrived=floats_of(pointer_at(d[5, 0]), (d[5, 1], d[5, 2])),
        window=ints_of(pointer_at(d[6, 0]), (d[6, 1],)),
        masked=ints_of(pointer_at(d[7, 0]), (d[7, 1],)),
        times=floats_of(pointer_at(d[8, 0]), (d[8, 1], d[8, 2])),
        scaled_times=floats_of(pointer_at(d[9, 0]), (d[9, 1], d[9, 2])),
        machines=floats_of(pointer_at(d[10, 0]), (d[10, 1], d[10, 2])),
        request=floats_of(pointer_at(d[11, 0]), (d[11, 1],)),
        cluster=floats_of(pointer_at(d[12, 0]), (d[12, 1],)),
        prompt_mask=bools_of(pointer_at(d[13, 0]), (d[13, 1],)),
        token_mask=bools_of(pointer_at(d[14, 0]), (d[14, 1],)),
        role_mask=bools_of(pointer_at(d[15, 0]), (d[15, 1], d[15, 2])),
        promises=floats_of(pointer_at(d[16, 0]), (d[16, 1], d[16, 2])),
        reports=floats_of(pointer_at(d[17, 0]), (d[17, 1], d[17, 2])),
        hits=floats_of(pointer_at(d[18, 0]), (d[18, 1],)),
        whole_mask=bools_of(pointer_at(d[19, 0]), (d[19, 1],)),
    )


@merged_njit
def call(s: State, part: int, what: int, m: int, r: int, number: int) -> int:
    """Have a part do something."""
    return part_by(s.rows[CODE + part, 0])(s.rows, what, m, r, number)  # type: ignore[no-any-return]

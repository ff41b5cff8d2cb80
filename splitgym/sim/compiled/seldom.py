"""What seldom happens, in a part of its own (`splitgym.sim.compiled.slots`), so that other runs need not compile it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from splitgym.jit import njit
from splitgym.sim.clock import FAULT, LEASE_END
from splitgym.sim.cluster import Scenario
from splitgym.sim.compiled.leases import end_lease
from splitgym.sim.compiled.outages import go_wrong
from splitgym.sim.compiled.slots import state_at
from splitgym.sim.compiled.withdrawal import take_leave

IntArray = npt.NDArray[np.int64]


def is_needed(scenario: Scenario) -> bool:
    """Whether a run of ``scenario`` may call `seldom_at`."""
    return scenario.is_disturbed or scenario.cluster.transfer.kv_lease_s is not None


@njit
def seldom_at(a: IntArray, kind: int, m: int, number: int) -> int:
    """The end of a lease, a fault, or else those withdrawn during an iteration leave; see what each calls."""
    s = state_at(a)
    if kind == LEASE_END:
        end_lease(s)
    elif kind == FAULT:
        go_wrong(s, m, number)
    else:
        take_leave(s, m)
    return 0

"""ClusterView and Decision: what every decision maker sees and what it returns, in the simulator and in the router."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from splitgym.features import CLUSTER_COLUMN, MACHINE_COLUMN, REQUEST_COLUMN

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

DECISION_KINDS = ("arrival", "prompt_end", "tick")
ARRIVAL, PROMPT_END, TICK = range(3)

ROLES = ("prompt", "token", "mixed")
PROMPT, TOKEN, MIXED = range(3)

LIFECYCLES = ("ready", "draining", "switching", "down")
READY, DRAINING, SWITCHING, DOWN = range(4)


ADMISSIONS = ("admit", "hold", "refuse")
ADMIT, HOLD, REFUSE = range(3)


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do now. Role changes come first; a machine that a role change opens may be named in the same decision.

    At an arrival both machines are named (they may be one); at a tick neither is. Where the token machine is chosen
    late (`splitgym.sim.cluster.Cluster.token_choice`), an arrival names the prompt machine and a prompt end the token
    machine; the other counts for nothing. Where the cluster permits it (`splitgym.sim.cluster.Cluster.admission`), an
    arrival may be held back, to be asked about again at the next tick, or refused; then no machine is named.
    """

    prompt_machine: int = -1
    token_machine: int = -1
    role_changes: tuple[tuple[int, int], ...] = ()  # (machine, role)
    admission: int = ADMIT  # or HOLD, REFUSE


@dataclass(frozen=True, slots=True)
class ClusterView:
    """What may be known when a decision is due. The arrays are reused at the next one: copy what must last.

    Columns are named in `splitgym.features`, in their units; the request's are 0 at a tick.
    """

    kind: int  # ARRIVAL, PROMPT_END or TICK
    time_s: float
    machines: FloatArray  # (num_machines, NUM_MACHINE_FEATURES)
    request: FloatArray  # (NUM_REQUEST_FEATURES,)
    cluster: FloatArray  # (NUM_CLUSTER_FEATURES,)
    prompt_mask: BoolArray  # (num_machines,) where the prompt may be sent; at a prompt end, where it was processed
    token_mask: BoolArray  # (num_machines,) where the token phase may be sent; none where that is asked for later
    role_mask: BoolArray  # (num_machines, 3) what a machine may be changed to

    @property
    def num_machines(self) -> int:
        """How many machines there are."""
        return len(self.machines)

    def __getitem__(self, name: str) -> FloatArray:
        """The machine feature ``name`` (num_machines,)."""
        return self.machines[:, MACHINE_COLUMN[name]]

    def of_request(self, name: str) -> float:
        """The request feature ``name``."""
        return float(self.request[REQUEST_COLUMN[name]])

    def of_cluster(self, name: str) -> float:
        """The cluster feature ``name``."""
        return float(self.cluster[CLUSTER_COLUMN[name]])

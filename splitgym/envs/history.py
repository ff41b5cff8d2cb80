"""What pictures show over time: pools, queues and KV use, one sample per step."""

from __future__ import annotations

from dataclasses import dataclass, field

from splitgym.sim.ledger import Meters
from splitgym.sim.outside import MachineState
from splitgym.view import ROLES


@dataclass(frozen=True)
class Sample:
    """The cluster at one time; dictionaries are by role."""

    time_s: float
    machines: dict[str, int]  # ready ones
    changing: int  # draining or switching
    prompts_waiting: int
    prompts_running: int
    decodes: int
    kv_use: dict[str, float]  # KV-cache in use over capacity, 0 where there is no machine


@dataclass
class History:
    """Samples of an episode, and all about the present."""

    meters: Meters
    machines: list[MachineState]
    samples: list[Sample] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.add(self.meters, self.machines)

    def add(self, meters: Meters, machines: list[MachineState]) -> None:
        """What is, now."""
        self.meters, self.machines = meters, machines
        pools = {role: [machine for machine in machines if machine.role == role] for role in ROLES}
        self.samples.append(
            Sample(
                meters.time_s,
                {role: sum(machine.lifecycle == "ready" for machine in pool) for role, pool in pools.items()},
                sum(machine.lifecycle != "ready" for machine in machines),
                sum(machine.queued_prompts for machine in machines),
                sum(machine.running_prompts for machine in machines),
                sum(machine.decodes for machine in machines),
                {role: _kv_use(pool) for role, pool in pools.items()},
            )
        )


def _kv_use(pool: list[MachineState]) -> float:
    capacity = sum(machine.kv_capacity_tokens for machine in pool)
    return sum(machine.kv_used_tokens for machine in pool) / capacity if capacity else 0.0

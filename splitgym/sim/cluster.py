"""What is simulated: a cluster and a scenario, validated and frozen."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt

from splitgym.hardware import HardwareProfile, ModelSpec
from splitgym.view import ROLES
from splitgym.workload import Requests

FloatArray = npt.NDArray[np.float64]

KV_BLOCK_TOKENS = 16
"""Of a KV-cache that is sent block by block: vLLM's default."""


@dataclass(frozen=True)
class Batching:
    """Discipline `splitwise`: whole prompts, mixed batches. Defaults: the published simulator's."""

    max_batch_tokens: int = 2048
    max_batch_size: int = 512
    max_preemptions: int = 4


@dataclass(frozen=True)
class Transfer:
    """How a KV-cache gets from the prompt machine to the token machine."""

    mode: str = "serialized"  # or "layerwise"
    overhead_s: float = 0.0  # of each transfer, before its bytes are on the link
    overhead_per_block_s: float = 0.0  # of each block of KV_BLOCK_TOKENS, too
    network: str = "ideal"  # every transfer has the full link; or "shared"

    @property
    def is_shared(self) -> bool:
        """Whether transfers share the links at both ends."""
        return self.network == "shared"

    def overhead_of_s(self, prompt_tokens: int) -> float:
        """What sending that much takes beside its bytes."""
        return self.overhead_s + self.overhead_per_block_s * (-(-prompt_tokens // KV_BLOCK_TOKENS))


@dataclass(frozen=True)
class Slo:
    """Slowdowns against the baseline machine at P50, P90, P99; all nine must hold. Defaults: Splitwise, Table VI."""

    ttft: tuple[float, float, float] = (2.0, 3.0, 6.0)
    tbt: tuple[float, float, float] = (1.25, 1.5, 5.0)
    e2e: tuple[float, float, float] = (1.25, 1.5, 5.0)


@dataclass(frozen=True)
class Machine:
    """One model replica on one tensor-parallel group."""

    role: int  # index into ROLES; its home
    profile: HardwareProfile

    @property
    def role_name(self) -> str:
        """``prompt``, ``token`` or ``mixed``."""
        return ROLES[self.role]


@dataclass(frozen=True)
class Cluster:
    """Machines of one model, how they batch, transfer and change roles, and what they are measured against."""

    machines: tuple[Machine, ...]
    model: ModelSpec
    baseline: HardwareProfile  # slowdown is against a request alone on this
    batching: Batching = field(default_factory=Batching)
    transfer: Transfer = field(default_factory=Transfer)
    slo: Slo = field(default_factory=Slo)
    switch_s: float = 0.0
    frontend_s: float = 0.0  # what router and HTTP add to TTFT and E2E

    @property
    def num_machines(self) -> int:
        """How many machines there are."""
        return len(self.machines)

    @cached_property
    def laws(self) -> tuple[FloatArray, list[int]]:
        """The packed latency laws (num_laws, LAW_SIZE), each once, and for each machine which is its."""
        laws = [machine.profile.law for machine in self.machines]
        number = {law: n for n, law in enumerate(dict.fromkeys(laws))}
        return np.stack([law.packed() for law in number]), [number[law] for law in laws]


@dataclass(frozen=True)
class Scenario:
    """One run: a cluster, what arrives, and when it counts.

    Attributes:
        requests: all arrivals, warm-up included.
        warmup_s: requests that arrive before are served but not counted.
        horizon_s: the run's end for a learner; ``inf`` where it lasts until every request is done.
        drain_s: how long after the horizon unfinished requests are followed before they are charged as they stand.
        tick_s: time between control ticks; ``None`` for none.
        seed: of the draws made during the run (random policies).
    """

    cluster: Cluster
    requests: Requests
    warmup_s: float = 0.0
    horizon_s: float = float("inf")
    drain_s: float = float("inf")
    tick_s: float | None = 5.0
    seed: int = 0

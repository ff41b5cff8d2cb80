"""What is simulated: a cluster and a scenario, validated and frozen."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt

from splitgym.errors import SplitgymError
from splitgym.hardware import HardwareProfile, LatencyLaw, ModelSpec
from splitgym.sim.faults import Faults
from splitgym.view import ROLES
from splitgym.workload import Prefixes, Requests

FloatArray = npt.NDArray[np.float64]

KV_BLOCK_TOKENS = 16
"""Of a KV-cache that is sent block by block where the discipline has no blocks: vLLM's default."""


@dataclass(frozen=True)
class Batching:
    """Discipline `splitwise`: whole prompts, mixed batches. Defaults: the published simulator's."""

    max_batch_tokens: int = 2048
    max_batch_size: int = 512
    max_preemptions: int = 4


TOKEN_CHOICE = ("arrival", "prompt_end")
"""When the token machine of a request is chosen."""

FIRST_TOKEN = ("prompt_machine", "token_machine")
"""Where the first token of a request is made whose cache is sent."""

MAX_BLOCK_SIZE = 1024
"""Most tokens in a block of KV memory."""

NUM_PROMISES = 5
"""Columns of `Cluster.promises`."""

MOST_LOSS = 0.99
"""Most scrapes that may fail, as a share."""


@dataclass(frozen=True)
class VllmBatching:
    """Discipline `vllm`: decodes always, prompts in chunks, KV memory in blocks. Defaults: vLLM's.

    Raises:
        ValueError: if a batch could not hold a token of each sequence, or the watermark keeps all memory free.
    """

    max_num_seqs: int = 256
    max_num_batched_tokens: int = 2048
    block_size: int = 16  # tokens
    watermark: float = 0.0  # share of the blocks that an admission leaves free, unless nothing runs
    prefix_caching: bool = False  # whether blocks that nobody uses are kept for prompts that begin with them

    def __post_init__(self) -> None:
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ValueError(
                f"max_num_batched_tokens {self.max_num_batched_tokens} is below max_num_seqs {self.max_num_seqs}; "
                "raise it, for each sequence may need a token in one iteration"
            )
        if not 1 <= self.block_size <= MAX_BLOCK_SIZE:
            raise ValueError(f"block_size {self.block_size}; give a whole number from 1 to {MAX_BLOCK_SIZE}")
        if not 0 <= self.watermark < 1:
            raise ValueError(f"watermark {self.watermark:g} is no share of the blocks; give a number from 0 to below 1")


@dataclass(frozen=True)
class Transfer:
    """How a KV-cache gets from the prompt machine to the token machine."""

    mode: str = "serialized"  # or "layerwise"
    overhead_s: float = 0.0  # of each transfer, before its bytes are on the link
    overhead_per_block_s: float = 0.0  # of each block of `Cluster.kv_block_tokens`, too
    network: str = "ideal"  # every transfer has the full link; or "shared"
    kv_lease_s: float | None = None  # how long after its prompt phase a cache may wait for room elsewhere

    @property
    def is_shared(self) -> bool:
        """Whether transfers share the links at both ends."""
        return self.network == "shared"


@dataclass(frozen=True)
class Telemetry:
    """How engines are asked what they say of themselves: each every so often, sometimes in vain.

    Raises:
        ValueError: for an interval that is not positive, a jitter longer than it, or a loss that is no share.
    """

    scrape_interval_s: float
    jitter_s: float = 0.0  # a scrape comes by up to this later
    loss: float = 0.0  # the share of scrapes that fail

    def __post_init__(self) -> None:
        if not 0 < self.scrape_interval_s < float("inf"):
            raise ValueError(f"scrape_interval_s {self.scrape_interval_s:g}; give seconds above 0")
        if not 0 <= self.jitter_s <= self.scrape_interval_s:
            raise ValueError(f"jitter_s {self.jitter_s:g}; give 0 to scrape_interval_s ({self.scrape_interval_s:g})")
        if not 0 <= self.loss <= MOST_LOSS:
            raise ValueError(f"loss {self.loss:g}; give the share of scrapes that fail, 0 to {MOST_LOSS:g}")


@dataclass(frozen=True)
class Slo:
    """Slowdowns against the baseline machine at P50, P90, P99; all nine must hold. Defaults: Splitwise, Table VI."""

    ttft: tuple[float, float, float] = (2.0, 3.0, 6.0)
    tbt: tuple[float, float, float] = (1.25, 1.5, 5.0)
    e2e: tuple[float, float, float] = (1.25, 1.5, 5.0)


@dataclass(frozen=True)
class SloSeconds:
    """Bounds in seconds, for each request: TTFT, mean time between tokens and, if wanted, E2E."""

    ttft_s: float
    tbt_s: float
    e2e_s: float = float("inf")


@dataclass(frozen=True)
class RequestClass:
    """Requests that are promised the same. Of slowdowns each request is promised those at P90."""

    name: str
    slo: Slo | SloSeconds


@dataclass(frozen=True)
class Machine:
    """One model replica on one tensor-parallel group."""

    role: int  # index into ROLES; its home
    profile: HardwareProfile
    batching: VllmBatching | None = None  # in place of the cluster's
    power_cap_w: float | None = None
    true_law: LatencyLaw | None = None  # how it really works, where that is not what its profile says

    @property
    def role_name(self) -> str:
        """``prompt``, ``token`` or ``mixed``."""
        return ROLES[self.role]


@dataclass(frozen=True)
class Cluster:
    """Machines of one model, how they batch, transfer and change roles, and what they are measured against.

    Raises:
        ValueError: if discipline `vllm` is asked for where it cannot be had, a setting is none of its kind, or a power
            cap is below idling.
    """

    machines: tuple[Machine, ...]
    model: ModelSpec
    baseline: HardwareProfile  # slowdown is against a request alone on this
    batching: Batching | VllmBatching = field(default_factory=Batching)
    transfer: Transfer = field(default_factory=Transfer)
    slo: Slo = field(default_factory=Slo)
    switch_s: float = 0.0
    frontend_s: float = 0.0  # what router and HTTP add to TTFT and E2E
    first_token: str = "prompt_machine"  # one of FIRST_TOKEN
    telemetry: Telemetry | None = None  # None: reported features are fresh
    classes: tuple[RequestClass, ...] = ()  # `Requests.slo_class` counts them; none: `slo` holds for all
    token_choice: str = "arrival"  # one of TOKEN_CHOICE
    migrate: bool = False  # whether a machine that gives up a phase gives its work to others
    admission: bool = False  # whether a policy may hold a request back or refuse it

    def __post_init__(self) -> None:
        if self.first_token not in FIRST_TOKEN:
            raise ValueError(f"first_token {self.first_token!r}; give one of {', '.join(FIRST_TOKEN)}")
        if self.token_choice not in TOKEN_CHOICE:
            raise ValueError(f"token_choice {self.token_choice!r}; give one of {', '.join(TOKEN_CHOICE)}")
        if self.chooses_late and self.transfer.mode == "layerwise":
            raise ValueError(
                "transfer.mode layerwise needs the token machine before the prompt; leave token_choice out"
            )
        if isinstance(self.batching, VllmBatching):
            if self.transfer.mode == "layerwise":
                raise ValueError("discipline vllm sends caches serialized; leave transfer.mode layerwise out")
            if 0 in self.kv_capacity_tokens:
                raise ValueError("a machine's KV memory is smaller than one block; lower block_size")
        elif any(machine.batching is not None for machine in self.machines):
            raise ValueError("a machine has settings of its own; they need batching.discipline vllm")
        for machine in self.machines:
            idle_w, cap_w = machine.profile.power.idle_w, machine.power_cap_w
            if cap_w is not None and cap_w <= idle_w:
                raise ValueError(f"power cap {cap_w:g} W: {machine.profile.name} draws {idle_w:g} W idle; raise it")

    @property
    def chooses_late(self) -> bool:
        """Whether the token machine is chosen when the prompt phase ends."""
        return self.token_choice == "prompt_end"

    @property
    def num_machines(self) -> int:
        """How many machines there are."""
        return len(self.machines)

    @cached_property
    def vllm(self) -> tuple[VllmBatching, ...]:
        """The settings of each machine under discipline `vllm`; empty under discipline `splitwise`."""
        common = self.batching
        return tuple(m.batching or common for m in self.machines) if isinstance(common, VllmBatching) else ()

    @cached_property
    def kv_capacity_tokens(self) -> list[int]:
        """What each machine holds: whole blocks under discipline `vllm`."""
        capacities = [machine.profile.kv_capacity_tokens for machine in self.machines]
        if not self.vllm:
            return capacities
        return [tokens - tokens % own.block_size for tokens, own in zip(capacities, self.vllm, strict=True)]

    @cached_property
    def watermark_tokens(self) -> list[int]:
        """What each machine leaves free of them at an admission; empty under discipline `splitwise`."""
        return [
            int(own.watermark * (self.kv_capacity_tokens[m] // own.block_size)) * own.block_size
            for m, own in enumerate(self.vllm)
        ]

    @property
    def kv_block_tokens(self) -> int:
        """Of a cache that is sent block by block."""
        return self.batching.block_size if isinstance(self.batching, VllmBatching) else KV_BLOCK_TOKENS

    @property
    def class_names(self) -> tuple[str, ...]:
        """In the order in which `Requests.slo_class` counts them."""
        return tuple(kind.name for kind in self.classes)

    @cached_property
    def promises(self) -> FloatArray:
        """What a request of each class is promised, (num_classes, NUM_PROMISES); without classes one row, from `slo`.

        TTFT: a multiple of the baseline's, plus seconds; time between tokens likewise; then E2E in seconds. Where there
        is a multiple the seconds are 0, and the other way round.
        """
        rows = []
        for slo in [kind.slo for kind in self.classes] or [self.slo]:
            if isinstance(slo, Slo):
                rows.append([slo.ttft[1], 0.0, slo.tbt[1], 0.0, np.inf])
            else:
                rows.append([0.0, slo.ttft_s, 0.0, slo.tbt_s, slo.e2e_s])
        return np.array(rows)

    @cached_property
    def laws(self) -> tuple[FloatArray, list[int], list[int]]:
        """The packed laws (num_laws, LAW_SIZE), each once, and for each machine its profile's and its true one."""
        known = [(m.profile.law, m.profile.power, m.power_cap_w) for m in self.machines]
        true = [(m.true_law or m.profile.law, m.profile.power, m.power_cap_w) for m in self.machines]
        number = {law: n for n, law in enumerate(dict.fromkeys(known + true))}
        rows = [power.packed_with(law, cap_w) for law, power, cap_w in number]
        return np.stack(rows), [number[law] for law in known], [number[law] for law in true]


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
        faults: outages and slow stretches of machines.

    Raises:
        SplitgymError: if a machine's blocks do not fit into those in which prefixes are known.
        ValueError: if a fault names a machine that there is not.
    """

    cluster: Cluster
    requests: Requests
    warmup_s: float = 0.0
    horizon_s: float = float("inf")
    drain_s: float = float("inf")
    tick_s: float | None = 5.0
    seed: int = 0
    faults: Faults = field(default_factory=Faults)

    def __post_init__(self) -> None:
        count = self.cluster.num_machines
        for machine in self.faults.machines:
            if not 0 <= machine < count:
                raise ValueError(f"faults: machine {machine} does not exist; there are {count}, 0 to {count - 1}")
        if self.prefixes is None:
            return
        for own in self.cluster.vllm:
            if self.prefixes.block_tokens % own.block_size:
                raise SplitgymError(
                    f"batching.block_size {own.block_size}: the workload's prefixes are known in blocks of "
                    f"{self.prefixes.block_tokens} tokens; give a divisor of that, or prefix_caching: false"
                )

    @property
    def is_disturbed(self) -> bool:
        """Whether requests may be lost on their way: by outages, given up by their clients, or refused."""
        return bool(self.faults) or self.requests.have_deadlines or self.cluster.admission

    @property
    def caches_prefixes(self) -> bool:
        """Whether any machine keeps blocks that nobody uses."""
        return any(own.prefix_caching for own in self.cluster.vllm)

    @property
    def prefixes(self) -> Prefixes | None:
        """Which prompts begin alike, where machines make use of it."""
        return self.requests.prefixes if self.caches_prefixes else None

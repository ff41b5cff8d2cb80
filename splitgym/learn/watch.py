"""One run watched closely: what pictures and timelines are drawn from."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from splitgym.metrics import charge
from splitgym.policies import Policy
from splitgym.sim.cluster import Cluster, Scenario
from splitgym.sim.recorder import Slice
from splitgym.sim.rows import RequestRows
from splitgym.sim.run import DEFAULT_ENGINE, run
from splitgym.view import ROLES, ClusterView, Decision

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

TIMELINE = {
    "prompt_machines": "machines in role prompt",
    "token_machines": "machines in role token",
    "mixed_machines": "machines in role mixed",
    "changing_machines": "machines draining or switching",
    "pending_prompts": "requests without a first token, all machines",
    "decodes": "requests in their token phase, all machines",
    "kv_used_percent": "KV-cache in use, percent of all machines' capacity",
    "busiest_kv_percent": "KV-cache in use on the fullest machine, percent of its capacity",
    "arrival_rate_rps": "arrivals per second, over the last 10 to 20 s",
}
"""What is sampled along a run."""


@dataclass(frozen=True)
class Watched:
    """What one run of one policy was like.

    Attributes:
        rows: what happened to each request.
        ttft_s: (num_counted,) of the requests after warm-up, charged as in `splitgym.metrics.Charged`.
        tbt_s: (num_counted,) mean time between tokens; NaN for one token.
        e2e_s: (num_counted,).
        slices: what each machine did when.
        timeline: name of `TIMELINE` → (num_samples,).
        sample_s: (num_samples,) when, in simulated seconds.
        roles: (num_machines,) home roles.
        hardware: (num_machines,) names.
        counted_s: from the end of warm-up to the horizon.
    """

    rows: RequestRows
    ttft_s: FloatArray
    tbt_s: FloatArray
    e2e_s: FloatArray
    slices: tuple[Slice, ...]
    timeline: dict[str, FloatArray]
    sample_s: FloatArray
    roles: tuple[str, ...]
    hardware: tuple[str, ...]
    counted_s: tuple[float, float]

    def decodes(self, machine: int, time_s: FloatArray) -> IntArray:
        """(num_times,) how many requests are in their token phase on ``machine``, their KV-caches there."""
        rows = self.rows
        is_sent = ~np.isnan(rows.transfer_end_s)
        here = (rows.token_machine == machine) & ((rows.output_tokens > 1) | is_sent)
        stays = rows.prompt_machine == rows.token_machine
        begin_s = np.where(stays, rows.first_token_s, rows.transfer_end_s)[here]
        known = ~np.isnan(begin_s)  # one whose cache was dropped and computed again is left out
        begun = np.searchsorted(np.sort(begin_s[known]), time_s, side="right")
        ended_s = rows.finish_s[here][known]
        return np.asarray(begun - np.searchsorted(np.sort(ended_s[~np.isnan(ended_s)]), time_s, side="right"))


@dataclass(eq=False)
class Sampler:
    """A policy that notes the state of the cluster, at most once in ``every_s``, and decides as ``policy`` does."""

    policy: Policy
    every_s: float = 1.0
    sample_s: list[float] = field(default_factory=list)
    samples: list[tuple[float, ...]] = field(default_factory=list)
    name: str = field(init=False)

    def __post_init__(self) -> None:
        self.name = self.policy.name

    def reset(self, cluster: Cluster, seed: int) -> None:
        """Reset the policy, and forget."""
        self.sample_s.clear()
        self.samples.clear()
        self.policy.reset(cluster, seed)

    def observe_scenario(self, scenario: Scenario) -> None:
        """Hand the scenario to a policy that looks at it."""
        observe = getattr(self.policy, "observe_scenario", None)
        if observe is not None:
            observe(scenario)

    def decide(self, view: ClusterView) -> Decision:
        """Sample, then decide."""
        number = view.time_s // self.every_s
        if not self.sample_s or number > self.sample_s[-1] // self.every_s:
            self.sample_s.append(view.time_s)
            self.samples.append(_sample(view))
        return self.policy.decide(view)


def watch(
    scenario: Scenario, policy: Policy, *, warmup_policy: Policy | None = None, engine: str = DEFAULT_ENGINE
) -> Watched:
    """Run ``scenario`` once and keep what pictures need."""
    sampler = Sampler(policy)
    warmup_sampler = None if warmup_policy is None else Sampler(warmup_policy)
    result = run(scenario, sampler, warmup_policy=warmup_sampler, engine=engine, record=True)
    samplers = [sampler] if warmup_sampler is None else [warmup_sampler, sampler]
    sample_s = [time_s for each in samplers for time_s in each.sample_s]
    samples = np.array([row for each in samplers for row in each.samples]).reshape(-1, len(TIMELINE))
    charged = charge(result.rows, scenario)
    assert result.recorder is not None
    return Watched(
        rows=result.rows,
        ttft_s=charged.ttft_s,
        tbt_s=charged.tbt_s,
        e2e_s=charged.e2e_s,
        slices=tuple(result.recorder.slices()),
        timeline=dict(zip(TIMELINE, samples.T, strict=True)),
        sample_s=np.array(sample_s),
        roles=tuple(machine.role_name for machine in scenario.cluster.machines),
        hardware=tuple(machine.profile.hardware for machine in scenario.cluster.machines),
        counted_s=(scenario.warmup_s, min(scenario.horizon_s, result.rows.end_s)),
    )


def _sample(view: ClusterView) -> tuple[float, ...]:
    capacity_tokens, held_tokens = view["kv_capacity_tokens"], view["kv_held_tokens"]
    return (
        *(float(view[f"role_{role}"].sum()) for role in ROLES),
        float(view["draining"].sum() + view["switching"].sum()),
        float(view["pending_prompts"].sum()),
        float(view["decodes"].sum()),
        100 * float(held_tokens.sum() / capacity_tokens.sum()),
        100 * float((held_tokens / capacity_tokens).max()),
        view.of_cluster("arrival_rate_rps"),
    )

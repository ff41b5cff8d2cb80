"""Run a scenario under a policy from start to end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from splitgym.errors import SplitgymError, did_you_mean
from splitgym.sim.cluster import Cluster, Scenario
from splitgym.sim.compiled import CompiledEngine
from splitgym.sim.compiled.kernel import kernels_of
from splitgym.sim.ledger import Meters
from splitgym.sim.outside import InvalidDecision
from splitgym.sim.recorder import Recorder
from splitgym.sim.reference import ReferenceEngine
from splitgym.sim.rows import RequestRows
from splitgym.view import ClusterView, Decision

Engine = ReferenceEngine | CompiledEngine

ENGINES: dict[str, type[Engine]] = {"reference": ReferenceEngine, "compiled": CompiledEngine}
DEFAULT_ENGINE = "compiled"
"""Equal to the reference engine to the last bit, and some forty times faster."""


class Decider(Protocol):
    """Whoever decides (`splitgym.policies.Policy` is one)."""

    name: str

    def reset(self, cluster: Cluster, seed: int) -> None:
        """Start a run."""

    def decide(self, view: ClusterView) -> Decision:
        """Answer a decision that is due."""


@dataclass(frozen=True)
class RunResult:
    """What a run leaves behind."""

    scenario: Scenario
    rows: RequestRows
    meters: Meters
    recorder: Recorder | None  # where it was asked for
    extrapolations: tuple[str, ...]  # where a latency law was used outside the range in which it was measured
    preemptions: int  # how often a running request lost its cache (discipline `vllm`)
    recomputations: int  # how often a cache's lease ended and its prompt was computed again
    migrations: int  # how often a role change gave a request to another machine
    prefix_hit_tokens: int  # found in memory instead of computed (prefix caching), after preemptions, too
    restarts: int  # how often a request began again because a machine went down


def run(
    scenario: Scenario,
    policy: Decider,
    *,
    warmup_policy: Decider | None = None,
    engine: str = DEFAULT_ENGINE,
    record: bool = False,
) -> RunResult:
    """Simulate ``scenario`` under ``policy``, then follow what is unfinished for ``scenario.drain_s``.

    Args:
        scenario: what is simulated.
        policy: who decides.
        warmup_policy: who decides during ``scenario.warmup_s``; ``policy`` itself where it is ``None``.
        engine: a name of `ENGINES`.
        record: keep the event log.

    Raises:
        SplitgymError: if there is no such engine, or a policy names a machine or role change that does not exist or is
            not permitted.
    """
    if engine not in ENGINES:
        raise SplitgymError(f"engine: unknown {engine!r}{did_you_mean(engine, ENGINES)}")
    simulation = ENGINES[engine](scenario, record=record)
    start(policy, scenario)
    if warmup_policy is not None and warmup_policy is not policy:
        start(warmup_policy, scenario)
    decide_all(simulation, policy, policy if warmup_policy is None else warmup_policy)
    simulation.finish()
    return RunResult(
        scenario,
        simulation.rows(),
        simulation.meters(),
        simulation.recorder,
        simulation.extrapolations(),
        simulation.preemptions,
        simulation.recomputations,
        simulation.migrations,
        simulation.prefix_hit_tokens,
        simulation.restarts,
    )


def decide_all(simulation: Engine, policy: Decider, warmup_policy: Decider) -> None:
    """Drive an engine to the end of its decisions; heuristics that are compiled stay within compiled code."""
    kernels, warmup_kernels = kernels_of(policy), kernels_of(warmup_policy)
    if isinstance(simulation, CompiledEngine) and kernels is not None and warmup_kernels is not None:
        refused = simulation.run_kernels(kernels, warmup_kernels)
        if refused is not None:
            due, decision = refused
            decider = warmup_policy if due.time_s < simulation.scenario.warmup_s else policy
            carry_out(simulation, decider, due, decision)
        return
    while (view := simulation.advance()) is not None:
        decider = warmup_policy if view.time_s < simulation.scenario.warmup_s else policy
        carry_out(simulation, decider, view, decider.decide(view))


def carry_out(simulation: Engine, decider: Decider, view: ClusterView, decision: Decision) -> None:
    """Carry out a decision, or say who decided what is not permitted."""
    request = simulation.pending_request
    try:
        simulation.decide(decision)
    except (InvalidDecision, AttributeError, TypeError) as error:
        due = f"request {request}" if request >= 0 else "a control tick"
        raise SplitgymError(
            f"policy {decider.name!r}, {due} at {view.time_s:.6g} s: {error}; "
            "decide(view) must return a Decision within the view's masks"
        ) from error


def start(decider: Decider, scenario: Scenario) -> None:
    """Reset a decider for a run; an oracle is shown the scenario too."""
    decider.reset(scenario.cluster, scenario.seed)
    if hasattr(decider, "observe_scenario"):
        decider.observe_scenario(scenario)

"""Run a scenario under a policy from start to end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from splitgym.errors import SplitgymError
from splitgym.sim.cluster import Cluster, Scenario
from splitgym.sim.ledger import Meters
from splitgym.sim.recorder import Recorder
from splitgym.sim.reference import InvalidDecision, ReferenceEngine
from splitgym.sim.rows import RequestRows
from splitgym.view import ClusterView, Decision

ENGINES = {"reference": ReferenceEngine}


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


def run(
    scenario: Scenario,
    policy: Decider,
    *,
    warmup_policy: Decider | None = None,
    engine: str = "reference",
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
        SplitgymError: if a policy names a machine or role change that does not exist or is not permitted.
    """
    simulation = ENGINES[engine](scenario, record=record)
    deciders = {policy} if warmup_policy is None else {policy, warmup_policy}
    for decider in deciders:
        start(decider, scenario)
    while (view := simulation.advance()) is not None:
        warming_up = warmup_policy is not None and view.time_s < scenario.warmup_s
        decider = warmup_policy if warming_up and warmup_policy is not None else policy
        decision = decider.decide(view)
        request = simulation.pending_request
        try:
            simulation.decide(decision)
        except (InvalidDecision, AttributeError, TypeError) as error:
            due = f"request {request}" if request >= 0 else "a control tick"
            raise SplitgymError(
                f"policy {decider.name!r}, {due} at {view.time_s:.6g} s: {error}; "
                "decide(view) must return a Decision within the view's masks"
            ) from error
    simulation.finish()
    return RunResult(scenario, simulation.rows(), simulation.meters(), simulation.recorder, simulation.extrapolations())


def start(decider: Decider, scenario: Scenario) -> None:
    """Reset a decider for a run; an oracle is shown the scenario too."""
    decider.reset(scenario.cluster, scenario.seed)
    if hasattr(decider, "observe_scenario"):
        decider.observe_scenario(scenario)

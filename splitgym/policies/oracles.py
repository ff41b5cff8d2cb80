"""Oracles: policies that know what no router can. They bound what is possible and are marked as such."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from splitgym.errors import SplitgymError
from splitgym.policies import predictive
from splitgym.policies.base import need_early_choice
from splitgym.policies.compiled import Builtin, CompiledPolicy
from splitgym.policies.kernels import OUTPUT_TOKENS
from splitgym.sim.cluster import Cluster, Scenario
from splitgym.sim.compiled.engine import CompiledEngine
from splitgym.view import TICK, ClusterView, Decision

_LEAST_E2E = Builtin("least-e2e", "routing", "", predictive.least_e2e)
_LMETRIC = Builtin("lmetric", "routing", "", predictive.lmetric)


class OracleLength:
    """A heuristic that is told the true output length of the request instead of the predicted one.

    Args:
        builtin: the heuristic; least predicted E2E if ``None``.
    """

    def __init__(self, builtin: Builtin | None = None) -> None:
        self.name = "oracle-length"
        self._policy = CompiledPolicy(builtin or _LEAST_E2E)
        self._scenario: Scenario | None = None
        self._next = 0

    def reset(self, cluster: Cluster, seed: int) -> None:
        """Begin a run.

        Raises:
            SplitgymError: if the cluster chooses token machines late.
        """
        need_early_choice(f"policy {self.name!r}", cluster)
        self._policy.reset(cluster, seed)
        self._next = 0

    def observe_scenario(self, scenario: Scenario) -> None:
        """Learn what will arrive.

        Raises:
            SplitgymError: if machines go down: it knows a request by its arrival and prompt, not one that begins again.
        """
        if scenario.faults.outages:
            raise SplitgymError(f"policy {self.name!r} does not know requests that begin again; leave outages out")
        self._scenario = scenario

    def decide(self, view: ClusterView) -> Decision:
        """Ask the heuristic, with the true length in the view.

        Raises:
            SplitgymError: if the driver has not shown the scenario.
        """
        if view.kind == TICK:
            return self._policy.decide(view)
        request = view.request.copy()
        request[OUTPUT_TOKENS] = self._true_length(view)
        return self._policy.decide(replace(view, request=request))

    def _true_length(self, view: ClusterView) -> int:
        """Of the first request not yet decided that arrives now and has this prompt."""
        if self._scenario is None:
            raise SplitgymError(f"policy {self.name!r} must be shown the scenario: call observe_scenario() first")
        requests = self._scenario.requests
        index = max(self._next, int(np.searchsorted(requests.arrival_s, view.time_s)))
        while requests.prompt_tokens[index] != view.of_request("prompt_tokens"):
            index += 1
        self._next = index + 1
        return int(requests.output_tokens[index])


class Lookahead:
    """One step of lookahead: each pair of machines is tried in a simulation of what would follow.

    What follows is simulated with true arrivals and lengths, `lmetric` deciding, for ``lookahead_s``; the
    pair with the least slowdown charged so far and predicted to remain wins, ties going to the lowest prompt
    machine, then token machine. Each trial replays the run up to now: the cost grows with the square of the
    requests times the square of the machines. It must decide from the start of the run, warm-up included.

    Args:
        lookahead_s: how far each trial looks.
    """

    def __init__(self, lookahead_s: float = 10.0) -> None:
        self.name = "oracle-lookahead"
        self.lookahead_s = lookahead_s
        self._follow_up = CompiledPolicy(_LMETRIC)
        self._scenario: Scenario | None = None
        self._made: list[Decision] = []

    def reset(self, cluster: Cluster, seed: int) -> None:
        """Begin a run.

        Raises:
            SplitgymError: if the cluster chooses token machines late.
        """
        need_early_choice(f"policy {self.name!r}", cluster)
        self._made = []

    def observe_scenario(self, scenario: Scenario) -> None:
        """Learn what will happen."""
        self._scenario = scenario

    def decide(self, view: ClusterView) -> Decision:
        """Try every pair; leave roles alone.

        Raises:
            SplitgymError: if the driver has not shown the scenario, or another policy has decided before.
        """
        if self._scenario is None:
            raise SplitgymError(f"policy {self.name!r} must be shown the scenario: call observe_scenario() first")
        best = Decision()
        if view.kind != TICK:
            time_s = view.time_s
            candidates = [
                Decision(int(p), int(t))
                for p in np.flatnonzero(view.prompt_mask)
                for t in np.flatnonzero(view.token_mask)
            ]
            best = min(candidates, key=lambda candidate: self._cost(self._scenario, candidate, time_s))
        self._made.append(best)
        return best

    def _cost(self, scenario: Scenario | None, candidate: Decision, time_s: float) -> float:
        """The slowdown charged until ``lookahead_s`` from now, and what is predicted to remain then."""
        assert scenario is not None
        until_s = time_s + self.lookahead_s
        engine = CompiledEngine(replace(scenario, horizon_s=min(scenario.horizon_s, until_s)))
        view = engine.advance()
        for made in self._made:
            engine.decide(made)
            view = engine.advance()
        if view is None or not math.isclose(view.time_s, time_s):
            raise SplitgymError(f"policy {self.name!r} must decide from the start: name it as warm-up policy, too")
        engine.decide(candidate)
        self._follow_up.reset(scenario.cluster, scenario.seed)
        kernels = self._follow_up.kernels()
        engine.run_kernels(kernels, kernels)
        return engine.meters().slowdown + engine.books.potential(engine.now_s)

"""The Policy protocol, and helpers for those who write one."""

from __future__ import annotations

from typing import Literal, Protocol, runtime_checkable

from splitgym.errors import SplitgymError
from splitgym.sim.cluster import Cluster
from splitgym.sim.compiled.kernel import Kernel, kernels_of
from splitgym.view import TICK, ClusterView, Decision

PolicyKind = Literal["routing", "pool", "both", "oracle"]
"""What it decides: machines at arrivals, roles at ticks, or both; an oracle knows what none can know."""


@runtime_checkable
class Policy(Protocol):
    """Who decides. A policy that may know the future (an oracle) also has ``observe_scenario(scenario)``."""

    name: str

    def reset(self, cluster: Cluster, seed: int) -> None:
        """Forget everything: a run on ``cluster`` begins. Two runs after equal resets must decide alike."""
        ...

    def decide(self, view: ClusterView) -> Decision:
        """Name both machines at an arrival, role changes at a tick (or an arrival, too).

        Where the token machine is chosen late (``cluster.token_choice`` is ``prompt_end``), name the prompt machine at
        an arrival and the token machine at a prompt end (``view.kind``).
        """
        ...


def need_early_choice(name: str, cluster: Cluster) -> None:
    """Refuse a cluster that chooses token machines late, for somebody who names both machines at arrivals.

    Raises:
        SplitgymError: if it does.
    """
    if cluster.chooses_late:
        raise SplitgymError(f"{name} decides at arrivals and ticks alone; leave cluster.token_choice: prompt_end out")


class BasePolicy:
    """A convenient parent: its name is the class's, it has nothing to forget and leaves roles alone at ticks.

    Subclasses give ``route(view)``, or ``decide(view)`` where they act at ticks as well.
    """

    name: str = ""

    def __init_subclass__(cls) -> None:
        if "name" not in cls.__dict__ and not cls.name:
            cls.name = cls.__name__

    def reset(self, cluster: Cluster, seed: int) -> None:
        """Nothing to forget."""

    def route(self, view: ClusterView) -> tuple[int, int]:
        """The prompt machine and the token machine of the request that has arrived."""
        raise NotImplementedError(f"{type(self).__name__} has neither route() nor decide()")

    def decide(self, view: ClusterView) -> Decision:
        """Nothing at a tick, what `route` says at an arrival or a prompt end."""
        return Decision() if view.kind == TICK else Decision(*self.route(view))


class Combined:
    """A routing policy and a pool policy side by side: the first decides about requests, the second at ticks."""

    def __init__(self, routing: Policy, pool: Policy) -> None:
        self.name = f"{routing.name}+{pool.name}"
        self.routing = routing
        self.pool = pool

    def reset(self, cluster: Cluster, seed: int) -> None:
        """Reset both."""
        self.routing.reset(cluster, seed)
        self.pool.reset(cluster, seed)

    def observe_scenario(self, scenario: object) -> None:
        """Hand the scenario to those of the two that look at it."""
        for part in (self.routing, self.pool):
            observe = getattr(part, "observe_scenario", None)
            if observe is not None:
                observe(scenario)

    def kernels(self) -> tuple[Kernel, Kernel] | None:
        """The kernels of both, where both are compiled."""
        routing, pool = kernels_of(self.routing), kernels_of(self.pool)
        return None if routing is None or pool is None else (routing[0], pool[1])

    def decide(self, view: ClusterView) -> Decision:
        """The pool policy's role changes at a tick, the routing policy's machines at an arrival or a prompt end."""
        if view.kind == TICK:
            return Decision(role_changes=self.pool.decide(view).role_changes)
        return self.routing.decide(view)

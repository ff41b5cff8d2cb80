"""The best static split in hindsight: every division into prompt and token pools, tried by simulation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import product

from splitgym.errors import SplitgymError
from splitgym.policies.base import Policy
from splitgym.sim.cluster import Cluster, Scenario
from splitgym.sim.run import RunResult, run
from splitgym.view import PROMPT, TOKEN


@dataclass(frozen=True)
class StaticSplit:
    """A division, and what it scored."""

    roles: tuple[int, ...]  # one per machine
    score: float

    @property
    def prompt_machines(self) -> int:
        """How many process prompts."""
        return self.roles.count(PROMPT)


def total_slowdown(result: RunResult) -> float:
    """What the reward `slowdown` charges over the whole run, unfinished requests included."""
    return float(result.meters.slowdown)


def best_static_split(
    scenario: Scenario,
    routing: Policy,
    *,
    score: Callable[[RunResult], float] = total_slowdown,
    max_runs: int = 64,
) -> tuple[StaticSplit, list[StaticSplit]]:
    """The split with the least score under ``routing``, and all that were tried.

    Within a hardware type machines are alike, so that only their numbers matter; the first ones become prompt
    machines.

    Args:
        scenario: what is simulated; its machines' roles do not matter.
        routing: who routes. It should leave roles alone.
        score: what is minimised.
        max_runs: where there are more splits, an even grid of at most so many is tried.

    Raises:
        SplitgymError: if there are fewer than two machines.
    """
    if scenario.cluster.num_machines < 2:
        raise SplitgymError(f"a split needs at least 2 machines; there are {scenario.cluster.num_machines}")
    tried = []
    for roles in candidate_roles(scenario.cluster, max_runs):
        pairs = zip(scenario.cluster.machines, roles, strict=True)
        machines = tuple(replace(machine, role=role) for machine, role in pairs)
        result = run(replace(scenario, cluster=replace(scenario.cluster, machines=machines)), routing)
        tried.append(StaticSplit(roles, score(result)))
    return min(tried, key=lambda split: split.score), tried


def candidate_roles(cluster: Cluster, max_runs: int) -> Iterator[tuple[int, ...]]:
    """Roles (num_machines,) of each split worth a try; see `best_static_split`."""
    groups: dict[str, list[int]] = {}
    for index, machine in enumerate(cluster.machines):
        groups.setdefault(machine.profile.hardware, []).append(index)
    sizes = [len(indices) for indices in groups.values()]
    step = 1
    while len(counts := list(product(*[_counts(size, step) for size in sizes]))) > max_runs + 2:
        step += 1
    for prompts in counts:
        if 0 < sum(prompts) < cluster.num_machines:
            roles = [TOKEN] * cluster.num_machines
            for indices, number in zip(groups.values(), prompts, strict=True):
                for index in indices[:number]:
                    roles[index] = PROMPT
            yield tuple(roles)


def _counts(size: int, step: int) -> list[int]:
    """From none to all, ``step`` apart, both ends included."""
    return sorted({*range(0, size, step), size})

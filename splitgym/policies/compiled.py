"""A built-in heuristic: its kernel, its numbers, and the policy that calls the one with the other."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from splitgym.errors import SplitgymError, did_you_mean
from splitgym.policies.base import PolicyKind
from splitgym.policies.kernels import new_state
from splitgym.sim.cluster import Cluster
from splitgym.sim.compiled.kernel import SIGNATURE, Function, Kernel
from splitgym.sim.compiled.pointers import address_of
from splitgym.view import ClusterView, Decision


@dataclass(frozen=True)
class Builtin:
    """A heuristic that ships: what `make_policy` and an engine need to know of it."""

    name: str
    kind: PolicyKind
    text: str
    kernel: Function  # see `splitgym.policies.kernels`
    params: Mapping[str, float] = field(default_factory=dict)  # in the kernel's order
    reads_times: Callable[[Mapping[str, float]], bool] = lambda params: False
    """Whether, with these parameters, it reads features that `splitgym.sim.books.fill_times` writes."""


class CompiledPolicy:
    """A built-in heuristic as a `Policy`.

    Args:
        builtin: which.
        params: what differs from its defaults.

    Raises:
        SplitgymError: if ``params`` names a parameter that the heuristic does not have, or one is no number.
    """

    def __init__(self, builtin: Builtin, params: Mapping[str, float] | None = None) -> None:
        merged = dict(builtin.params)
        for name, value in (params or {}).items():
            if name not in merged:
                options = did_you_mean(name, merged) or "; it has none"
                raise SplitgymError(f"policy {builtin.name!r}: unknown parameter {name!r}{options}")
            if isinstance(value, bool) or not isinstance(value, int | float) or np.isnan(value):
                raise SplitgymError(f"policy {builtin.name!r}: {name} is {value!r}; it must be a number")
            merged[name] = float(value)
        self.name = builtin.name
        self.builtin = builtin
        self.params = merged
        self.param_values = np.array(list(merged.values()), dtype=np.float64)
        self.state = new_state([], 0, self.name)
        self._all = self._roles_out = np.zeros(0, np.int64)

    def reset(self, cluster: Cluster, seed: int) -> None:
        """Begin a run: nothing has been decided, the draws are those of ``seed``."""
        roles = [machine.role for machine in cluster.machines]
        self.state = new_state(roles, seed, self.name)
        self._all = np.arange(len(roles))
        self._roles_out = np.full(len(roles), -1, np.int64)

    def kernels(self) -> tuple[Kernel, Kernel]:
        """Who decides at arrivals and at ticks, for an engine that calls compiled functions itself."""
        reads_times = self.builtin.reads_times(self.params)
        kernel = Kernel(
            address_of(self.builtin.kernel, SIGNATURE, allocates=True), self.param_values, self.state, reads_times
        )
        return kernel, kernel

    def decide(self, view: ClusterView) -> Decision:
        """Ask the kernel.

        Raises:
            SplitgymError: if the view is not of the cluster that `reset` was given.
        """
        if view.num_machines != len(self._all):
            counts = f"{view.num_machines} machines; reset() was given a cluster of {len(self._all)}"
            raise SplitgymError(f"policy {self.name!r}: the view has {counts}")
        changes = self._roles_out
        changes.fill(-1)
        prompt_machine, token_machine = self.builtin.kernel(
            view.kind,
            view.time_s,
            view.machines,
            view.request,
            view.cluster,
            view.prompt_mask,
            view.token_mask,
            view.role_mask,
            self._all,
            self.param_values,
            self.state,
            changes,
        )
        if changes.max() < 0:
            return Decision(prompt_machine, token_machine)
        return Decision(
            prompt_machine,
            token_machine,
            tuple((int(m), int(changes[m])) for m in np.flatnonzero(changes >= 0)),
        )

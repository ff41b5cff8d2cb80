"""Actions: their spaces, their masks, and the decisions they stand for."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from splitgym.errors import SplitgymError, did_you_mean
from splitgym.features import MACHINE_COLUMN
from splitgym.sim.cluster import Cluster
from splitgym.view import ROLES, TICK, ClusterView, Decision

BoolArray = npt.NDArray[np.bool_]
Masks = tuple[BoolArray, ...]  # one per head, (size of the head,)
Choice = tuple[int, ...]  # one index per head

HEADS = ("both", "prompt", "token")
ROLE_ACTIONS = ("machine", "pool")
ROLE_PAIRS = tuple((old, new) for old in range(len(ROLES)) for new in range(len(ROLES)) if old != new)
"""(old role, new role), in the order of the actions of ``action="pool"``."""

_PENDING = MACHINE_COLUMN["pending_prompt_tokens"]
_REMAINING = MACHINE_COLUMN["remaining_output_tokens"]
_ROLE_PROMPT = MACHINE_COLUMN["role_prompt"]


class Actions(ABC):
    """What a learner chooses from: one head or several, each with an index to pick.

    Args:
        sizes: how many indices each head has.
    """

    def __init__(self, *sizes: int) -> None:
        self.sizes = sizes
        self.space: spaces.Space[Any]
        self.space = spaces.Discrete(sizes[0]) if len(sizes) == 1 else spaces.MultiDiscrete(list(sizes))

    @abstractmethod
    def masks(self, view: ClusterView) -> Masks:
        """What is valid now, head by head; fresh arrays."""

    @abstractmethod
    def decision(self, choice: Choice, view: ClusterView, suggested: Decision) -> Decision:
        """The decision a valid choice stands for; ``suggested`` is the other policy's."""

    def parse(self, action: object) -> Choice:
        """The indices in an action.

        Raises:
            SplitgymError: if it is not in the action space.
        """
        values = np.asarray(action)
        choice = tuple(values.ravel().tolist())
        fits = values.dtype.kind in "iu" and len(choice) == len(self.sizes)
        if not fits or not all(0 <= index < size for index, size in zip(choice, self.sizes, strict=True)):
            raise SplitgymError(f"action {action!r} is not in {self.space}; see env.action_space")
        return choice

    def replacement(self, masks: Masks, view: ClusterView, rng: np.random.Generator) -> Choice:
        """What an invalid action becomes: any valid one, each as likely as the others; at a tick no change."""
        if view.kind == TICK:
            return (0,) * len(self.sizes)
        valid = [np.flatnonzero(mask) for mask in masks]
        return tuple(int(indices[rng.integers(len(indices))]) for indices in valid)


class RoutingActions(Actions):
    """`MultiDiscrete([M, M])`, prompt machine and token machine; `Discrete(M)` where the other policy names one."""

    def __init__(self, num_machines: int, heads: str = "both") -> None:
        if heads not in HEADS:
            raise SplitgymError(f"heads: unknown {heads!r}{did_you_mean(heads, HEADS)}")
        super().__init__(*[num_machines] * (2 if heads == "both" else 1))
        self._heads = heads

    def masks(self, view: ClusterView) -> Masks:
        """Where the prompt, and the token phase, may be sent."""
        size = self.sizes[0]
        if self._heads == "both":
            return _padded(view.prompt_mask, size), _padded(view.token_mask, size)
        return (_padded(view.prompt_mask if self._heads == "prompt" else view.token_mask, size),)

    def decision(self, choice: Choice, view: ClusterView, suggested: Decision) -> Decision:
        """The machines chosen, the other policy's for a head that is not there."""
        if self._heads == "both":
            return Decision(choice[0], choice[1])
        if self._heads == "prompt":
            return Decision(choice[0], suggested.token_machine)
        return Decision(suggested.prompt_machine, choice[0])


class MachineRoleActions(Actions):
    """`Discrete(1 + 3M)`: 0 is no change, 1 + 3 · machine + role a change."""

    def __init__(self, num_machines: int) -> None:
        super().__init__(1 + len(ROLES) * num_machines)

    def masks(self, view: ClusterView) -> Masks:
        """No change, and the changes that are permitted."""
        mask = _padded(view.role_mask.ravel(), self.sizes[0], start=1)
        mask[0] = True
        return (mask,)

    def decision(self, choice: Choice, view: ClusterView, suggested: Decision) -> Decision:
        """One change, or none."""
        return _role_decision(choice[0])


class PoolRoleActions(Actions):
    """`Discrete(1 + 6 · hardware types)`: 0 is no change, 1 + 6 · hardware type + index into `ROLE_PAIRS` a change.

    Hardware types count in the order in which the cluster's machines bring them. The machine that changes is the one
    of that type and old role with least work: pending prompt tokens plus predicted tokens still to come.
    """

    def __init__(self, cluster: Cluster) -> None:
        names = list(dict.fromkeys(machine.profile.name for machine in cluster.machines))
        self._of_type = [
            np.array([machine.profile.name == name for machine in cluster.machines], np.bool_) for name in names
        ]
        super().__init__(1 + len(ROLE_PAIRS) * len(names))

    def masks(self, view: ClusterView) -> Masks:
        """No change, and the changes for which there is a machine."""
        possible = [self._candidates(action, view).any() for action in range(1, self.sizes[0])]
        return (np.array([True, *possible], np.bool_),)

    def decision(self, choice: Choice, view: ClusterView, suggested: Decision) -> Decision:
        """One change, or none."""
        if choice[0] == 0:
            return Decision()
        work = view.machines[:, _PENDING] + view.machines[:, _REMAINING]
        machine = int(np.where(self._candidates(choice[0], view), work, np.inf).argmin())
        return Decision(role_changes=((machine, ROLE_PAIRS[(choice[0] - 1) % len(ROLE_PAIRS)][1]),))

    def _candidates(self, action: int, view: ClusterView) -> BoolArray:
        kind, pair = divmod(action - 1, len(ROLE_PAIRS))
        old, new = ROLE_PAIRS[pair]
        return self._of_type[kind] & view.role_mask[:, new] & (view.machines[:, _ROLE_PROMPT + old] > 0)


class JointActions(Actions):
    """`MultiDiscrete([M, M, 1 + 3M])`: machines at an arrival, a role change at a tick, index 0 for what is not due."""

    def __init__(self, num_machines: int) -> None:
        super().__init__(num_machines, num_machines, 1 + len(ROLES) * num_machines)
        self._roles = MachineRoleActions(num_machines)

    def masks(self, view: ClusterView) -> Masks:
        """Two heads apply at an arrival, the third at a tick."""
        size, roles = self.sizes[0], self.sizes[2]
        if view.kind == TICK:
            return _only_first(size), _only_first(size), *self._roles.masks(view)
        return _padded(view.prompt_mask, size), _padded(view.token_mask, size), _only_first(roles)

    def decision(self, choice: Choice, view: ClusterView, suggested: Decision) -> Decision:
        """Machines at an arrival, one role change or none at a tick."""
        return _role_decision(choice[2]) if view.kind == TICK else Decision(choice[0], choice[1])


def make_actions(kind: str, cluster: Cluster, max_machines: int, heads: str, action: str) -> Actions:
    """The actions of a kind of environment.

    Raises:
        SplitgymError: if ``heads`` or ``action`` is unknown, or set where the kind does not have it.
    """
    if heads != HEADS[0] and kind != "routing":
        raise SplitgymError(f"heads: {heads!r} is for kind 'routing', this is {kind!r}; leave it out")
    if action not in ROLE_ACTIONS:
        raise SplitgymError(f"action: unknown {action!r}{did_you_mean(str(action), ROLE_ACTIONS)}")
    if action == "pool" and kind != "repurposing":
        raise SplitgymError(f"action: 'pool' is for kind 'repurposing', this is {kind!r}; leave it out")
    if kind == "routing":
        return RoutingActions(max_machines, heads)
    if kind == "joint":
        return JointActions(max_machines)
    return PoolRoleActions(cluster) if action == "pool" else MachineRoleActions(max_machines)


def _role_decision(index: int) -> Decision:
    return Decision(role_changes=(divmod(index - 1, len(ROLES)),)) if index else Decision()


def _padded(mask: BoolArray, size: int, start: int = 0) -> BoolArray:
    padded: BoolArray = np.zeros(size, np.bool_)
    padded[start : start + len(mask)] = mask
    return padded


def _only_first(size: int) -> BoolArray:
    mask: BoolArray = np.zeros(size, np.bool_)
    mask[0] = True
    return mask

"""Actions: their spaces, their masks, and the decisions they stand for."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from splitgym.errors import SplitgymError, did_you_mean
from splitgym.features import MACHINE_COLUMN
from splitgym.jit import inner_njit, lean_njit, njit
from splitgym.policies.kernels import role_of
from splitgym.sim.cluster import Cluster
from splitgym.sim.hashing import hashed_uniform
from splitgym.view import PROMPT_END, ROLES, TICK, ClusterView, Decision

BoolArray = npt.NDArray[np.bool_]
FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

HEADS = ("both", "prompt", "token")
ROLE_ACTIONS = ("machine", "pool")
ROLE_PAIRS = tuple((old, new) for old in range(len(ROLES)) for new in range(len(ROLES)) if old != new)
"""(old role, new role), in the order of the actions of ``action="pool"``."""

# What an action chooses.
BOTH_MACHINES, PROMPT_MACHINE, TOKEN_MACHINE, MACHINE_ROLE, POOL_ROLE, JOINT = range(6)

_PENDING = MACHINE_COLUMN["pending_prompt_tokens"]
_REMAINING = MACHINE_COLUMN["remaining_output_tokens"]


class ActionRules(NamedTuple):
    """What compiled functions must know of the actions."""

    form: int  # BOTH_MACHINES … JOINT
    sizes: IntArray  # (num_heads,) choices of each head
    hardware: IntArray  # (num_machines,) the number of its hardware type, in the order in which machines bring them
    is_late: bool  # token machines are chosen at prompt ends


class Actions:
    """What a learner chooses from: one head or several, each with an index to pick.

    | form | space | meaning |
    |---|---|---|
    | ``BOTH_MACHINES`` | ``MultiDiscrete([M, M])`` | prompt machine, token machine |
    | ``PROMPT_MACHINE``, ``TOKEN_MACHINE`` | ``Discrete(M)`` | one of them, the other is the other policy's |
    | ``MACHINE_ROLE`` | ``Discrete(1 + 3M)`` | 0 no change, else 1 + 3 · machine + role |
    | ``POOL_ROLE`` | ``Discrete(1 + 6 · hardware types)`` | 0, else 1 + 6 · type + index into `ROLE_PAIRS` |
    | ``JOINT`` | ``MultiDiscrete([M, M, 1 + 3M])`` | a head that is not due has only index 0 |

    The machine that a ``POOL_ROLE`` changes is the one of that type and old role with least work: pending prompt
    tokens plus predicted tokens still to come. Where token machines are chosen late, an arrival asks for the prompt
    machine alone and a prompt end for the token machine: whatever the other head chooses counts for nothing.

    Args:
        form: one of these.
        cluster: whose machines they are about.
        max_machines: M; masks leave out what is no machine.

    Attributes:
        decides: for each of `splitgym.view.DECISION_KINDS`, whether they are about such a decision.
    """

    def __init__(self, form: int, cluster: Cluster, max_machines: int) -> None:
        names = [machine.profile.name for machine in cluster.machines]
        types = list(dict.fromkeys(names))
        one_role = 1 + len(ROLES) * max_machines
        sizes = {
            BOTH_MACHINES: [max_machines, max_machines],
            MACHINE_ROLE: [one_role],
            POOL_ROLE: [1 + len(ROLE_PAIRS) * len(types)],
            JOINT: [max_machines, max_machines, one_role],
        }.get(form, [max_machines])
        hardware = np.array([types.index(name) for name in names])
        is_late = cluster.chooses_late
        self.rules = ActionRules(form, np.array(sizes), hardware, is_late)
        are_roles = form in (MACHINE_ROLE, POOL_ROLE)
        at_arrivals = not are_roles and not (is_late and form == TOKEN_MACHINE)
        at_prompt_ends = not are_roles and is_late and form != PROMPT_MACHINE
        self.decides = at_arrivals, at_prompt_ends, are_roles or form == JOINT
        self.num_choices = sum(sizes)
        self.space: spaces.Space[Any] = spaces.Discrete(sizes[0]) if len(sizes) == 1 else spaces.MultiDiscrete(sizes)
        self._bounds = list(pairwise(np.cumsum([0, *sizes]).tolist()))

    def masks(self, view: ClusterView) -> list[BoolArray]:
        """What is valid now, head by head, (choices of the head,) each."""
        valid: BoolArray = np.empty(self.num_choices, np.bool_)
        roles = view.machines, view.prompt_mask, view.token_mask, view.role_mask
        mark_valid(self.rules, view.kind == TICK, *roles, valid)
        if self.rules.is_late:
            open_empty_heads(self.rules, valid)
        return self.by_head(valid)

    def by_head(self, valid: npt.NDArray[Any]) -> list[npt.NDArray[Any]]:
        """(…, num_choices) all heads one after another, taken apart."""
        return [valid[..., start:end] for start, end in self._bounds]

    def decision(self, choice: IntArray, view: ClusterView, suggested: Decision) -> Decision:
        """The decision a valid choice (num_heads,) stands for; ``suggested`` is the other policy's."""
        new_roles = np.full(view.num_machines, -1)
        prompt, token = suggested.prompt_machine, suggested.token_machine
        named = translate(
            self.rules, view.kind == TICK, choice, prompt, token, view.machines, view.role_mask, new_roles
        )
        return Decision(*named, role_changes(new_roles))

    def parse(self, actions: object, count: int) -> IntArray:
        """The indices (count, num_heads) in the actions of ``count`` environments, in a fresh array.

        Raises:
            SplitgymError: if one is not in the action space.
        """
        try:
            values = np.asarray(actions)
        except ValueError:  # ragged
            values = np.zeros(0)
        heads, shape = len(self._bounds), values.shape
        fits = shape == (count, heads) or (heads == 1 and shape == (count,)) or (count == 1 and shape == (heads,))
        if values.dtype.kind in "iu" and (fits or values.size == count == heads == 1):
            choices: IntArray = values.astype(np.int64).reshape(count, heads)
            if are_in_range(choices, self.rules.sizes):
                return choices
        several = "" if count == 1 else f" for each of {count} environments"
        raise SplitgymError(f"action {actions!r} is not in {self.space}{several}; see action_space")


def make_actions(kind: str, cluster: Cluster, max_machines: int, heads: str, action: str) -> Actions:
    """The actions of a kind of environment.

    Raises:
        SplitgymError: if ``heads`` or ``action`` is unknown, or set where the kind does not have it.
    """
    if heads not in HEADS:
        raise SplitgymError(f"heads: unknown {heads!r}{did_you_mean(str(heads), HEADS)}")
    if heads != HEADS[0] and kind != "routing":
        raise SplitgymError(f"heads: {heads!r} is for kind 'routing', this is {kind!r}; leave it out")
    if action not in ROLE_ACTIONS:
        raise SplitgymError(f"action: unknown {action!r}{did_you_mean(str(action), ROLE_ACTIONS)}")
    if action == "pool" and kind != "repurposing":
        raise SplitgymError(f"action: 'pool' is for kind 'repurposing', this is {kind!r}; leave it out")
    forms = {
        "routing": (BOTH_MACHINES, PROMPT_MACHINE, TOKEN_MACHINE)[HEADS.index(heads)],
        "repurposing": POOL_ROLE if action == "pool" else MACHINE_ROLE,
        "joint": JOINT,
    }
    return Actions(forms[kind], cluster, max_machines)


def role_changes(new_roles: IntArray) -> tuple[tuple[int, int], ...]:
    """(machine, role) for each machine whose new role is not -1."""
    return tuple((int(m), int(new_roles[m])) for m in np.flatnonzero(new_roles >= 0))


@njit
def are_in_range(choices: IntArray, sizes: IntArray) -> bool:
    """Whether all ``choices`` (count, num_heads) are indices of their head."""
    inside = True
    for env in range(len(choices)):
        for head in range(len(sizes)):
            inside &= 0 <= choices[env, head] < sizes[head]
    return inside


@lean_njit
def mark_valid(
    rules: ActionRules,
    is_tick: bool,
    machines: FloatArray,
    prompt_mask: BoolArray,
    token_mask: BoolArray,
    role_mask: BoolArray,
    valid: BoolArray,
) -> None:
    """Write what is valid, (num_choices,) all heads one after another."""
    form, count = rules.form, len(prompt_mask)
    valid[:] = False
    if form == POOL_ROLE:
        valid[0] = True
        for m in range(count):
            for new in range(3):
                if role_mask[m, new]:
                    valid[_pool_action(rules.hardware[m], role_of(machines[m]), new)] = True
    elif form == MACHINE_ROLE or (form == JOINT and is_tick):
        start = 0
        if form == JOINT:
            start = rules.sizes[0] + rules.sizes[1]
            valid[0] = True
            valid[rules.sizes[0]] = True
        valid[start] = True
        for m in range(count):
            for new in range(3):
                valid[start + 1 + 3 * m + new] = role_mask[m, new]
    else:
        start = 0
        if form != TOKEN_MACHINE:
            for m in range(count):
                valid[m] = prompt_mask[m]
            start = rules.sizes[0]
        if form != PROMPT_MACHINE:
            for m in range(count):
                valid[start + m] = token_mask[m]
        if form == JOINT:
            valid[rules.sizes[0] + rules.sizes[1]] = True


@lean_njit
def open_empty_heads(rules: ActionRules, valid: BoolArray) -> None:
    """Make index 0 valid of a head in which nothing is."""
    start = 0
    for head in range(len(rules.sizes)):
        some = False
        for index in range(rules.sizes[head]):
            some = some or valid[start + index]
        valid[start] |= not some
        start += rules.sizes[head]


@lean_njit
def settle_idle_head(rules: ActionRules, kind: int, choice: IntArray, valid: BoolArray) -> None:
    """Late choice: what the head chooses that is not asked for is what is valid there."""
    if not rules.is_late or kind == TICK or len(choice) == 1:
        return
    head = 0 if kind == PROMPT_END else 1
    start = head * rules.sizes[0]
    for index in range(rules.sizes[head]):
        if valid[start + index]:
            choice[head] = index


@lean_njit
def is_valid(rules: ActionRules, choice: IntArray, valid: BoolArray) -> bool:
    """Whether a choice (num_heads,) is among what is valid (num_choices,)."""
    start = 0
    for head in range(len(choice)):
        if not valid[start + choice[head]]:
            return False
        start += rules.sizes[head]
    return True


@lean_njit
def replace(rules: ActionRules, is_tick: bool, choice: IntArray, valid: BoolArray, key: int, number: int) -> None:
    """Put any valid choice in place of an invalid one, each as likely as the others; at a tick no change.

    Draw ``number`` of ``key`` decides.
    """
    start = 0
    for head in range(len(choice)):
        choice[head] = 0
        size = rules.sizes[head]
        others = 0
        for index in range(size):
            others += valid[start + index]
        left = -1 if is_tick else min(int(hashed_uniform(key, head, number) * others), others - 1)
        for index in range(size):
            if valid[start + index]:
                if left == 0:
                    choice[head] = index
                left -= 1
        start += size


@lean_njit
def translate(
    rules: ActionRules,
    is_tick: bool,
    choice: IntArray,
    suggested_prompt: int,
    suggested_token: int,
    machines: FloatArray,
    role_mask: BoolArray,
    new_roles: IntArray,
) -> tuple[int, int]:
    """The machines that a valid choice (num_heads,) names; its role change goes into ``new_roles`` (num_machines,)."""
    form = rules.form
    if form == POOL_ROLE:
        if choice[0] > 0:
            _change_pool(rules, choice[0], machines, role_mask, new_roles)
        return -1, -1
    if form == MACHINE_ROLE or (form == JOINT and is_tick):
        index = choice[len(choice) - 1] - 1
        if index >= 0:
            new_roles[index // 3] = index % 3
        return -1, -1
    if form == PROMPT_MACHINE:
        return choice[0], suggested_token
    if form == TOKEN_MACHINE:
        return suggested_prompt, choice[0]
    return choice[0], choice[1]


@inner_njit
def _pool_action(hardware: int, old: int, new: int) -> int:
    return 1 + 6 * hardware + 2 * old + (new if new < old else new - 1)


@inner_njit
def _change_pool(
    rules: ActionRules, action: int, machines: FloatArray, role_mask: BoolArray, new_roles: IntArray
) -> None:
    """Change the role of the machine with least work among those that ``action`` may mean."""
    best, best_new, best_work = -1, -1, 0.0
    for m in range(len(machines)):
        for new in range(3):
            if role_mask[m, new] and _pool_action(rules.hardware[m], role_of(machines[m]), new) == action:
                work = machines[m, _PENDING] + machines[m, _REMAINING]
                if best < 0 or work < best_work:
                    best, best_new, best_work = m, new, work
    if best >= 0:
        new_roles[best] = best_new

"""What a network's scores stand for, in NumPy: masks, choice, decision. As `splitgym.envs.actions` compiles it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from splitgym.features import MACHINE_COLUMN
from splitgym.view import ROLES, TICK, ClusterView, Decision

BoolArray = npt.NDArray[np.bool_]
Float32Array = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]
Draws = Sequence[float] | npt.NDArray[np.float64]

FORMS = ("both_machines", "prompt_machine", "token_machine", "machine_role", "pool_role", "joint")
"""In the order of the forms of `splitgym.envs.actions.Actions`, whose docstring says what they mean."""

MODES = ("argmax", "sample")

MASKS = (
    "a machine head permits the view's prompt_mask or token_mask; a role head index 0 (no change) and "
    "1 + 3 * machine + role where role_mask permits; pool_role 0 and 1 + 6 * hardware type + pair (old, new role) "
    "where a machine of that type and old role may change; at an arrival the role head of joint has only 0, at a tick "
    "its machine heads; what is padding is never permitted"
)
MEANING = (
    "machine heads name prompt and token machine, a role head the change; pool_role changes the machine of that type "
    "and old role with the fewest pending_prompt_tokens + remaining_output_tokens, of equals the first"
)

_ROLE = MACHINE_COLUMN["role_prompt"]
_PENDING, _REMAINING = MACHINE_COLUMN["pending_prompt_tokens"], MACHINE_COLUMN["remaining_output_tokens"]
_PAIRS = len(ROLES) * (len(ROLES) - 1)


class Decoder:
    """From scores to a decision.

    Args:
        form: one of `FORMS`.
    """

    def __init__(self, form: str) -> None:
        self.form = form
        self.num_heads = {"both_machines": 2, "joint": 3}.get(form, 1)

    def is_due(self, view: ClusterView) -> bool:
        """Whether the network has a part in this decision."""
        if self.form == "joint":
            return True
        return (view.kind == TICK) == (self.form in ("machine_role", "pool_role"))

    def masks(self, view: ClusterView, rows: int, hardware: IntArray) -> list[BoolArray]:
        """What is permitted, head by head, machines padded to ``rows``; ``hardware`` (num_machines,) are types."""
        if self.form == "pool_role":
            return [self._pool_mask(view, hardware)]
        if self.form == "machine_role":
            return [_role_mask(view, rows)]
        if self.form == "joint" and view.kind == TICK:
            return [_first(rows), _first(rows), _role_mask(view, rows)]
        heads = []
        if self.form != "token_machine":
            heads.append(_padded(view.prompt_mask, rows))
        if self.form != "prompt_machine":
            heads.append(_padded(view.token_mask, rows))
        if self.form == "joint":
            heads.append(_first(1 + len(ROLES) * rows))
        return heads

    def choose(self, scores: Float32Array, masks: Sequence[BoolArray], draws: Draws | None) -> list[int]:
        """The choice of each head: the best scored for ``None``, else drawn, with a uniform number for each."""
        ends = np.cumsum([0, *map(len, masks)])
        return [
            choose(scores[start:end], mask, None if draws is None else draws[head])
            for head, (mask, (start, end)) in enumerate(zip(masks, pairwise(ends), strict=True))
        ]

    def probability(self, scores: Float32Array, masks: Sequence[BoolArray], choice: Sequence[int]) -> float:
        """With which `choose` draws ``choice``."""
        ends = np.cumsum([0, *map(len, masks)])
        heads = zip(masks, choice, pairwise(ends), strict=True)
        return math.prod(probability(scores[start:end], mask, index) for mask, index, (start, end) in heads)

    def decision(self, choice: Sequence[int], view: ClusterView, suggested: Decision, hardware: IntArray) -> Decision:
        """What a permitted choice stands for; what the form leaves open is as ``suggested``."""
        if self.form == "pool_role":
            return Decision(role_changes=_pool_change(choice[0], view, hardware))
        if self.form == "machine_role" or (self.form == "joint" and view.kind == TICK):
            index = choice[-1] - 1
            return Decision(role_changes=() if index < 0 else (divmod(index, len(ROLES)),))
        if self.form == "prompt_machine":
            return Decision(choice[0], suggested.token_machine)
        if self.form == "token_machine":
            return Decision(suggested.prompt_machine, choice[0])
        return Decision(choice[0], choice[1])

    def _pool_mask(self, view: ClusterView, hardware: IntArray) -> BoolArray:
        mask = np.zeros(1 + _PAIRS * (int(hardware.max()) + 1), np.bool_)
        mask[0] = True
        mask[_pool_actions(view, hardware)[view.role_mask]] = True
        return mask


def choose(scores: Float32Array, mask: BoolArray, uniform: float | None) -> int:
    """The permitted choice of the best score, or, given a uniform number, one drawn from the scores' softmax.

    Args:
        scores: (n,).
        mask: (n,) what is permitted; if nothing is, 0.
        uniform: in [0, 1), or ``None`` for the best.
    """
    permitted = np.flatnonzero(mask)
    if len(permitted) == 0:
        return 0
    scores = scores[permitted]
    if uniform is None:
        return int(permitted[scores.argmax()])
    odds = np.exp((scores - scores.max()).astype(np.float64)).cumsum()
    return int(permitted[min(int(odds.searchsorted(uniform * odds[-1], side="right")), len(permitted) - 1)])


def probability(scores: Float32Array, mask: BoolArray, index: int) -> float:
    """With which `choose` draws ``index`` of (n,) scores; 1 if nothing is permitted."""
    if not mask.any():
        return 1.0
    odds = np.exp((scores - scores[mask].max()).astype(np.float64), where=mask, out=np.zeros(len(scores)))
    return float(odds[index] / odds.sum())


def _padded(mask: BoolArray, rows: int) -> BoolArray:
    return mask if len(mask) == rows else np.concatenate([mask, np.zeros(rows - len(mask), np.bool_)])


def _first(size: int) -> BoolArray:
    mask = np.zeros(size, np.bool_)
    mask[0] = True
    return mask


def _role_mask(view: ClusterView, rows: int) -> BoolArray:
    mask = np.zeros(1 + len(ROLES) * rows, np.bool_)
    mask[0] = True
    mask[1 : 1 + view.role_mask.size] = view.role_mask.ravel()
    return mask


def _pool_actions(view: ClusterView, hardware: IntArray) -> IntArray:
    """(num_machines, 3) the index that stands for changing this machine to this role."""
    old = view.machines[:, _ROLE : _ROLE + len(ROLES)].argmax(axis=1)[:, None]
    new = np.arange(len(ROLES))
    actions: IntArray = 1 + _PAIRS * hardware[:, None] + 2 * old + new - (new > old)
    return actions


def _pool_change(action: int, view: ClusterView, hardware: IntArray) -> tuple[tuple[int, int], ...]:
    if action == 0:
        return ()
    meant = np.argwhere(view.role_mask & (_pool_actions(view, hardware) == action))
    if len(meant) == 0:
        return ()
    work = view.machines[meant[:, 0], _PENDING] + view.machines[meant[:, 0], _REMAINING]
    machine, role = meant[work.argmin()]
    return ((int(machine), int(role)),)

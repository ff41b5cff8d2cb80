"""A network beside another policy: what each decides, and the view once role changes are made, without an engine."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from splitgym.features import CLUSTER_COLUMN, MACHINE_COLUMN
from splitgym.policies.base import Policy
from splitgym.sim.books import LIFECYCLE, NUM_COLUMNS, ROLE, fill_masks
from splitgym.view import DRAINING, MIXED, PROMPT, PROMPT_END, READY, TICK, TOKEN, ClusterView, Decision

_ROLE, _LIFECYCLE = MACHINE_COLUMN["role_prompt"], MACHINE_COLUMN["ready"]
_PENDING, _KV_HELD = MACHINE_COLUMN["pending_prompts"], MACHINE_COLUMN["kv_held_tokens"]
_DECODES, _COMING = MACHINE_COLUMN["decodes"], MACHINE_COLUMN["coming_decodes"]
_COUNTS = CLUSTER_COLUMN["prompt_machines"]


def decide_beside(
    other: Policy | None, decides: str, view: ClusterView, ask: Callable[[ClusterView, Decision], Decision]
) -> Decision:
    """The decision of a network that ``decides`` machines (``routing``), roles (``repurposing``) or all (``joint``).

    Args:
        other: who decides the rest; ``None`` where there is none.
        decides: the network's kind.
        view: what is known.
        ask: the network, which is told what ``other`` suggests.
    """
    if other is None or decides == "joint":
        return ask(view, Decision())
    if decides == "repurposing":
        if view.kind == TICK:
            return ask(view, Decision())
        decision = other.decide(dataclasses.replace(view, role_mask=np.zeros_like(view.role_mask)))
        return dataclasses.replace(decision, role_changes=())
    suggested = other.decide(view)
    if view.kind == TICK:
        return suggested
    changes = suggested.role_changes
    if changes:
        view = after_role_changes(view, changes)
    return dataclasses.replace(ask(view, suggested), role_changes=changes)


def after_role_changes(view: ClusterView, changes: Sequence[tuple[int, int]]) -> ClusterView:
    """A copy of ``view`` in which ``changes``, (machine, role) each, are made.

    A machine that gives up a phase is ready at once where that costs nothing and no work of that phase can be there;
    else it is taken to be draining, for a view does not say whether a cache is still to be sent. The masks permit
    only what an engine permits, whichever of the two it finds.
    """
    machines, cluster = view.machines.copy(), view.cluster.copy()
    doubtful = np.zeros(len(machines), np.bool_)
    for machine, role in changes:
        row = machines[machine]
        old = int(row[_ROLE : _ROLE + 3].argmax())
        row[_ROLE : _ROLE + 3] = np.eye(3)[role]
        cluster[_COUNTS + old] -= 1
        cluster[_COUNTS + role] += 1
        lost = [phase for phase in (PROMPT, TOKEN) if old in (phase, MIXED) and role not in (phase, MIXED)]
        prompts_left = PROMPT in lost and row[_PENDING] + row[_KV_HELD] > 0
        tokens_left = TOKEN in lost and row[_DECODES] + row[_COMING] > 0
        doubtful[machine] = prompts_left or tokens_left or (bool(lost) and view.of_cluster("switch_s") > 0)
        row[_LIFECYCLE : _LIFECYCLE + 4] = np.eye(4)[DRAINING if doubtful[machine] else READY]
    books = np.zeros((len(machines), NUM_COLUMNS))
    books[:, ROLE] = machines[:, _ROLE : _ROLE + 3].argmax(axis=1)
    books[:, LIFECYCLE] = machines[:, _LIFECYCLE : _LIFECYCLE + 4].argmax(axis=1)
    prompt_mask, token_mask, role_mask = view.prompt_mask.copy(), view.token_mask.copy(), view.role_mask.copy()
    capacities = machines[:, MACHINE_COLUMN["kv_capacity_tokens"]].copy()
    fill_masks(books, capacities, int(view.of_request("prompt_tokens")), prompt_mask, token_mask, role_mask)
    if view.kind == PROMPT_END:  # token machines are chosen late: what is not asked for stays as it is shown
        prompt_mask[:] = view.prompt_mask
    elif not view.token_mask.any():
        token_mask[:] = False
    for mask in (prompt_mask, token_mask):
        _prefer_doubtful(mask, machines[:, _LIFECYCLE] > 0, doubtful)
    return dataclasses.replace(
        view, machines=machines, cluster=cluster, prompt_mask=prompt_mask, token_mask=token_mask, role_mask=role_mask
    )


def _prefer_doubtful(
    mask: npt.NDArray[np.bool_], ready: npt.NDArray[np.bool_], doubtful: npt.NDArray[np.bool_]
) -> None:
    """Where no machine is surely ready, one that may be is right in either case."""
    if (mask & doubtful).any() and not (mask & ready).any():
        mask &= doubtful

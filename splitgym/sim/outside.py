"""What engines have in common towards the outside: machines as pictures show them, and what they say of mistakes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from splitgym.sim import books as b
from splitgym.sim.cluster import Cluster, Scenario
from splitgym.view import ADMISSIONS, HOLD, LIFECYCLES, PROMPT_END, REFUSE, ROLES, TICK

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]


class InvalidDecision(ValueError):  # noqa: N818  (it is the decision that is invalid)
    """A decision names a machine that does not exist or may not be chosen, or a role change that is not permitted."""


@dataclass(frozen=True)
class MachineState:
    """A machine as somebody sees it who looks from outside, for pictures."""

    role: str
    lifecycle: str
    queued_prompts: int
    running_prompts: int
    decodes: int
    kv_used_tokens: int  # reserved
    kv_capacity_tokens: int


def explain_refusal(named: Mapping[str, int], prompt_mask: BoolArray, token_mask: BoolArray, rows: FloatArray) -> str:
    """Why these machines, by ``prompt`` and ``token``, may not be chosen; an empty text where they may."""
    for phase, machine in named.items():
        mask = prompt_mask if phase == "prompt" else token_mask
        if not 0 <= machine < len(rows):
            return f"{phase} machine {machine} does not exist: {_machine_range(rows)}"
        if not mask[machine]:
            return f"{phase} machine {machine} may not be chosen: {_state(rows[machine])} (see {phase}_mask)"
    return ""


def explain_role(machine: int, role: int, rows: FloatArray) -> str:
    """Why ``machine``, which may not, may not become ``role``."""
    if not 0 <= machine < len(rows):
        return f"machine {machine} is to change its role, but {_machine_range(rows)}"
    if not 0 <= role < len(ROLES):
        return f"role {role} does not exist: 0 is prompt, 1 is token, 2 is mixed"
    return f"machine {machine} may not become {ROLES[role]} now: {_state(rows[machine])} (see role_mask)"


def explain_admission(admission: int, kind: int | None, scenario: Scenario) -> str:
    """Why a request may not be held back or refused by a decision of this kind; an empty text where it may."""
    if admission not in (HOLD, REFUSE):
        return f"admission {admission} does not exist: 0 is admit, 1 is hold, 2 is refuse"
    if kind == TICK:
        return f"there is no request to {ADMISSIONS[admission]} at a control tick"
    if kind == PROMPT_END:
        return f"it is too late to {ADMISSIONS[admission]} a request at its prompt end"
    if not scenario.cluster.admission:
        return f"a request may not be {('', 'held back', 'refused')[admission]} here: set cluster.admission: true"
    if admission == HOLD and scenario.tick_s is None:
        return "a request that is held back is asked about again at the next control tick, and there are none"
    return ""


def describe_extrapolations(cluster: Cluster, largest: Sequence[tuple[int, int, int]]) -> tuple[str, ...]:
    """Where iterations left the range in which their latency law was measured, a line for each profile.

    Args:
        cluster: the machines.
        largest: of each machine's iterations: batch tokens with prompts, decodes, and tokens of decode context.
    """
    names = ("batch tokens", "decodes", "tokens of decode context")
    lines = []
    for profile in {machine.profile.name: machine.profile for machine in cluster.machines}.values():
        of_machines = [
            most
            for machine, most in zip(cluster.machines, largest, strict=True)
            if machine.profile.name == profile.name
        ]
        measured = profile.valid_range
        limits = (measured.batch_tokens[1], measured.decodes[1], measured.decode_context_tokens[1])
        beyond = [
            f"{most} {name} (measured to {limit})"
            for most, limit, name in zip(map(max, zip(*of_machines, strict=True)), limits, names, strict=True)
            if most > limit
        ]
        if beyond:
            lines.append(f"{profile.name} was extrapolated: up to {', '.join(beyond)} in an iteration")
    return tuple(lines)


def _state(row: FloatArray) -> str:
    return f"it is {LIFECYCLES[int(row[b.LIFECYCLE])]} in role {ROLES[int(row[b.ROLE])]}"


def _machine_range(rows: FloatArray) -> str:
    return f"there are {len(rows)} machines, 0 to {len(rows) - 1}"

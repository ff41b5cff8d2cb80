"""The step of many environments in compiled code: from one decision of the learner to the next, in each."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from splitgym.envs.actions import (
    ActionRules,
    is_valid,
    mark_valid,
    open_empty_heads,
    replace,
    settle_idle_head,
    translate,
)
from splitgym.envs.observations import Arrays, Scales, observe, observe_changes
from splitgym.envs.rewards import Mix, Step, weighted
from splitgym.jit import inner_njit, merged_njit, njit
from splitgym.sim.books import BookArrays, fill_view, potential, show_times
from splitgym.sim.compiled.kernel import Kernel
from splitgym.sim.compiled.late_choice import NARROW
from splitgym.sim.compiled.loop import DUE, INVALID, ask, carry_out, change, predict, show
from splitgym.sim.compiled.notes import changed_since
from splitgym.sim.compiled.pointers import addresses, floats_at
from splitgym.sim.compiled.slots import ADVANCE, CHOICES, CODE, NUM_ROWS, advance_by, call, desk_at, state_at
from splitgym.sim.compiled.state import NO_DECISION, State
from splitgym.sim.compiled.totals import read_meters
from splitgym.sim.ledger import Meters
from splitgym.view import TICK

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
Records = npt.NDArray[np.void]

LEARNERS = ("routing", "repurposing", "joint")
ROUTING, REPURPOSING, JOINT = range(3)

LEAVE, BEGIN, STEP, REFUSED, ENDED = range(5)
"""What a call is to do with an environment; what became of it: nothing special, a bad decision, no more decisions."""

SLOT = np.dtype(
    [
        ("key", "i8"),  # of the draws that replace invalid actions
        ("invalid_actions", "i8"),  # so far
        ("warmup_s", "f8"),  # until then the warm-up policy decides
        ("ends_at_horizon", "?"),
        ("idle_kind", "i8"),  # what is shown when the run is over: kind of decision, lengths
        ("idle_prompt_tokens", "i8"),
        ("idle_predicted", "f8"),
        ("suggested_prompt", "i8"),  # what the other policy would do about this request
        ("suggested_token", "i8"),
        ("is_due", "?"),  # the learner's decision
        ("decision_kind", "i8"),
        ("time_s", "f8"),  # the meters
        ("time_in_system_s", "f8"),
        ("slowdown", "f8"),
        ("ttft_missed", "i8"),
        ("tbt_missed", "i8"),
        ("energy_j", "f8"),
        ("prompt_energy_j", "f8"),
        ("token_energy_j", "f8"),
        ("arrived", "i8"),
        ("finished", "i8"),
        ("tokens_out", "i8"),
        ("potential", "f8"),
        ("dt_s", "f8"),  # since the last decision
        ("reward", "f8"),
        ("masked", "i8"),  # which masks and kind of decision ``valid`` was written for
        ("seen", "i8"),  # how many changes of machines are in the observation (`splitgym.sim.compiled.notes`)
    ],
    align=True,
)
"""Where an environment stands, beside its run."""


class Rules(NamedTuple):
    """What is equal in all environments of a batch, for compiled functions."""

    learner: int  # index into LEARNERS
    decides: tuple[bool, bool, bool]  # by kind of decision
    actions: ActionRules
    scales: Scales
    reward: Mix
    is_shaped: bool  # the potential is to be known
    counts_missed: bool  # so are missed deadlines
    gamma: float
    usd_per_s: float


class Outlook(NamedTuple):
    """What the learners see."""

    observations: Arrays
    valid: BoolArray  # (num_envs, num_choices)


class Crew(NamedTuple):
    """Who decides what the learner does not."""

    other: Kernel  # at arrivals
    other_at_tick: Kernel
    warming_up: Kernel
    warming_up_at_tick: Kernel


ROWS = NUM_ROWS + 3 * len(Crew._fields)
"""Of the table that `step_all` reads."""


def kernel_rows(kernel: Kernel) -> IntArray:
    """(3, 3) a kernel in that table: its code, its numbers, its memory."""
    code = np.array([[kernel.address, kernel.reads_times, 0]])
    return np.concatenate([code, addresses([kernel.params, kernel.state])])


@njit
def step_all(
    first: int,
    last: int,
    orders: IntArray,
    table: IntArray,
    slots: Records,
    rules: Rules,
    choices: IntArray,
    new_roles: IntArray,
    no_roles: BoolArray,
    outlook: Outlook,
) -> bool:
    """Bring the environments ``first`` to ``last`` − 1 to their learners' next decisions.

    Args:
        first: the first.
        last: one more than the last.
        orders: (num_envs,) LEAVE, BEGIN or STEP; afterwards LEAVE, REFUSED or ENDED.
        table: (num_envs, ROWS, 3) the runs' addresses, then the kernels of the crew.
        slots: (num_envs,) SLOT.
        rules: of all.
        choices: (num_envs, num_heads), what the learners choose.
        new_roles: (num_envs, num_machines), all -1; the decision left to make where it is REFUSED.
        no_roles: (num_machines, 3), all False.
        outlook: what the learners see afterwards.

    Returns:
        whether an order is not LEAVE afterwards.
    """
    remains = False
    for env in range(first, last):
        if orders[env] == LEAVE:
            continue
        a = table[env]
        s, desk = state_at(a), desk_at(a)
        crew = Crew(kernel_at(a, 0), kernel_at(a, 1), kernel_at(a, 2), kernel_at(a, 3))
        orders[env] = step_one(
            a, s, desk, slots[env], rules, crew, orders[env], choices[env], new_roles[env], no_roles, outlook, env
        )
        remains |= orders[env] != LEAVE
    return remains


@merged_njit
def kernel_at(a: IntArray, number: int) -> Kernel:
    """The kernel that `kernel_rows` wrote as that number of the crew."""
    row = NUM_ROWS + 3 * number
    return Kernel(a[row, 0], floats_at(a[row + 1]), floats_at(a[row + 2]), a[row, 1] != 0)


@inner_njit
def step_one(  # type: ignore[no-untyped-def]
    a: IntArray,
    s: State,
    desk: BookArrays,
    slot,
    rules: Rules,
    crew: Crew,
    order: int,
    choice: IntArray,
    new_roles: IntArray,
    no_roles: BoolArray,
    outlook: Outlook,
    env: int,
) -> int:
    """One environment's part of `step_all`; LEAVE, REFUSED or ENDED."""
    if order == STEP and s.run[0].pending != NO_DECISION:
        prompt, token = decide(slot, desk, rules, choice, outlook.valid[env], new_roles)
        if not carry_out(s, desk, prompt, token, new_roles):
            slot.suggested_prompt, slot.suggested_token = prompt, token
            return REFUSED
    status = to_next(a, s, desk, slot, rules, crew, new_roles, no_roles)
    if status == INVALID:
        return REFUSED
    run = s.run[0]
    slot.is_due = status == DUE
    slot.decision_kind = run.pending
    now_s = run.now_s if np.isnan(run.closed_s) else run.closed_s
    note(slot, desk, rules, read_meters(s, now_s, rules.counts_missed), order == BEGIN)
    show_end(slot, desk)
    have_masks_changed = mark(slot, desk, rules, outlook.valid[env])
    first, end = changed_since(s, slot.seen)
    slot.seen = run.noted
    kind, scales, observations = slot.decision_kind, rules.scales, outlook.observations
    if have_masks_changed or run.caches_prefixes:
        show_times(desk)
        observe(kind, desk.machines, desk.request, desk.cluster, scales, observations, env)
    else:
        changed = s.notes[first:end]
        times = desk.times, desk.scaled_times
        shown = desk.machines, *times, desk.request, desk.cluster
        observe_changes(kind, *shown, changed, run.is_stale, scales, observations, env)
    return LEAVE if slot.is_due else ENDED


@inner_njit
def decide(  # type: ignore[no-untyped-def]
    slot, desk: BookArrays, rules: Rules, choice: IntArray, valid: BoolArray, new_roles: IntArray
) -> tuple[int, int]:
    """The machines that the learner's choice stands for, and its role change in ``new_roles``."""
    is_tick = slot.decision_kind == TICK
    settle_idle_head(rules.actions, slot.decision_kind, choice, valid)
    if not is_valid(rules.actions, choice, valid):
        slot.invalid_actions += 1
        replace(rules.actions, is_tick, choice, valid, slot.key, slot.invalid_actions)
    named = slot.suggested_prompt, slot.suggested_token
    return translate(rules.actions, is_tick, choice, named[0], named[1], desk.machines, desk.role_mask, new_roles)


@inner_njit
def to_next(  # type: ignore[no-untyped-def]
    a: IntArray, s: State, desk: BookArrays, slot, rules: Rules, crew: Crew, new_roles: IntArray, no_roles: BoolArray
) -> int:
    """Run to the learner's next decision: DUE, OVER or INVALID."""
    run = s.run[0]
    while True:
        status = advance_by(a[CODE + ADVANCE, 0])(a)
        if status != DUE:
            return status  # type: ignore[no-any-return]
        is_tick = run.pending == TICK
        is_warm = run.now_s >= slot.warmup_s
        is_learners = is_warm and rules.decides[run.pending]
        if is_learners and rules.learner != ROUTING:
            break
        if is_warm:
            kernel = crew.other_at_tick if is_tick else crew.other
        else:
            kernel = crew.warming_up_at_tick if is_tick else crew.warming_up
        roles_are_learners = is_warm and rules.learner == REPURPOSING
        prompt, token = ask(s, desk, kernel, no_roles if roles_are_learners else desk.role_mask, new_roles)
        if roles_are_learners:
            new_roles[:] = -1
        if is_learners:  # roles are the other's, machines the learner's
            slot.suggested_prompt, slot.suggested_token = prompt, token
            for m in range(len(new_roles)):
                if new_roles[m] >= 0:
                    if not change(s, desk, m, new_roles[m]):
                        return INVALID
                    new_roles[m] = -1
            break
        if not carry_out(s, desk, prompt, token, new_roles):
            slot.suggested_prompt, slot.suggested_token = prompt, token
            return INVALID
    show(s, desk, False)
    predict(s, desk)
    if run.chooses_late:
        call(s, CHOICES, NARROW, -1, -1, 0)
    return DUE


@inner_njit
def note(slot, desk: BookArrays, rules: Rules, after: Meters, is_first: bool) -> None:  # type: ignore[no-untyped-def]
    """Note where the run stands, and the reward for having come here."""
    counts = rules.is_shaped and (slot.is_due or slot.ends_at_horizon)
    potential_after = potential(after.time_s, desk.rows, desk.laws) if counts else 0.0
    slot.reward, slot.dt_s = 0.0, 0.0
    if not is_first:
        before = Meters(
            slot.time_s,
            slot.time_in_system_s,
            slot.slowdown,
            slot.ttft_missed,
            slot.tbt_missed,
            slot.energy_j,
            slot.arrived,
            slot.finished,
            slot.tokens_out,
            slot.prompt_energy_j,
            slot.token_energy_j,
        )
        step = Step(before, after, slot.potential, potential_after, rules.gamma, rules.usd_per_s)
        slot.reward = weighted(rules.reward, step)
        slot.dt_s = after.time_s - slot.time_s
    slot.time_s = after.time_s
    slot.time_in_system_s = after.time_in_system_s
    slot.slowdown = after.slowdown
    slot.ttft_missed, slot.tbt_missed = after.ttft_missed, after.tbt_missed
    slot.energy_j = after.energy_j
    slot.prompt_energy_j, slot.token_energy_j = after.prompt_energy_j, after.token_energy_j
    slot.arrived, slot.finished, slot.tokens_out = after.arrived, after.finished, after.tokens_out
    slot.potential = potential_after


@inner_njit
def show_end(slot, desk: BookArrays) -> None:  # type: ignore[no-untyped-def]
    """Where the run is over, make the view that of the state there."""
    if not slot.is_due:
        slot.decision_kind = slot.idle_kind
        desk.masked[0] = -1
        fill_view(slot.idle_kind == TICK, slot.time_s, slot.idle_prompt_tokens, slot.idle_predicted, 0, desk)


@inner_njit
def mark(slot, desk: BookArrays, rules: Rules, valid: BoolArray) -> bool:  # type: ignore[no-untyped-def]
    """Write what is valid, and return whether that may have changed."""
    is_tick = slot.decision_kind == TICK
    masked = 2 * desk.masked[2] + is_tick if slot.is_due else -1
    if masked == slot.masked and slot.is_due and not rules.actions.is_late:
        return False
    slot.masked = masked
    mark_valid(rules.actions, is_tick, desk.machines, desk.prompt_mask, desk.token_mask, desk.role_mask, valid)
    if not slot.is_due or rules.actions.is_late:
        open_empty_heads(rules.actions, valid)
    return True


@njit
def decide_one(
    slots: Records, env: int, desk: BookArrays, rules: Rules, choices: IntArray, valid: BoolArray, new_roles: IntArray
) -> tuple[int, int]:
    """`decide`, for an environment whose episode is driven from Python."""
    return decide(slots[env], desk, rules, choices[env], valid[env], new_roles[env])


@njit
def note_one(slots: Records, env: int, desk: BookArrays, rules: Rules, meters: Meters, is_first: bool) -> None:
    """`note`, for an environment whose episode is driven from Python."""
    note(slots[env], desk, rules, meters, is_first)


@njit
def look(slots: Records, env: int, desk: BookArrays, rules: Rules, outlook: Outlook) -> None:
    """Write all that the learner sees."""
    slot = slots[env]
    slot.masked = -1
    show_times(desk)
    show_end(slot, desk)
    mark(slot, desk, rules, outlook.valid[env])
    observe(slot.decision_kind, desk.machines, desk.request, desk.cluster, rules.scales, outlook.observations, env)

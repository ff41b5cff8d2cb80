"""Routing that looks at counts: random, round-robin, the shortest queues, least KV, prompts apart by size."""

from __future__ import annotations

import numpy as np

from splitgym.jit import njit
from splitgym.policies.kernels import (
    BOOKED_KV,
    COMING,
    DECODE_ITERATION_S,
    DECODES,
    KV_CAPACITY,
    OWN,
    PENDING_PROMPTS,
    PENDING_S,
    PROMPT_RATE,
    PROMPT_TOKENS,
    BoolArray,
    least,
    pending_tokens,
    pick,
    stay_or_fewest_decodes,
)
from splitgym.view import TICK


@njit
def random(  # type: ignore[no-untyped-def]  # noqa: D103
    kind, time_s, machines, request, cluster, prompt_mask, token_mask, role_mask, params, state, roles_out
):
    if kind == TICK:
        return -1, -1
    return pick(state, prompt_mask, -1), pick(state, token_mask, -1)


@njit
def next_after(last: int, mask: BoolArray) -> int:
    """The first machine of ``mask`` after ``last``, going round; -1 if there is none."""
    count = len(mask)
    for step in range(1, count + 1):
        m = (last + step) % count
        if mask[m]:
            return m
    return -1


@njit
def round_robin(  # type: ignore[no-untyped-def]
    kind, time_s, machines, request, cluster, prompt_mask, token_mask, role_mask, params, state, roles_out
):
    """``state[OWN:]``: the last prompt machine and token machine, plus one."""
    if kind == TICK:
        return -1, -1
    prompt_machine = next_after(int(state[OWN]) - 1, prompt_mask)
    token_machine = next_after(int(state[OWN + 1]) - 1, token_mask)
    state[OWN] = prompt_machine + 1
    state[OWN + 1] = token_machine + 1
    return prompt_machine, token_machine


@njit
def jsq_requests(  # type: ignore[no-untyped-def]  # noqa: D103
    kind, time_s, machines, request, cluster, prompt_mask, token_mask, role_mask, params, state, roles_out
):
    if kind == TICK:
        return -1, -1
    prompt_machine = least(machines[:, PENDING_PROMPTS] + machines[:, DECODES], prompt_mask)
    return prompt_machine, stay_or_fewest_decodes(prompt_machine, machines, token_mask)


@njit
def jsq_tokens(  # type: ignore[no-untyped-def]  # noqa: D103
    kind, time_s, machines, request, cluster, prompt_mask, token_mask, role_mask, params, state, roles_out
):
    if kind == TICK:
        return -1, -1
    prompt_machine = least(pending_tokens(machines), prompt_mask)
    return prompt_machine, stay_or_fewest_decodes(prompt_machine, machines, token_mask)


@njit
def power_of_two(  # type: ignore[no-untyped-def]  # noqa: D103
    kind, time_s, machines, request, cluster, prompt_mask, token_mask, role_mask, params, state, roles_out
):
    if kind == TICK:
        return -1, -1
    load = pending_tokens(machines)
    prompt_machine = pick(state, prompt_mask, -1)
    other = pick(state, prompt_mask, prompt_machine)
    if other >= 0 and load[other] < load[prompt_machine]:
        prompt_machine = other
    if prompt_machine >= 0 and token_mask[prompt_machine]:
        return prompt_machine, prompt_machine
    token_machine = pick(state, token_mask, -1)
    other = pick(state, token_mask, token_machine)
    if other >= 0:
        here = machines[token_machine, DECODES] + machines[token_machine, COMING]
        if machines[other, DECODES] + machines[other, COMING] < here:
            token_machine = other
    return prompt_machine, token_machine


@njit
def least_kv(  # type: ignore[no-untyped-def]  # noqa: D103
    kind, time_s, machines, request, cluster, prompt_mask, token_mask, role_mask, params, state, roles_out
):
    if kind == TICK:
        return -1, -1
    booked_share = machines[:, BOOKED_KV] / machines[:, KV_CAPACITY]
    prompt_machine = least(booked_share, prompt_mask)
    token_machine = least(booked_share, token_mask)
    if token_mask[prompt_machine] and booked_share[prompt_machine] <= booked_share[token_machine]:
        token_machine = prompt_machine
    return prompt_machine, token_machine


@njit
def size_interval(  # type: ignore[no-untyped-def]
    kind, time_s, machines, request, cluster, prompt_mask, token_mask, role_mask, params, state, roles_out
):
    """``params``: cutoff_tokens. ``state[OWN:]``: fading sums of the tokens in long prompts, and in all.

    The fastest prompt machines take the prompts above the cutoff: as many as have, together, the share of the
    speed that long prompts have of the tokens (SITA-E: equal load), and one at least on either side.
    """
    if kind == TICK:
        return -1, -1
    tokens = request[PROMPT_TOKENS]
    is_long = tokens > params[0]
    state[OWN] = 0.999 * state[OWN] + (tokens if is_long else 0.0)
    state[OWN + 1] = 0.999 * state[OWN + 1] + tokens

    count = len(prompt_mask)
    speed = 0.0
    candidates = 0
    for m in range(count):
        if prompt_mask[m]:
            speed += machines[m, PROMPT_RATE]
            candidates += 1
    goal = speed * state[OWN] / state[OWN + 1]
    for_long = np.zeros(count, np.bool_)
    left = prompt_mask.copy()
    taken = 0.0
    slow_first = -machines[:, PROMPT_RATE]
    for number in range(candidates - 1):
        m = least(slow_first, left)
        if number > 0 and taken + 0.5 * machines[m, PROMPT_RATE] > goal:
            break
        for_long[m] = True
        left[m] = False
        taken += machines[m, PROMPT_RATE]
    own_side = for_long if is_long and candidates > 1 else left
    prompt_machine = least(machines[:, PENDING_S], own_side)
    if prompt_machine >= 0 and token_mask[prompt_machine]:
        return prompt_machine, prompt_machine
    load = (machines[:, DECODES] + machines[:, COMING] + 1.0) * machines[:, DECODE_ITERATION_S]
    return prompt_machine, least(load, token_mask)

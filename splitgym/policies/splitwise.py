"""Splitwise's scheduler (Patel et al., ISCA 2024): two pools, and a mixed pool that machines are taken into.

One kernel serves `splitwise` and `splitwise-tuned`; another moves machines by the same rules at ticks alone.
"""

from __future__ import annotations

import numpy as np

from splitgym.jit import njit
from splitgym.policies.kernels import (
    BASELINE_TBT_S,
    BOOKED_KV,
    COMING,
    DECODES,
    DOWN_FLAG,
    HOMES,
    KV_CAPACITY,
    OUTPUT_TOKENS,
    PENDING_PROMPTS,
    PENDING_TOKENS,
    PROMPT_TOKENS,
    READY_FLAG,
    TBT_S,
    WAITING,
    BoolArray,
    FloatArray,
    IntArray,
    least,
    mask_of_role,
    pending_tokens,
    role_of,
)
from splitgym.view import MIXED, PROMPT, TICK, TOKEN


@njit
def go_home(
    machines: FloatArray,
    role_mask: BoolArray,
    state: FloatArray,
    roles_out: IntArray,
    prompt_machine: int,
    token_machine: int,
) -> None:
    """Send mixed machines home whose foreign work is done, as far as both pools keep a machine.

    A machine's home is the role it had before it became mixed; one that began as mixed is at home. The two
    machines that have just been chosen stay: one that goes home may have to wait for caches to be sent, or
    for a restart.
    """
    prompt_capable = 0
    token_capable = 0
    for m in range(len(machines)):
        role = role_of(machines[m])
        if role != MIXED:
            state[HOMES + m] = role
        if machines[m, DOWN_FLAG] == 0.0:
            prompt_capable += role != TOKEN
            token_capable += role != PROMPT
    for m in range(len(machines)):
        home = int(state[HOMES + m])
        chosen = m in (prompt_machine, token_machine)
        if chosen or role_of(machines[m]) != MIXED or home == MIXED or not role_mask[m, home]:
            continue
        if home == PROMPT:
            if machines[m, DECODES] + machines[m, COMING] == 0.0 and token_capable > 1:
                roles_out[m] = PROMPT
                token_capable -= 1
        elif machines[m, PENDING_PROMPTS] == 0.0 and prompt_capable > 1:
            roles_out[m] = TOKEN
            prompt_capable -= 1


@njit
def prompts_overloaded(machine_row: FloatArray, tokens: float, threshold_tokens: float) -> bool:
    """Whether a machine's queue is not empty and this prompt would take it beyond the threshold."""
    return bool(machine_row[WAITING] > 0.0 and machine_row[PENDING_TOKENS] + tokens > threshold_tokens)


@njit
def tokens_overloaded(machine_row: FloatArray, request: FloatArray, tbt_slowdown: float) -> bool:
    """Whether the request's memory does not fit, or its predicted TBT would exceed its objective."""
    tokens = request[PROMPT_TOKENS] + request[OUTPUT_TOKENS]
    if machine_row[BOOKED_KV] + tokens > machine_row[KV_CAPACITY]:
        return True
    return bool(machine_row[TBT_S] > tbt_slowdown * request[BASELINE_TBT_S])


@njit
def splitwise(  # type: ignore[no-untyped-def]
    kind, time_s, machines, request, cluster, prompt_mask, token_mask, role_mask, params, state, roles_out
):
    """``params``: prompt_threshold_tokens, tbt_slowdown (infinite in the published scheduler)."""
    prompt_machine = token_machine = -1
    if kind != TICK:
        prompt_machine, token_machine = find_machines(
            machines, request, prompt_mask, token_mask, role_mask, params[0], params[1]
        )
        if prompt_machine >= 0 and not prompt_mask[prompt_machine]:
            roles_out[prompt_machine] = MIXED
        if token_machine >= 0 and not token_mask[token_machine]:
            roles_out[token_machine] = MIXED
    go_home(machines, role_mask, state, roles_out, prompt_machine, token_machine)
    return prompt_machine, token_machine


@njit
def find_machines(
    machines: FloatArray,
    request: FloatArray,
    prompt_mask: BoolArray,
    token_mask: BoolArray,
    role_mask: BoolArray,
    threshold_tokens: float,
    tbt_slowdown: float,
) -> tuple[int, int]:
    """The prompt machine and the token machine; one that its mask leaves out has to become mixed.

    Both searches come before either pool is robbed. A machine is robbed only if it may become mixed; where
    that is not permitted, the best machine of the own pool must do. If nothing is found at all, the machine
    with fewest pending tokens that does, or may do, both phases does both.
    """
    tokens = request[PROMPT_TOKENS]
    count = len(machines)
    at_prompt = mask_of_role(machines, PROMPT, prompt_mask)
    at_token = mask_of_role(machines, TOKEN, token_mask)
    mixed = mask_of_role(machines, MIXED, prompt_mask & token_mask)
    may_join = np.zeros(count, np.bool_)
    for m in range(count):
        fits = machines[m, KV_CAPACITY] > tokens
        may_join[m] = role_mask[m, MIXED] and machines[m, READY_FLAG] > 0.0 and fits
    load = pending_tokens(machines)
    booked = machines[:, BOOKED_KV]

    own_prompt = least(load, at_prompt)
    own_token = least(booked, at_token)
    prompt_machine = own_prompt
    if prompt_machine < 0 or prompts_overloaded(machines[prompt_machine], tokens, threshold_tokens):
        prompt_machine = least(load, mixed)
        if prompt_machine >= 0 and prompts_overloaded(machines[prompt_machine], tokens, threshold_tokens):
            prompt_machine = -1
    token_machine = own_token
    if token_machine < 0 or tokens_overloaded(machines[token_machine], request, tbt_slowdown):
        token_machine = least(booked, mixed)
        if token_machine >= 0 and tokens_overloaded(machines[token_machine], request, tbt_slowdown):
            token_machine = -1

    if prompt_machine < 0:
        prompt_machine = least(load, at_token & may_join)
    if token_machine < 0:
        token_machine = least(booked, at_prompt & may_join)
    # A pool that could be robbed but for its masks is another matter than one that has been robbed of all.
    if (prompt_machine < 0 and not at_token.any()) or (token_machine < 0 and not at_prompt.any()):
        one = least(load, mixed | ((at_prompt | at_token) & may_join))
        if one >= 0:
            return one, one
    if prompt_machine < 0:
        prompt_machine = own_prompt if own_prompt >= 0 else least(load, prompt_mask)
    if token_machine < 0:
        token_machine = own_token if own_token >= 0 else least(booked, token_mask)
    return prompt_machine, token_machine


@njit
def mixed_pool(  # type: ignore[no-untyped-def]
    kind, time_s, machines, request, cluster, prompt_mask, token_mask, role_mask, params, state, roles_out
):
    """``params``: prompt_threshold_tokens, kv_share, max_decodes.

    A pool is overloaded when its least loaded machine, mixed ones included, is. Then the least loaded machine
    of the other pool joins the mixed pool. At half of the thresholds mixed machines are sent home, even with
    work to finish.
    """
    if kind != TICK:
        return -1, -1
    go_home(machines, role_mask, state, roles_out, -1, -1)
    count = len(machines)
    staying = np.zeros(count, np.bool_)
    prompt_capable = 0
    token_capable = 0
    for m in range(count):
        staying[m] = roles_out[m] < 0 and machines[m, READY_FLAG] > 0.0
        role = role_of(machines[m]) if roles_out[m] < 0 else roles_out[m]
        if machines[m, DOWN_FLAG] == 0.0:
            prompt_capable += role != TOKEN
            token_capable += role != PROMPT
    load = pending_tokens(machines)
    decodes = machines[:, DECODES] + machines[:, COMING]
    at_prompt = mask_of_role(machines, PROMPT, staying)
    at_token = mask_of_role(machines, TOKEN, staying)
    mixed = mask_of_role(machines, MIXED, staying)
    prompt_machine = least(load, at_prompt | mixed)
    token_machine = least(decodes, at_token | mixed)
    prompt_pressure = np.inf
    if prompt_machine >= 0:
        prompt_pressure = machines[prompt_machine, PENDING_TOKENS] / params[0]
    token_pressure = np.inf
    if token_machine >= 0:
        kv_share = machines[token_machine, BOOKED_KV] / machines[token_machine, KV_CAPACITY]
        token_pressure = max(kv_share / params[1], decodes[token_machine] / params[2])

    if prompt_pressure > 1.0:
        joining = least(load, at_token & role_mask[:, MIXED])
        if joining >= 0:
            roles_out[joining] = MIXED
    if token_pressure > 1.0:
        joining = least(load, at_prompt & role_mask[:, MIXED])
        if joining >= 0:
            roles_out[joining] = MIXED
    for m in range(count):
        home = int(state[HOMES + m])
        if not mixed[m] or home == MIXED or not role_mask[m, home]:
            continue
        if home == TOKEN and prompt_pressure < 0.5 and prompt_capable > 1:
            roles_out[m] = TOKEN
            prompt_capable -= 1
        elif home == PROMPT and token_pressure < 0.5 and token_capable > 1:
            roles_out[m] = PROMPT
            token_capable -= 1
    return -1, -1

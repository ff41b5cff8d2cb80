"""Splitwise's scheduler (Patel et al., ISCA 2024): two pools, and a mixed pool that machines are taken into.

One kernel serves `splitwise` and `splitwise-tuned`; another moves machines by the same rules at ticks alone.
"""

from __future__ import annotations

import numpy as np

from splitgym.jit import njit
from splitgym.policies.kernels import (
    BOOKED_KV,
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
    best,
    decodes_of,
    least,
    mask_of_role,
    pending_tokens_of,
    rank,
    ranking,
    ready_for,
    role_of,
    tbt_limit_s,
)
from splitgym.view import MIXED, PROMPT, PROMPT_END, TICK, TOKEN

# Rankings: prompt machines by pending tokens, token machines by booked memory; those that are to go home.
BY_LOAD, BY_BOOKED, HOMESICK = range(3)
ANY = 3  # in place of a role


@njit
def learn_home(machine_row: FloatArray, m: int, state: FloatArray) -> int:
    """A machine's home is the role it had before it became mixed; one that began as mixed is at home."""
    role = role_of(machine_row)
    if role != MIXED:
        state[HOMES + m] = role
    return role


@njit
def is_homesick(machine_row: FloatArray, home: int) -> bool:
    """Whether the foreign work of a mixed machine is done."""
    if home == PROMPT:
        return bool(decodes_of(machine_row) == 0.0)
    return bool(home == TOKEN and machine_row[PENDING_PROMPTS] == 0.0)


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

    The two machines that have just been chosen stay: one that goes home may have to wait for caches to be sent,
    or for a restart.
    """
    prompt_capable = 0
    token_capable = 0
    for m in range(len(machines)):
        if machines[m, DOWN_FLAG] == 0.0:
            role = role_of(machines[m])
            prompt_capable += role != TOKEN
            token_capable += role != PROMPT
    for m in range(len(machines)):
        home = int(state[HOMES + m])
        chosen = m in (prompt_machine, token_machine)
        if chosen or role_of(machines[m]) != MIXED or not is_homesick(machines[m], home) or not role_mask[m, home]:
            continue
        if home == PROMPT and token_capable > 1:
            roles_out[m] = PROMPT
            token_capable -= 1
        elif home == TOKEN and prompt_capable > 1:
            roles_out[m] = TOKEN
            prompt_capable -= 1


@njit
def prompts_overloaded(machine_row: FloatArray, request: FloatArray, threshold_tokens: float) -> bool:
    """Whether a machine's queue is not empty and this prompt would take it beyond the threshold."""
    tokens = machine_row[PENDING_TOKENS] + request[PROMPT_TOKENS]
    return bool(machine_row[WAITING] > 0.0 and tokens > threshold_tokens)


@njit
def tokens_overloaded(machine_row: FloatArray, request: FloatArray, tbt_slowdown: float) -> bool:
    """Whether the request's memory does not fit, or its predicted TBT would exceed its objective."""
    tokens = request[PROMPT_TOKENS] + request[OUTPUT_TOKENS]
    if machine_row[BOOKED_KV] + tokens > machine_row[KV_CAPACITY]:
        return True
    return bool(tbt_slowdown < np.inf and machine_row[TBT_S] > tbt_limit_s(request, tbt_slowdown))


@njit
def splitwise(  # type: ignore[no-untyped-def]
    kind, time_s, machines, request, cluster, prompt_mask, token_mask, role_mask, changed, params, state, roles_out
):
    """``params``: prompt_threshold_tokens, tbt_slowdown (infinite as published, else as in `least_ttft`)."""
    by_load = ranking(state, len(machines), BY_LOAD)
    by_booked = ranking(state, len(machines), BY_BOOKED)
    homesick = ranking(state, len(machines), HOMESICK)
    is_prompt_end = kind == PROMPT_END
    is_token_asked = kind == TICK or token_mask.any()
    for m in changed:  # all of them where token machines are chosen late
        row = machines[m]
        role = learn_home(row, m, state)
        if not is_prompt_end:
            rank(by_load, m, pending_tokens_of(row) if role == PROMPT and prompt_mask[m] else np.inf)
        if is_token_asked:
            rank(by_booked, m, row[BOOKED_KV] if role == TOKEN and token_mask[m] else np.inf)
        rank(homesick, m, 0.0 if role == MIXED and is_homesick(row, int(state[HOMES + m])) else np.inf)
    prompt_machine = token_machine = -1
    if kind != TICK:
        enough_prompt, enough_token = is_prompt_end, not is_token_asked
        if not is_prompt_end:
            prompt_machine = best(by_load)
            enough_prompt = prompt_machine >= 0 and not prompts_overloaded(machines[prompt_machine], request, params[0])
        if is_token_asked:
            token_machine = best(by_booked)
            enough_token = token_machine >= 0 and not tokens_overloaded(machines[token_machine], request, params[1])
        if enough_prompt and enough_token:
            pass
        elif is_prompt_end or not is_token_asked:
            prompt_machine, token_machine = look_for_one(
                machines, request, prompt_mask, token_mask, role_mask, params,
                prompt_machine, token_machine, enough_prompt, is_prompt_end,
            )  # fmt: skip
        else:
            prompt_machine, token_machine = look_further(
                machines, request, prompt_mask, token_mask, role_mask, params,
                prompt_machine, token_machine, enough_prompt, enough_token,
            )  # fmt: skip
        if prompt_machine >= 0 and not prompt_mask[prompt_machine]:
            roles_out[prompt_machine] = MIXED
        if token_machine >= 0 and not token_mask[token_machine]:
            roles_out[token_machine] = MIXED
    if best(homesick) >= 0:
        go_home(machines, role_mask, state, roles_out, prompt_machine, token_machine)
    return prompt_machine, token_machine


@njit
def look_for_one(
    machines: FloatArray,
    request: FloatArray,
    prompt_mask: BoolArray,
    token_mask: BoolArray,
    role_mask: BoolArray,
    params: FloatArray,
    own_prompt: int,
    own_token: int,
    enough_prompt: bool,
    is_prompt_end: bool,
) -> tuple[int, int]:
    """`look_further` where one of the two is asked for alone; for the other, whatever is ready will do."""
    if is_prompt_end:
        prompts = ready_for(machines, request, PROMPT)
        own_prompt = least(pending_tokens_of(machines.T), mask_of_role(machines, PROMPT, prompts))
        found = look_further(
            machines, request, prompts, token_mask, role_mask, params, own_prompt, own_token, True, False
        )
        return -1, found[1]
    tokens = ready_for(machines, request, TOKEN)
    own_token = least(machines[:, BOOKED_KV], mask_of_role(machines, TOKEN, tokens))
    found = look_further(
        machines, request, prompt_mask, tokens, role_mask, params, own_prompt, own_token, enough_prompt, True
    )
    return found[0], -1


@njit
def look_further(
    machines: FloatArray,
    request: FloatArray,
    prompt_mask: BoolArray,
    token_mask: BoolArray,
    role_mask: BoolArray,
    params: FloatArray,
    own_prompt: int,
    own_token: int,
    enough_prompt: bool,
    enough_token: bool,
) -> tuple[int, int]:
    """The prompt machine and the token machine where the best of a pool is not enough.

    One that its mask leaves out has to become mixed. Both searches come before either pool is robbed. A machine is
    robbed only if it may become mixed; where that is not permitted, the best machine of the own pool must do. If
    nothing is found at all, the machine with fewest pending tokens that does, or may do, both phases does both.
    """
    by_load, by_booked = mixed_or_joining(machines, request, prompt_mask, token_mask, role_mask)
    prompt_machine, token_machine = own_prompt, own_token
    if not enough_prompt:
        prompt_machine = by_load[MIXED]
        if prompt_machine < 0 or prompts_overloaded(machines[prompt_machine], request, params[0]):
            prompt_machine = by_load[TOKEN]
    if not enough_token:
        token_machine = by_booked[MIXED]
        if token_machine < 0 or tokens_overloaded(machines[token_machine], request, params[1]):
            token_machine = by_booked[PROMPT]
    # A pool that could be robbed but for its masks is another matter than one that has been robbed of all.
    a_pool_is_empty = (prompt_machine < 0 and own_token < 0) or (token_machine < 0 and own_prompt < 0)
    if a_pool_is_empty and by_load[ANY] >= 0:
        return by_load[ANY], by_load[ANY]
    if prompt_machine < 0:
        prompt_machine = own_prompt if own_prompt >= 0 else least(pending_tokens_of(machines.T), prompt_mask)
    if token_machine < 0:
        token_machine = own_token if own_token >= 0 else least(machines[:, BOOKED_KV], token_mask)
    return prompt_machine, token_machine


@njit
def mixed_or_joining(
    machines: FloatArray, request: FloatArray, prompt_mask: BoolArray, token_mask: BoolArray, role_mask: BoolArray
) -> tuple[IntArray, IntArray]:
    """(4,) of each role, and of ANY, the machine with fewest pending tokens; (4,) the one with least booked memory.

    Those of the two pools count only if they may become mixed; -1 stands for none.
    """
    by_load, by_booked = np.full(4, -1), np.full(4, -1)
    for m in range(len(machines)):
        row = machines[m]
        role = role_of(row)
        if (role != TOKEN and not prompt_mask[m]) or (role != PROMPT and not token_mask[m]):
            continue
        fits = row[KV_CAPACITY] > request[PROMPT_TOKENS]
        if role != MIXED and not (role_mask[m, MIXED] and row[READY_FLAG] > 0.0 and fits):
            continue
        for group in (role, ANY):
            one = by_load[group]
            if one < 0 or pending_tokens_of(row) < pending_tokens_of(machines[one]):
                by_load[group] = m
            one = by_booked[group]
            if one < 0 or row[BOOKED_KV] < machines[one, BOOKED_KV]:
                by_booked[group] = m
    return by_load, by_booked


@njit
def mixed_pool(  # type: ignore[no-untyped-def]
    kind, time_s, machines, request, cluster, prompt_mask, token_mask, role_mask, changed, params, state, roles_out
):
    """``params``: prompt_threshold_tokens, kv_share, max_decodes.

    A pool is overloaded when its least loaded machine, mixed ones included, is. Then the least loaded machine
    of the other pool joins the mixed pool. At half of the thresholds mixed machines are sent home, even with
    work to finish.
    """
    for m in changed:
        learn_home(machines[m], m, state)
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
    load = pending_tokens_of(machines.T)
    decodes = decodes_of(machines.T)
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

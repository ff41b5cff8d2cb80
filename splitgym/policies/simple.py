"""Routing that looks at counts: random, round-robin, the shortest queues, least KV, prompts apart by size."""

from __future__ import annotations

import numpy as np

from splitgym.jit import njit
from splitgym.policies.kernels import (
    BOOKED_KV,
    DECODE_ITERATION_S,
    DECODES,
    KV_CAPACITY,
    OWN,
    PENDING_PROMPTS,
    PENDING_S,
    PROMPT_RATE,
    PROMPT_TOKENS,
    BoolArray,
    FloatArray,
    best,
    decodes_of,
    pending_tokens_of,
    pick,
    rank,
    ranking,
)
from splitgym.view import PROMPT_END, TICK


@njit
def random(  # type: ignore[no-untyped-def]  # noqa: D103
    kind, time_s, machines, request, cluster, prompt_mask, token_mask, role_mask, changed, params, state, roles_out
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
    kind, time_s, machines, request, cluster, prompt_mask, token_mask, role_mask, changed, params, state, roles_out
):
    """``state[OWN:]``: the last prompt machine and token machine, plus one."""
    if kind == TICK:
        return -1, -1
    prompt_machine = next_after(int(state[OWN]) - 1, prompt_mask)
    token_machine = next_after(int(state[OWN + 1]) - 1, token_mask)
    if kind != PROMPT_END:
        state[OWN] = prompt_machine + 1
    if token_machine >= 0:
        state[OWN + 1] = token_machine + 1
    return prompt_machine, token_machine


@njit
def stay_or_move(prompt_machine: int, token_mask: BoolArray, other: int) -> int:
    """The token machine: ``prompt_machine`` if it may decode, too, since then nothing is sent, else the ``other``."""
    return prompt_machine if prompt_machine >= 0 and token_mask[prompt_machine] else other


@njit
def jsq_requests(  # type: ignore[no-untyped-def]  # noqa: D103
    kind, time_s, machines, request, cluster, prompt_mask, token_mask, role_mask, changed, params, state, roles_out
):
    by_requests, by_decodes = ranking(state, len(machines), 0), ranking(state, len(machines), 1)
    for m in changed:
        requests = machines[m, PENDING_PROMPTS] + machines[m, DECODES]
        rank(by_requests, m, requests if prompt_mask[m] else np.inf)
        rank(by_decodes, m, decodes_of(machines[m]) if token_mask[m] else np.inf)
    if kind == TICK:
        return -1, -1
    prompt_machine = best(by_requests)
    return prompt_machine, stay_or_move(prompt_machine, token_mask, best(by_decodes))


@njit
def jsq_tokens(  # type: ignore[no-untyped-def]  # noqa: D103
    kind, time_s, machines, request, cluster, prompt_mask, token_mask, role_mask, changed, params, state, roles_out
):
    by_tokens, by_decodes = ranking(state, len(machines), 0), ranking(state, len(machines), 1)
    for m in changed:
        rank(by_tokens, m, pending_tokens_of(machines[m]) if prompt_mask[m] else np.inf)
        rank(by_decodes, m, decodes_of(machines[m]) if token_mask[m] else np.inf)
    if kind == TICK:
        return -1, -1
    prompt_machine = best(by_tokens)
    return prompt_machine, stay_or_move(prompt_machine, token_mask, best(by_decodes))


@njit
def power_of_two(  # type: ignore[no-untyped-def]  # noqa: D103
    kind, time_s, machines, request, cluster, prompt_mask, token_mask, role_mask, changed, params, state, roles_out
):
    if kind == TICK:
        return -1, -1
    prompt_machine = pick(state, prompt_mask, -1)
    other = pick(state, prompt_mask, prompt_machine)
    if other >= 0 and pending_tokens_of(machines[other]) < pending_tokens_of(machines[prompt_machine]):
        prompt_machine = other
    if prompt_machine >= 0 and token_mask[prompt_machine]:
        return prompt_machine, prompt_machine
    token_machine = pick(state, token_mask, -1)
    other = pick(state, token_mask, token_machine)
    if other >= 0 and decodes_of(machines[other]) < decodes_of(machines[token_machine]):
        token_machine = other
    return prompt_machine, token_machine


@njit
def least_kv(  # type: ignore[no-untyped-def]  # noqa: D103
    kind, time_s, machines, request, cluster, prompt_mask, token_mask, role_mask, changed, params, state, roles_out
):
    for_prompts, for_tokens = ranking(state, len(machines), 0), ranking(state, len(machines), 1)
    for m in changed:
        booked_share = machines[m, BOOKED_KV] / machines[m, KV_CAPACITY]
        rank(for_prompts, m, booked_share if prompt_mask[m] else np.inf)
        rank(for_tokens, m, booked_share if token_mask[m] else np.inf)
    if kind == TICK:
        return -1, -1
    prompt_machine, token_machine = best(for_prompts), best(for_tokens)
    if token_mask[prompt_machine] and for_prompts[1] <= for_tokens[1]:
        token_machine = prompt_machine
    return prompt_machine, token_machine


@njit
def size_interval(  # type: ignore[no-untyped-def]
    kind, time_s, machines, request, cluster, prompt_mask, token_mask, role_mask, changed, params, state, roles_out
):
    """``params``: cutoff_tokens. ``state[OWN:]``: fading sums of the tokens in long prompts, and in all.

    The fastest prompt machines take the prompts above the cutoff: as many as have, together, the share of the
    speed that long prompts have of the tokens (SITA-E: equal load), and one at least on either side.
    """
    if kind == TICK:
        return -1, -1
    tokens = request[PROMPT_TOKENS]
    is_long = tokens > params[0]
    if kind != PROMPT_END:
        state[OWN] = 0.999 * state[OWN] + (tokens if is_long else 0.0)
        state[OWN + 1] = 0.999 * state[OWN + 1] + tokens

    speed = 0.0
    candidates = 0
    for m in range(len(prompt_mask)):
        if prompt_mask[m]:
            speed += machines[m, PROMPT_RATE]
            candidates += 1
    goal = speed * state[OWN] / max(state[OWN + 1], 1.0)
    edge_rate, edge = slowest_for_long(machines, prompt_mask, goal, candidates - 1)
    prompt_machine = -1
    for m in range(len(prompt_mask)):
        rate = machines[m, PROMPT_RATE]
        takes_long = rate > edge_rate or (rate == edge_rate and m <= edge)
        if not prompt_mask[m] or takes_long != (is_long and candidates > 1):
            continue
        if prompt_machine < 0 or machines[m, PENDING_S] < machines[prompt_machine, PENDING_S]:
            prompt_machine = m
    if prompt_machine >= 0 and token_mask[prompt_machine]:
        return prompt_machine, prompt_machine
    token_machine, least_load = -1, np.inf
    for m in range(len(token_mask)):
        load = (decodes_of(machines[m]) + 1.0) * machines[m, DECODE_ITERATION_S]
        if token_mask[m] and load < least_load:
            token_machine, least_load = m, load
    return prompt_machine, token_machine


@njit
def slowest_for_long(machines: FloatArray, mask: BoolArray, goal: float, most: int) -> tuple[float, int]:
    """The rate and number of the last of those, fastest first, that come nearest to a rate of ``goal`` together.

    They are one at least and ``most`` at most; of equals the first. Infinity and -1 where there may be none.
    """
    edge_rate, edge = np.inf, -1
    taken = 0.0
    number = 0
    while number < most:
        rate = -np.inf
        for m in range(len(mask)):
            if mask[m] and machines[m, PROMPT_RATE] < edge_rate:
                rate = max(rate, machines[m, PROMPT_RATE])
        for m in range(len(mask)):
            if mask[m] and machines[m, PROMPT_RATE] == rate:
                if number == most or (number > 0 and taken + 0.5 * rate > goal):
                    return edge_rate, edge
                edge_rate, edge = rate, m
                taken += rate
                number += 1
    return edge_rate, edge

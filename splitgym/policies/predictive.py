"""Routing by what the latency law predicts: TTFT, TBT, E2E, and mixtures of load and speed."""

from __future__ import annotations

import numpy as np

from splitgym.jit import njit
from splitgym.policies.kernels import (
    BOOKED_KV,
    DECODE_ITERATION_S,
    DECODES,
    KV_CAPACITY,
    OUTPUT_TOKENS,
    PENDING_PROMPTS,
    PENDING_TOKENS,
    PROMPT_RATE,
    PROMPT_TOKEN_RATE,
    PROMPT_TOKENS,
    TBT_S,
    TRANSFER_S,
    TTFT_S,
    BoolArray,
    FloatArray,
    best,
    decodes_of,
    least,
    pending_tokens_of,
    rank,
    ranking,
    ready_for,
    tbt_limit_s,
    ttft_limit_s,
)
from splitgym.view import PROMPT, PROMPT_END, TICK, TOKEN


@njit
def roomy(machines: FloatArray, request: FloatArray, mask: BoolArray) -> BoolArray:
    """Those of ``mask`` (num_machines,) whose memory holds what is booked and this request, if any does."""
    tokens = request[PROMPT_TOKENS] + request[OUTPUT_TOKENS]
    found = np.zeros(len(mask), np.bool_)
    some = False
    for m in range(len(mask)):
        found[m] = mask[m] and machines[m, BOOKED_KV] + tokens <= machines[m, KV_CAPACITY]
        some = some or found[m]
    return found if some else mask.copy()


@njit
def least_ttft(  # type: ignore[no-untyped-def]
    kind, time_s, machines, request, cluster, prompt_mask, token_mask, role_mask, changed, params, state, roles_out
):
    """``params``: ttft_slowdown, tbt_slowdown, which count where requests have no class with its own promises.

    A mixed machine must keep its TBT objective, too. The token machine is the prompt machine if it may decode
    and keeps the TBT objective, else the one with least TBT. Where no machine is feasible, the least TTFT
    will do.
    """
    if kind == TICK:
        return -1, -1
    most_ttft_s, most_tbt_s = ttft_limit_s(request, params[0]), tbt_limit_s(request, params[1])
    can_decode = roomy(machines, request, token_mask)
    feasible = np.zeros(len(prompt_mask), np.bool_)
    decodes = token_mask if token_mask.any() else ready_for(machines, request, TOKEN)  # the latter: asked for later
    for m in range(len(prompt_mask)):
        keeps_tbt = not decodes[m] or machines[m, TBT_S] <= most_tbt_s
        feasible[m] = prompt_mask[m] and keeps_tbt and machines[m, TTFT_S] <= most_ttft_s
    ttft_s = machines[:, TTFT_S]
    prompt_machine = least(ttft_s, feasible)
    if prompt_machine < 0:
        prompt_machine = least(ttft_s, prompt_mask)
    if prompt_machine >= 0 and can_decode[prompt_machine] and machines[prompt_machine, TBT_S] <= most_tbt_s:
        return prompt_machine, prompt_machine
    return prompt_machine, least(machines[:, TBT_S], can_decode)


@njit
def lmetric(  # type: ignore[no-untyped-def]
    kind, time_s, machines, request, cluster, prompt_mask, token_mask, role_mask, changed, params, state, roles_out
):
    """Tokens are divided by the machine's prompt rate and the batch is weighed by its decode iteration.

    With machines all alike that changes nothing; with several hardware types a slow machine counts as fuller.
    The token machine is the prompt machine if it may decode, else the one with the least batch x iteration.
    """
    by_batch = ranking(state, len(machines), 0)
    for m in changed:
        batch = (decodes_of(machines[m]) + 1.0) * machines[m, DECODE_ITERATION_S]
        rank(by_batch, m, batch if token_mask[m] else np.inf)
    if kind == TICK:
        return -1, -1
    prompt_machine, least_prefill = -1, np.inf
    for m in range(len(prompt_mask)):
        if prompt_mask[m]:
            batch_size = machines[m, PENDING_PROMPTS] + machines[m, DECODES] + 1.0
            prefill_s = (request[PROMPT_TOKENS] + machines[m, PENDING_TOKENS]) / machines[m, PROMPT_RATE]
            if prefill_s * batch_size < least_prefill:
                prompt_machine, least_prefill = m, prefill_s * batch_size
    if prompt_machine >= 0 and token_mask[prompt_machine]:
        return prompt_machine, prompt_machine
    return prompt_machine, best(by_batch)


@njit
def fullest_feasible(  # type: ignore[no-untyped-def]
    kind, time_s, machines, request, cluster, prompt_mask, token_mask, role_mask, changed, params, state, roles_out
):
    """``params``: ttft_slowdown, tbt_slowdown, as in `least_ttft`.

    Fullest: the greatest predicted TTFT (for the token machine, TBT) that keeps the objective. The token
    machine is the prompt machine if it may decode and keeps the TBT objective. Where none is feasible, the
    least will do.
    """
    if kind == TICK:
        return -1, -1
    most_ttft_s, most_tbt_s = ttft_limit_s(request, params[0]), tbt_limit_s(request, params[1])
    can_decode = roomy(machines, request, token_mask)
    prompts = np.zeros(len(prompt_mask), np.bool_)
    tokens = np.zeros(len(prompt_mask), np.bool_)
    for m in range(len(prompt_mask)):
        prompts[m] = prompt_mask[m] and machines[m, TTFT_S] <= most_ttft_s
        tokens[m] = can_decode[m] and machines[m, TBT_S] <= most_tbt_s
    prompt_machine = least(-machines[:, TTFT_S], prompts)
    if prompt_machine < 0:
        prompt_machine = least(machines[:, TTFT_S], prompt_mask)
    if prompt_machine >= 0 and tokens[prompt_machine]:
        return prompt_machine, prompt_machine
    token_machine = least(-machines[:, TBT_S], tokens)
    if token_machine < 0:
        token_machine = least(machines[:, TBT_S], can_decode)
    return prompt_machine, token_machine


@njit
def freeness(  # type: ignore[no-untyped-def]
    kind, time_s, machines, request, cluster, prompt_mask, token_mask, role_mask, changed, params, state, roles_out
):
    """Freeness = (capacity − virtual usage)/batch size; virtual usage is the memory of all assigned work.

    The freest machine decodes. It takes the prompt, too, if it may, else the one with fewest pending tokens
    does.
    """
    by_room, by_tokens = ranking(state, len(machines), 0), ranking(state, len(machines), 1)
    for m in changed:
        room = (machines[m, KV_CAPACITY] - machines[m, BOOKED_KV]) / (decodes_of(machines[m]) + 1.0)
        rank(by_room, m, -room if token_mask[m] else np.inf)
        rank(by_tokens, m, pending_tokens_of(machines[m]) if prompt_mask[m] else np.inf)
    if kind == TICK:
        return -1, -1
    token_machine = best(by_room)
    if token_machine >= 0 and prompt_mask[token_machine]:
        return token_machine, token_machine
    return best(by_tokens), token_machine


@njit
def least_e2e(  # type: ignore[no-untyped-def]
    kind, time_s, machines, request, cluster, prompt_mask, token_mask, role_mask, changed, params, state, roles_out
):
    """E2E = TTFT + transfer + (output − 1) · TBT, over all pairs; of equals the one without a transfer.

    On a machine that takes prompts, too, decodes progress in the time that prompts leave: its TBT is divided
    by 1 − the cluster's prompt utilisation (at most 0.9). A transfer is as fast as the slower link.
    """
    if kind == TICK:
        return -1, -1
    count = len(prompt_mask)
    takes_prompts = ready_for(machines, request, PROMPT) if kind == PROMPT_END else prompt_mask
    rate = 0.0
    for m in range(count):
        if takes_prompts[m]:
            rate += machines[m, PROMPT_RATE]
    free = 1.0 - min(cluster[PROMPT_TOKEN_RATE] / max(rate, 1.0), 0.9)
    can_decode = roomy(machines, request, token_mask)
    gaps = max(request[OUTPUT_TOKENS] - 1.0, 0.0)
    best_s = np.inf
    prompt_machine = -1
    token_machine = -1
    for t in range(count):
        if not can_decode[t]:
            continue
        decode_s = gaps * machines[t, TBT_S]
        if takes_prompts[t]:
            decode_s /= free
        for p in range(count):
            if not prompt_mask[p]:
                continue
            e2e_s = machines[p, TTFT_S] + decode_s
            if p != t and gaps > 0.0:
                e2e_s += max(machines[p, TRANSFER_S], machines[t, TRANSFER_S])
            if e2e_s < best_s or (e2e_s == best_s and p == t):
                best_s = e2e_s
                prompt_machine = p
                token_machine = t
    if prompt_machine < 0:  # no token machine is asked for yet
        prompt_machine = least(machines[:, TTFT_S], prompt_mask)
    return prompt_machine, token_machine

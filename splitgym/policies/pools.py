"""Pool policies: at each control tick, whether a machine moves between the prompt pool and the token pool.

All move one machine at a time, the one with least work in the pool that gives, and then wait: ``dwell_s``, or
as long as a change takes if that is longer. Mixed machines are left alone.
"""

from __future__ import annotations

from splitgym.jit import njit
from splitgym.policies.kernels import (
    COMING,
    DECODE_ITERATION_S,
    DECODES,
    DOWN_FLAG,
    DRAINING_FLAG,
    OUTPUT_TOKEN_RATE,
    OWN,
    PENDING_S,
    PENDING_TOKENS,
    PROMPT_RATE,
    PROMPT_TOKEN_RATE,
    REMAINING,
    ROLE_FLAGS,
    SWITCH_S,
    SWITCHING_FLAG,
    BoolArray,
    FloatArray,
    IntArray,
)
from splitgym.view import PROMPT, TICK, TOKEN

# A pool policy's own numbers in its state.
CHANGED_S, CHANGES = OWN, OWN + 1  # time of the last change, how many there were
SEEN_S, SEEN = OWN + 2, OWN + 3  # time of the last tick, how many there were
PROMPT_TREND, OUTPUT_TREND = OWN + 4, OWN + 6  # each a level and its slope per second


@njit
def move_one(
    time_s: float,
    machines: FloatArray,
    role_mask: BoolArray,
    new_role: int,
    dwell_s: float,
    state: FloatArray,
    roles_out: IntArray,
) -> None:
    """Give ``new_role`` to one machine of the other pool, unless a change is under way or the last one is young.

    It is the one whose hardware suits the new phase best (prompt rate x decode iteration, greatest for prompts), of
    machines that are alike the one with least work.
    """
    if state[CHANGES] > 0.0 and time_s - state[CHANGED_S] < dwell_s:
        return
    old_role = TOKEN if new_role == PROMPT else PROMPT
    sign = 1.0 if new_role == PROMPT else -1.0
    chosen = -1
    best_fit = 0.0
    least_work = 0.0
    for m in range(len(machines)):
        if machines[m, DRAINING_FLAG] > 0.0 or machines[m, SWITCHING_FLAG] > 0.0:
            return
        if not role_mask[m, new_role] or machines[m, ROLE_FLAGS + old_role] == 0.0:
            continue
        fit = sign * machines[m, PROMPT_RATE] * machines[m, DECODE_ITERATION_S]
        work = machines[m, PENDING_TOKENS] + machines[m, REMAINING]
        if chosen < 0 or fit > best_fit or (fit == best_fit and work < least_work):
            chosen, best_fit, least_work = m, fit, work
    if chosen >= 0:
        roles_out[chosen] = new_role
        state[CHANGED_S] = time_s
        state[CHANGES] += 1.0


@njit
def static(  # type: ignore[no-untyped-def]
    kind, time_s, machines, request, cluster, prompt_mask, token_mask, role_mask, changed, params, state, roles_out
):
    """Nothing moves."""
    return -1, -1


@njit
def threshold(  # type: ignore[no-untyped-def]
    kind, time_s, machines, request, cluster, prompt_mask, token_mask, role_mask, changed, params, state, roles_out
):
    """``params``: prompt_high_s, decodes_high, slack, utilisation, dwell_s.

    A pool's pressure is its pending prompt seconds per machine, for the token pool its decodes (coming ones included)
    per machine, as a share of its high mark; mixed machines count in both. A pool under a pressure above 1 is given a
    machine if that leaves the other one with less than ``slack`` times this pressure, and the prompt pool with a
    utilisation below ``utilisation``.
    """
    if kind != TICK:
        return -1, -1
    prompt_machines = 0.0
    token_machines = 0.0
    prompt_speed = 0.0
    pending_s = 0.0
    decodes = 0.0
    for m in range(len(machines)):
        if machines[m, DOWN_FLAG] > 0.0:
            continue
        pending_s += machines[m, PENDING_S]
        decodes += machines[m, DECODES] + machines[m, COMING]
        if machines[m, ROLE_FLAGS + TOKEN] == 0.0:
            prompt_machines += 1.0
            prompt_speed += machines[m, PROMPT_RATE]
        if machines[m, ROLE_FLAGS + PROMPT] == 0.0:
            token_machines += 1.0
    if prompt_machines == 0.0 or token_machines == 0.0:
        return -1, -1
    prompt_pressure = pending_s / (params[0] * prompt_machines)
    token_pressure = decodes / (params[1] * token_machines)
    slack = params[2]
    if prompt_pressure > 1.0 and decodes < slack * prompt_pressure * params[1] * (token_machines - 1.0):
        move_one(time_s, machines, role_mask, PROMPT, params[4], state, roles_out)
    elif token_pressure > 1.0 and pending_s < slack * token_pressure * params[0] * (prompt_machines - 1.0):
        left_speed = prompt_speed * (prompt_machines - 1.0) / prompt_machines
        if cluster[PROMPT_TOKEN_RATE] < params[3] * left_speed:
            move_one(time_s, machines, role_mask, TOKEN, params[4], state, roles_out)
    return -1, -1


@njit
def towards_rates(
    prompt_rate: float,
    output_rate: float,
    headroom: float,
    dwell_s: float,
    time_s: float,
    machines: FloatArray,
    cluster: FloatArray,
    role_mask: BoolArray,
    state: FloatArray,
    roles_out: IntArray,
) -> None:
    """One step towards pools as fast, in ratio, as the rates; prompts are given ``headroom`` times as much.

    A machine's speeds are its prompt rate and the tokens it decodes at 32 requests. The step is taken only
    where the goal is more than three quarters of a machine away, so that rounding does not send machines to
    and fro.
    """
    count = 0.0
    at_prompt = 0.0
    prompt_speed = 0.0
    token_speed = 0.0
    for m in range(len(machines)):
        is_prompt = machines[m, ROLE_FLAGS + PROMPT] > 0.0
        if machines[m, DOWN_FLAG] > 0.0 or not (is_prompt or machines[m, ROLE_FLAGS + TOKEN] > 0.0):
            continue
        count += 1.0
        at_prompt += 1.0 if is_prompt else 0.0
        prompt_speed += machines[m, PROMPT_RATE]
        token_speed += 32.0 / machines[m, DECODE_ITERATION_S]
    if count < 2.0 or prompt_rate + output_rate <= 0.0:
        return
    prompt_need = headroom * prompt_rate / prompt_speed
    token_need = output_rate / token_speed
    if prompt_need + token_need <= 0.0:  # of rates that have faded to almost nothing
        return
    goal = count * prompt_need / (prompt_need + token_need)
    goal = min(max(goal, 1.0), count - 1.0)
    if goal - at_prompt > 0.75:
        move_one(time_s, machines, role_mask, PROMPT, dwell_s, state, roles_out)
    elif at_prompt - goal > 0.75:
        move_one(time_s, machines, role_mask, TOKEN, dwell_s, state, roles_out)


@njit
def proportional(  # type: ignore[no-untyped-def]
    kind, time_s, machines, request, cluster, prompt_mask, token_mask, role_mask, changed, params, state, roles_out
):
    """``params``: headroom, dwell_s. The rates are those of the last 10 to 20 s."""
    if kind == TICK:
        prompt_rate, output_rate = cluster[PROMPT_TOKEN_RATE], cluster[OUTPUT_TOKEN_RATE]
        towards_rates(
            prompt_rate,
            output_rate,
            params[0],
            params[1],
            time_s,
            machines,
            cluster,
            role_mask,
            state,
            roles_out,
        )
    return -1, -1


@njit
def follow(state: FloatArray, trend: int, elapsed_s: float, value: float) -> None:
    """Holt's double exponential smoothing of the level and the slope at ``state[trend : trend + 2]``."""
    level, slope = state[trend], state[trend + 1]
    expected = level + slope * elapsed_s
    state[trend] = 0.5 * value + 0.5 * expected
    state[trend + 1] = 0.2 * (state[trend] - level) / elapsed_s + 0.8 * slope


@njit
def forecast(  # type: ignore[no-untyped-def]
    kind, time_s, machines, request, cluster, prompt_mask, token_mask, role_mask, changed, params, state, roles_out
):
    """``params``: headroom, dwell_s, lead_s. As `proportional`, on the rates expected ``lead_s`` ahead.

    Looks as far ahead as a change takes if that is longer.
    """
    if kind != TICK:
        return -1, -1
    elapsed_s = time_s - state[SEEN_S]
    if state[SEEN] == 0.0:
        state[PROMPT_TREND] = cluster[PROMPT_TOKEN_RATE]
        state[OUTPUT_TREND] = cluster[OUTPUT_TOKEN_RATE]
    elif elapsed_s > 0.0:
        follow(state, PROMPT_TREND, elapsed_s, cluster[PROMPT_TOKEN_RATE])
        follow(state, OUTPUT_TREND, elapsed_s, cluster[OUTPUT_TOKEN_RATE])
    state[SEEN_S] = time_s
    state[SEEN] += 1.0
    lead_s = max(params[2], cluster[SWITCH_S])
    prompt_rate = max(state[PROMPT_TREND] + lead_s * state[PROMPT_TREND + 1], 0.0)
    output_rate = max(state[OUTPUT_TREND] + lead_s * state[OUTPUT_TREND + 1], 0.0)
    towards_rates(
        prompt_rate, output_rate, params[0], params[1], time_s, machines, cluster, role_mask, state, roles_out
    )
    return -1, -1

"""A request is taken out of wherever it is, as in `splitgym.sim.withdrawal`, over records."""

from __future__ import annotations

import numpy as np

from splitgym.jit import inner_njit, seldom_njit
from splitgym.sim import books as b
from splitgym.sim.clock import ARRIVAL, TRANSFER_END
from splitgym.sim.compiled import log as lg
from splitgym.sim.compiled.chains import take_from_batch, take_from_inbox, take_from_joining, take_from_queue
from splitgym.sim.compiled.decoding import LEFT_OUT, remove_decode, whole_tokens
from splitgym.sim.compiled.events import cancel, forget_lease_end, make_runnable, plan
from splitgym.sim.compiled.first_tokens import (
    is_answered_late,
    no_longer_starting,
    reported_tokens,
    tokens_at_start,
    tokens_to_send,
    unbook_cache,
    weight_to_next_token,
)
from splitgym.sim.compiled.iterations import is_sent, need_here, tokens_to_compute
from splitgym.sim.compiled.memory import free, held_until_sent, in_blocks, let_in, need_to_come, offer_room
from splitgym.sim.compiled.network import drop_flow
from splitgym.sim.compiled.notes import note_change
from splitgym.sim.compiled.state import State
from splitgym.sim.rows import IN_FLIGHT


@seldom_njit
def withdraw(s: State, r: int, broken: int) -> None:
    """Take out a request that has machines and is not done; the iteration of ``broken`` (-1: none) will not end."""
    request = s.requests[r]
    for m in (request.prompt_machine, home_of(s, r)):
        machine = s.machines[m]
        if machine.is_busy and m != broken and (is_in_batch(s, m, r) or decodes_at(s, m, r)):
            if not request.is_leaving:
                request.is_leaving = True
                request.next_leaving = -1
                if machine.leaving_last < 0:
                    machine.leaving_first = r
                else:
                    s.requests[machine.leaving_last].next_leaving = r
                machine.leaving_last = r
            return
    part_with(s, r)


@inner_njit
def home_of(s: State, r: int) -> int:
    """Its token machine; until that is chosen, its prompt machine."""
    request = s.requests[r]
    return request.token_machine if request.token_machine >= 0 else request.prompt_machine  # type: ignore[no-any-return]


@seldom_njit
def take_leave(s: State, m: int) -> None:
    """Take out what was withdrawn during the iteration that ends now, or breaks off."""
    machine = s.machines[m]
    r = machine.leaving_first
    while r >= 0:
        request = s.requests[r]
        if decodes_at(s, m, r) and (machine.batch_serves_all or request.served != LEFT_OUT):
            machine.batch_decodes -= 1
        request.is_leaving = False
        part_with(s, r)
        r = request.next_leaving
    machine.leaving_first = machine.leaving_last = -1


@inner_njit
def is_in_batch(s: State, m: int, r: int) -> bool:
    """Whether a prompt is in the iteration of a machine that is busy."""
    machine = s.machines[m]
    member = machine.batch_first
    for _ in range(machine.batch_prompts):
        if member == r:
            return True
        member = s.requests[member].next
    return False


@seldom_njit
def decodes_at(s: State, m: int, r: int) -> bool:
    """Whether a request is among the decodes of a machine."""
    machine = s.machines[m]
    is_there = False
    for i in range(machine.first_end, machine.first_end + machine.decodes):
        is_there |= s.ends[i].key == r
    return is_there


@seldom_njit
def part_with(s: State, r: int) -> None:
    """Take it out now; unless its client is gone, it begins again: from its prompt and the tokens that it has had."""
    request = s.requests[r]
    tokens = release(s, r)
    request.generated, request.was_preempted = 0, False
    request.is_moved, request.cache_machine = False, -1
    if request.status != IN_FLIGHT:
        return
    if tokens > 0:
        request.prompt_tokens += tokens
        request.output_tokens -= tokens
        request.predicted = max(request.predicted - tokens, 1.0)
        request.is_resumed = True
        request.prompt_weight = request.token_weight  # what it is charged by waits, too
    request.prompt_machine = request.token_machine = -1
    request.prompt_start_s = request.transfer_end_s = np.nan
    s.run[0].restarts += 1
    lg.log(s, lg.RESTART, -1, r)
    ask_again(s, r)


@inner_njit
def ask_again(s: State, r: int) -> None:
    """Have its machines decided as soon as what happens at this instant allows."""
    plan(s, s.run[0].now_s, ARRIVAL, 0, r)


@seldom_njit
def release(s: State, r: int) -> int:
    """Give back what it holds, wherever it is; returns the tokens that it got there.

    A machine that is busy is at the end of its iteration, or broken.
    """
    request = s.requests[r]
    p, t = request.prompt_machine, home_of(s, r)
    drop_lease(s, r)
    note_change(s, p)
    note_change(s, t)
    for m in (p, t):
        if take_from_queue(s, m, r):
            return leave_queue(s, m, r)
        if (s.machines[m].is_busy and take_from_batch(s, m, r)) or s.machines[m].unfinished == r:
            return leave_iteration(s, m, r)
    if decodes_at(s, t, r):
        return leave_decodes(s, t, r)
    if not (request.is_resumed or request.is_moved):
        request.last_token_s, request.tbt_max_s = request.first_token_s, 0.0
    need = need_to_come(s, t, r)
    tokens = tokens_at_start(s, r) - request.prompt_tokens
    if request.token_machine < 0:  # late choice: its prompt phase has just ended
        if s.run[0].token_machines_answer:
            unbook_cache(s, r)
        drop_cache(s, r)
        return tokens  # type: ignore[no-any-return]
    forget_decode(s, t, r, request.output_tokens - tokens)
    if take_from_joining(s, t, r):
        s.books[t, b.RUNNING] -= 1
        s.books[t, b.KV_HELD] -= reported_tokens(s, r)
        give_back(s, t, r, need)
    elif take_from_inbox(s, t, r):
        s.books[t, b.WAITING] -= 1
        drop_cache(s, r)
        let_in(s, t)
    else:
        if not cancel(s, TRANSFER_END, t, r):
            drop_flow(s, r)
        drop_cache(s, r)
        s.machines[t].kv_used_tokens -= need  # of which nothing has come
        offer_again(s, t)
    return tokens  # type: ignore[no-any-return]


@seldom_njit
def leave_queue(s: State, m: int, r: int) -> int:
    """A prompt that waits, or a decode that has lost its cache."""
    s.books[m, b.WAITING] -= 1
    tokens = forget_phase(s, m, r)
    if s.requests[r].was_preempted:
        s.machines[m].put_back -= 1
        let_in(s, m)
    make_runnable(s, m)
    return tokens


@seldom_njit
def leave_iteration(s: State, m: int, r: int) -> int:
    """A prompt in work, or between its chunks (discipline `vllm`), or a decode whose cache is computed again."""
    run, machine, request, row = s.run[0], s.machines[m], s.requests[r], s.books[m]
    row[b.RUNNING] -= 1
    row[b.PROMPT_SINCE_S] = run.now_s
    if not run.is_vllm:
        row[b.KV_HELD] -= tokens_to_compute(s, r) + 1
        if run.is_layerwise and is_sent(s, r):
            give_back(s, request.token_machine, r, whole_tokens(s, r))
        tokens = forget_phase(s, m, r)
        give_back(s, m, r, need_here(s, m, r))
        return tokens
    held = request.computed + (request.chunk if machine.is_busy else 0)
    request.computed = held
    row[b.KV_HELD] -= held + (1 if held == tokens_to_compute(s, r) else 0)
    if machine.unfinished == r:
        machine.unfinished = -1
    tokens = forget_phase(s, m, r)
    give_back(s, m, r, in_blocks(s, m, held))
    return tokens


@seldom_njit
def forget_phase(s: State, m: int, r: int) -> int:
    """What is in work on a machine leaves the books: a prompt, or a decode that has lost its cache.

    Returns the tokens that it got there.
    """
    request = s.requests[r]
    if not request.was_preempted:
        forget_prompt(s, r)
        return 0
    tokens: int = request.generated
    forget_decode(s, m, r, request.output_tokens - tokens)
    return tokens


@seldom_njit
def drop_lease(s: State, r: int) -> None:
    """Take it out of the chain of leases, where it may stand though its cache waits no more."""
    run = s.run[0]
    before, member = -1, run.first_leased
    while member >= 0 and member != r:
        before, member = member, s.requests[member].next_leased
    if member < 0:
        return
    following = s.requests[r].next_leased
    if before < 0:
        run.first_leased = following
    else:
        s.requests[before].next_leased = following
    if following < 0:
        run.last_leased = before
    forget_lease_end(s, r)


@seldom_njit
def leave_decodes(s: State, m: int, r: int) -> int:
    """A decode with its cache."""
    machine, request, row = s.machines[m], s.requests[r], s.books[m]
    remaining_tokens = request.ends_at - machine.decode_clock
    held = whole_tokens(s, r) - remaining_tokens
    remove_decode(s, m, r)
    row[b.RUNNING] -= 1
    row[b.KV_HELD] -= held
    row[b.TOKEN_WEIGHT] -= weight_to_next_token(s, r)
    if remaining_tokens == request.output_tokens:
        no_longer_starting(s, m, r)
        row[b.KV_HELD] -= 1  # the books count its first token already
    forget_decode(s, m, r, remaining_tokens)
    if s.run[0].is_vllm:
        there = held if machine.is_busy else held - 1
        request.computed = there
        give_back(s, m, r, in_blocks(s, m, there))
    else:
        give_back(s, m, r, whole_tokens(s, r))
    return request.output_tokens - remaining_tokens  # type: ignore[no-any-return]


@seldom_njit
def drop_cache(s: State, r: int) -> None:
    """The cache goes that its prompt machine keeps for another, or for itself, or the machine where it was a decode."""
    request = s.requests[r]
    source, held = request.cache_machine, reported_tokens(s, r)
    note_change(s, source)
    s.books[source, b.KV_HELD] -= held
    if request.token_machine != source:  # it does not wait in place (late choice)
        s.machines[source].outgoing -= 1
        if request.is_moved:
            s.books[source, b.BOOKED_KV] -= held
        elif not s.run[0].token_machines_answer:
            unbook_cache(s, r)
    request.computed = tokens_to_send(s, r)
    give_back(s, source, r, held_until_sent(s, source, r))


@seldom_njit
def forget_prompt(s: State, r: int) -> None:
    """A prompt whose first token is not out leaves the books of both its machines."""
    request = s.requests[r]
    p, t = request.prompt_machine, request.token_machine
    prompt_tokens, predicted = request.prompt_tokens, request.predicted
    row = s.books[p]
    row[b.PENDING_PROMPTS] -= 1
    row[b.PENDING_TOKENS] -= prompt_tokens
    weigh_prompts(s, p)
    if p != t:
        row[b.BOOKED_KV] -= prompt_tokens + 1
    if t < 0:
        return
    row = s.books[t]
    row[b.COMING] -= 1
    row[b.COMING_CONTEXT] -= prompt_tokens + 1
    row[b.REMAINING] -= predicted - 1
    row[b.BOOKED_KV] -= prompt_tokens + predicted
    row[b.TOKEN_WEIGHTED] -= request.token_weight * (request.output_tokens - 1)
    if is_answered_late(s, r):
        row[b.TOKEN_WEIGHTED] -= request.prompt_weight
    clear_rounding(s, t)


@seldom_njit
def forget_decode(s: State, t: int, r: int, remaining_tokens: int) -> None:
    """A request whose prompt phase is over leaves the books of its token machine, which count its first token."""
    request, row = s.requests[r], s.books[t]
    later_tokens = min(remaining_tokens, request.output_tokens - 1)
    row[b.DECODES] -= 1
    row[b.CONTEXT] -= whole_tokens(s, r) - later_tokens
    row[b.REMAINING] -= request.predicted - request.output_tokens + later_tokens
    row[b.BOOKED_KV] -= request.prompt_tokens + request.predicted
    row[b.TOKEN_WEIGHTED] -= request.token_weight * later_tokens
    if remaining_tokens > later_tokens:
        row[b.TOKEN_WEIGHTED] -= request.prompt_weight
        unbook_cache(s, r)
    clear_rounding(s, t)


@seldom_njit
def weigh_prompts(s: State, m: int) -> None:
    """Write anew what the pending prompts of a machine are worth together, in the order in which it takes them."""
    machine, row = s.machines[m], s.books[m]
    row[b.PENDING_S] = row[b.PROMPT_WEIGHT] = row[b.PROMPT_WEIGHTED_S] = 0.0
    if machine.unfinished >= 0 and not (machine.is_busy and is_in_batch(s, m, machine.unfinished)):
        weigh_prompt(s, m, machine.unfinished)
    r = machine.batch_first
    for _ in range(machine.batch_prompts if machine.is_busy else 0):
        weigh_prompt(s, m, r)
        r = s.requests[r].next
    r = machine.queue_first
    while r >= 0:
        weigh_prompt(s, m, r)
        r = s.requests[r].next


@inner_njit
def weigh_prompt(s: State, m: int, r: int) -> None:
    """Add one, unless it is a preempted decode."""
    request, row = s.requests[r], s.books[m]
    if not request.was_preempted:
        row[b.PENDING_S] += request.prompt_work_s
        row[b.PROMPT_WEIGHT] += request.prompt_weight
        row[b.PROMPT_WEIGHTED_S] += request.prompt_weight * row[b.PENDING_S]


@seldom_njit
def give_back(s: State, m: int, r: int, tokens: int) -> None:
    """`free`, compiled once."""
    free(s, m, r, tokens)


@seldom_njit
def offer_again(s: State, m: int) -> None:
    """`offer_room`, compiled once."""
    offer_room(s, m)


@inner_njit
def clear_rounding(s: State, t: int) -> None:
    """Whatever rounding left, where nothing decodes or is to come."""
    row = s.books[t]
    if row[b.DECODES] + row[b.COMING] == 0:
        row[b.REMAINING] = row[b.TOKEN_WEIGHT] = row[b.TOKEN_WEIGHTED] = 0.0

"""What a machine does, as in `splitgym.sim.iterations`: form a batch, process it, hand out its tokens.

Discipline `splitwise`, and what both disciplines share.
"""

from __future__ import annotations

from splitgym.hardware.latency import iteration_s
from splitgym.jit import inner_njit
from splitgym.sim import books as b
from splitgym.sim.compiled import log as lg
from splitgym.sim.compiled.decoding import (
    FORCED,
    LEFT_OUT,
    SERVED,
    add_decode,
    join_decodes,
    leave_some_out,
    serve_all,
    serve_some,
    whole_tokens,
)
from splitgym.sim.compiled.first_tokens import (
    await_first_token,
    close_gap,
    count_starting,
    is_answered_late,
    tokens_at_start,
    weight_to_next_token,
    yield_first_token,
    yield_first_tokens,
)
from splitgym.sim.compiled.leases import start_lease
from splitgym.sim.compiled.memory import admits, free, in_blocks, join, let_in, send, wait_for_room
from splitgym.sim.compiled.migration import MOVE_DECODES, REDIRECT, is_leaving
from splitgym.sim.compiled.notes import note_change
from splitgym.sim.compiled.slots import MIGRATION, call
from splitgym.sim.compiled.state import State
from splitgym.sim.compiled.totals import count_finish
from splitgym.sim.energy import iteration_energy_j
from splitgym.sim.rows import COMPLETED
from splitgym.view import SWITCHING


@inner_njit
def form_batch(s: State, m: int) -> bool:
    """Forced decodes, then prompts first come first served, then decodes in order of arrival; whether there are any."""
    if s.books[m, b.LIFECYCLE] >= SWITCHING:  # or down
        return False
    machine, run = s.machines[m], s.run[0]
    if machine.joining > 0:
        take_in(s, m)
    if is_leaving(s, m):
        call(s, MIGRATION, MOVE_DECODES, m, -1, 0)
    forced = count_forced(s, m) if machine.has_left_out else 0
    size = tokens = forced
    machine.batch_first = machine.queue_first
    machine.batch_prompts = 0
    while machine.queue_first >= 0 and size < run.max_batch_size:
        r = machine.queue_first
        prompt_tokens = tokens_to_compute(s, r)
        if size > 0 and tokens + prompt_tokens > run.max_batch_tokens:
            break
        if not reserve_for_prompt(s, m, r):
            break
        machine.queue_first = s.requests[r].next
        machine.batch_prompts += 1
        size += 1
        tokens += prompt_tokens
        if s.requests[r].was_preempted:
            machine.put_back -= 1
            let_in(s, m)
    if machine.queue_first < 0:
        machine.queue_last = -1
    machine.queued -= machine.batch_prompts
    room = max(min(run.max_batch_size - size, run.max_batch_tokens - tokens), 0)
    machine.batch_serves_all = machine.decodes - forced <= room
    if machine.batch_serves_all:
        machine.batch_decodes = machine.decodes
        return machine.batch_prompts > 0 or machine.decodes > 0  # type: ignore[no-any-return]
    mark_served(s, m, forced, room)
    machine.batch_decodes = forced + room
    return True


@inner_njit
def take_in(s: State, m: int) -> None:
    """Decodes whose cache has arrived take their place."""
    machine = s.machines[m]
    r = machine.joining_first
    while r >= 0:
        following = s.requests[r].next
        take_place(s, m, r)
        r = following
    machine.joining_first = machine.joining_last = -1
    machine.joining = 0


@inner_njit
def take_place(s: State, m: int, r: int) -> None:
    """Its token phase begins."""
    s.books[m, b.TOKEN_WEIGHT] += weight_to_next_token(s, r)
    remaining_tokens = whole_tokens(s, r) - tokens_at_start(s, r)
    if s.requests[r].is_moved:
        add_decode(s, m, r, remaining_tokens)
    else:
        join_decodes(s, m, r, remaining_tokens)
    await_first_token(s, m, r, remaining_tokens)


@inner_njit
def count_forced(s: State, m: int) -> int:
    """Decodes passed over too often, as many as fit."""
    run = s.run[0]
    forced = 0
    machine = s.machines[m]
    for i in range(machine.first_end, machine.first_end + machine.decodes):
        if s.requests[s.ends[i].key].passed_over >= run.max_preemptions:
            forced += 1
    return min(forced, run.max_batch_size, run.max_batch_tokens)  # type: ignore[no-any-return]


@inner_njit
def mark_served(s: State, m: int, forced: int, room: int) -> None:
    """Mark who gets a token: the ``forced`` and, of the others, ``room``."""
    leave_some_out(s, m)
    machine, max_preemptions = s.machines[m], s.run[0].max_preemptions
    for i in range(machine.first_end, machine.first_end + machine.decodes):
        request = s.requests[s.ends[i].key]
        if forced > 0 and request.passed_over >= max_preemptions:
            request.served = FORCED
            forced -= 1
        elif room > 0:
            request.served = SERVED
            room -= 1
        else:
            request.served = LEFT_OUT


@inner_njit
def reserve_for_prompt(s: State, m: int, r: int) -> bool:
    """Take the memory a prompt needs before its iteration, here and, layer-wise, at its destination."""
    machine, request = s.machines[m], s.requests[r]
    if not (request.was_preempted or admits(s, m)):
        return False
    need = need_here(s, m, r)
    if need > machine.kv_capacity_tokens - machine.kv_used_tokens:
        return False
    if s.run[0].is_layerwise and is_sent(s, r):
        d = request.token_machine
        destination = s.machines[d]
        whole = whole_tokens(s, r)
        if whole > destination.kv_capacity_tokens - destination.kv_used_tokens or not admits(s, d):
            if not s.blocked[d, m]:
                s.blocked[d, m] = True
                destination.blocked += 1
            return False
        destination.kv_used_tokens += whole
    machine.kv_used_tokens += need
    return True


@inner_njit
def is_sent(s: State, r: int) -> bool:
    """Whether its cache goes from one machine to another."""
    request = s.requests[r]
    has_token_phase = request.output_tokens > 1 or s.run[0].token_machines_answer
    return has_token_phase and request.prompt_machine != request.token_machine  # type: ignore[no-any-return]


@inner_njit
def tokens_to_compute(s: State, r: int) -> int:
    """Its prompt; where its cache was lost, with the tokens so far."""
    return s.requests[r].prompt_tokens + s.requests[r].generated  # type: ignore[no-any-return]


@inner_njit
def need_here(s: State, m: int, r: int) -> int:
    """KV tokens a request takes on its prompt machine: all of it where its token phase follows there."""
    request = s.requests[r]
    return whole_tokens(s, r) if request.token_machine == m else request.prompt_tokens + 1


@inner_njit
def held_at_end(s: State, m: int, r: int) -> int:
    """KV tokens it takes where its last token is made; under discipline `vllm` that one is in no cache."""
    return in_blocks(s, m, whole_tokens(s, r) - 1) if s.run[0].is_vllm else need_here(s, m, r)


@inner_njit
def start_iteration(s: State, m: int) -> float:
    """Returns how long it takes."""
    note_change(s, m)
    machine, row, run = s.machines[m], s.books[m], s.run[0]
    prompt_tokens = attention = 0
    count = machine.batch_prompts
    r = machine.batch_first
    for _ in range(count):
        request = s.requests[r]
        tokens = tokens_to_compute(s, r)
        prompt_tokens += tokens
        attention += tokens * tokens
        if not request.was_preempted:
            request.prompt_start_s = run.now_s
        r = request.next
    if count > 0:
        row[b.WAITING] -= count
        row[b.RUNNING] += count
        row[b.KV_HELD] += prompt_tokens + count
    return begin(s, m, prompt_tokens, attention, 0)


@inner_njit
def begin(s: State, m: int, prompt_tokens: int, attention: int, prefill_context: int) -> float:
    """Start the iteration of these features (`iteration_s`); returns how long it takes."""
    machine, run = s.machines[m], s.run[0]
    count, decodes = machine.batch_prompts, machine.batch_decodes
    context = machine.context_tokens if machine.batch_serves_all else served_context(s, m)
    law = s.laws[machine.law]
    duration_s: float = (
        iteration_s(law, prompt_tokens, count, attention, prefill_context, decodes, context) * machine.pace
    )
    machine.is_busy = True
    machine.batch_start_s = run.now_s
    machine.most_batch_tokens = max(machine.most_batch_tokens, prompt_tokens + decodes if count > 0 else 0)
    machine.most_decodes = max(machine.most_decodes, decodes)
    machine.most_context = max(machine.most_context, context)
    prompt_j, token_j = iteration_energy_j(law, duration_s, prompt_tokens, decodes, context)
    run.prompt_energy_j += prompt_j
    run.token_energy_j += token_j
    run.not_idle_j += duration_s * machine.idle_w
    return duration_s


@inner_njit
def served_context(s: State, m: int) -> int:
    """Σ prompt and tokens so far of those marked as served."""
    machine = s.machines[m]
    total = 0
    for i in range(machine.first_end, machine.first_end + machine.decodes):
        r = s.ends[i].key
        if s.requests[r].served != LEFT_OUT:
            total += whole_tokens(s, r) - (s.requests[r].ends_at - machine.decode_clock)
    return total


@inner_njit
def end_decodes(s: State, m: int) -> None:
    """A token for each decode of the batch; those that are done leave and free their memory."""
    machine, row, run = s.machines[m], s.books[m], s.run[0]
    some_start = machine.starting_first >= 0
    later_tokens = machine.batch_decodes - (count_starting(s, m) if some_start else 0)
    row[b.CONTEXT] += later_tokens
    row[b.KV_HELD] += later_tokens
    row[b.REMAINING] -= later_tokens
    run.tokens_out += later_tokens
    row[b.TOKEN_WEIGHTED] -= row[b.TOKEN_WEIGHT] if machine.batch_serves_all else served_weight(s, m)
    if some_start:
        yield_first_tokens(s, m)
    r = serve_all(s, m, run.now_s) if machine.batch_serves_all else serve_some(s, m, run.now_s)
    some = r >= 0
    while r >= 0:
        following = s.requests[r].next
        end_decode(s, m, r)
        r = following
    if some and row[b.DECODES] + row[b.COMING] == 0:
        row[b.REMAINING] = row[b.TOKEN_WEIGHT] = row[b.TOKEN_WEIGHTED] = 0.0


@inner_njit
def end_decode(s: State, m: int, r: int) -> None:
    """It leaves and frees its memory."""
    row, whole = s.books[m], whole_tokens(s, r)
    row[b.DECODES] -= 1
    row[b.RUNNING] -= 1
    row[b.CONTEXT] -= whole
    row[b.KV_HELD] -= whole
    row[b.TOKEN_WEIGHT] -= s.requests[r].token_weight
    finish(s, r, m)
    free(s, m, r, held_at_end(s, m, r))


@inner_njit
def served_weight(s: State, m: int) -> float:
    """Σ weight of those marked as served: the forced first, each in order of arrival."""
    machine = s.machines[m]
    total = 0.0
    for mark in (FORCED, SERVED):
        for i in range(machine.first_end, machine.first_end + machine.decodes):
            r = s.ends[i].key
            if s.requests[r].served == mark:
                total += weight_to_next_token(s, r)
    return total


@inner_njit
def end_prompt(s: State, m: int, r: int) -> None:
    """The prompt phase is over; the cache stays, is sent, or is dropped where no token is to come."""
    request, run = s.requests[r], s.run[0]
    if run.migrates and request.token_machine != m and is_leaving(s, request.token_machine) and not run.is_layerwise:
        call(s, MIGRATION, REDIRECT, -1, r, 0)
    leave_prompt_phase(s, m, r)
    begin_token_phase(s, m, r)


@inner_njit
def leave_prompt_phase(s: State, m: int, r: int) -> None:
    """Its first token, and what the books of its prompt machine counted."""
    row, request, run = s.books[m], s.requests[r], s.run[0]
    prompt_tokens = request.prompt_tokens
    if not is_answered_late(s, r):
        if request.is_resumed:
            close_gap(s, r)
        yield_first_token(s, m, r)
    row[b.RUNNING] -= 1
    work_s = request.prompt_work_s
    row[b.PENDING_PROMPTS] -= 1
    row[b.PENDING_TOKENS] -= prompt_tokens
    row[b.PENDING_S] -= work_s
    row[b.PROMPT_SINCE_S] = run.now_s
    row[b.PROMPT_WEIGHTED_S] -= row[b.PROMPT_WEIGHT] * work_s
    row[b.PROMPT_WEIGHT] -= request.prompt_weight


@inner_njit
def begin_token_phase(s: State, m: int, r: int) -> None:
    """Its prompt phase has ended on ``m``."""
    machine, row, request, run = s.machines[m], s.books[m], s.requests[r], s.run[0]
    prompt_tokens, d = request.prompt_tokens, request.token_machine
    note_change(s, d)
    token_row = s.books[d]
    token_row[b.COMING] -= 1
    token_row[b.COMING_CONTEXT] -= prompt_tokens + 1
    if request.output_tokens == 1 and not is_answered_late(s, r):
        row[b.KV_HELD] -= prompt_tokens + 1
        if d != m:
            row[b.BOOKED_KV] -= prompt_tokens + 1
        finish(s, r, d)
        free(s, m, r, held_at_end(s, m, r))
        return
    token_row[b.DECODES] += 1
    token_row[b.CONTEXT] += prompt_tokens + 1
    if d == m:
        if run.is_vllm:  # it runs already
            row[b.RUNNING] += 1
            take_place(s, m, r)
        else:
            join(s, r, m)
        return
    machine.outgoing += 1
    if run.is_layerwise:
        send(s, r)
    else:
        wait_for_room(s, d, r)
        let_in(s, d)
        start_lease(s, r)


@inner_njit
def end_recomputation(s: State, m: int, r: int) -> None:
    """A decode that had lost its cache has it again, and its next token."""
    row, request, run = s.books[m], s.requests[r], s.run[0]
    row[b.TOKEN_WEIGHTED] -= weight_to_next_token(s, r)
    row[b.TOKEN_WEIGHT] += request.token_weight
    if request.generated == 0:
        yield_first_token(s, m, r)
    else:
        row[b.CONTEXT] += 1
        row[b.REMAINING] -= 1
        run.tokens_out += 1
    if request.generated > 0 or request.is_resumed:
        request.tbt_max_s = max(request.tbt_max_s, run.now_s - request.last_token_s)
    remaining_tokens = request.output_tokens - request.generated - 1
    request.last_token_s = run.now_s
    if remaining_tokens > 0:
        add_decode(s, m, r, remaining_tokens)
        return
    end_decode(s, m, r)
    if row[b.DECODES] + row[b.COMING] == 0:
        row[b.REMAINING] = row[b.TOKEN_WEIGHT] = row[b.TOKEN_WEIGHTED] = 0.0


@inner_njit
def finish(s: State, r: int, m: int) -> None:
    """The last token is out."""
    request, row, now_s = s.requests[r], s.books[m], s.run[0].now_s
    request.finish_s = now_s
    request.status = COMPLETED
    row[b.REMAINING] += request.output_tokens - request.predicted
    row[b.BOOKED_KV] -= request.prompt_tokens + request.predicted
    lg.log(s, lg.FINISH, m, r)
    count_finish(s, r, now_s)

"""Discipline `vllm`, as in `splitgym.sim.vllm`. An iteration without preemption costs what changes in it."""

from __future__ import annotations

import numpy as np

from splitgym.jit import inner_njit
from splitgym.sim import books as b
from splitgym.sim.compiled import log as lg
from splitgym.sim.compiled.decoding import remove_decode, whole_tokens
from splitgym.sim.compiled.first_tokens import (
    no_longer_starting,
    tokens_at_start,
    weight_to_next_token,
)
from splitgym.sim.compiled.iterations import begin, take_place
from splitgym.sim.compiled.memory import admits, in_blocks, let_go, let_in
from splitgym.sim.compiled.migration import MOVE_DECODES, is_leaving
from splitgym.sim.compiled.notes import note_change
from splitgym.sim.compiled.prefix import give_up_surplus, hit_tokens, publish, shared_tokens, use_prefix
from splitgym.sim.compiled.slots import MIGRATION, call
from splitgym.sim.compiled.state import State
from splitgym.view import SWITCHING


@inner_njit
def form_chunked_batch(s: State, m: int) -> bool:
    """What runs grows, the last admitted making room where blocks are short; if they are not, prompts are admitted."""
    if s.books[m, b.LIFECYCLE] >= SWITCHING:  # or down
        return False
    machine = s.machines[m]
    machine.batch_serves_all = is_short = True
    while is_short:
        if machine.joining > 0:
            take_in_places(s, m)
        while is_leaving(s, m) and call(s, MIGRATION, MOVE_DECODES, m, -1, 0):
            take_in_places(s, m)
        is_short = False
        growth = growth_tokens(s, m)
        while growth > machine.kv_capacity_tokens - machine.kv_used_tokens:
            preempt_last(s, m)
            is_short = True
            growth = growth_tokens(s, m)
        machine.kv_used_tokens += growth
        if machine.caches_prefixes:
            if machine.unfinished >= 0:
                publish(s, m, machine.unfinished)
            give_up_surplus(s, m)
        machine.batch_first = machine.unfinished
        machine.batch_prompts = 1 if machine.unfinished >= 0 else 0
        machine.batch_decodes = machine.decodes
        if not is_short:
            admit_prompts(s, m)
        if machine.batch_prompts > 0 or machine.decodes > 0:
            return True
    return False  # nothing was preempted, and nothing can run


@inner_njit
def take_in_places(s: State, m: int) -> None:
    """Caches that have arrived take a place in order, as long as there are places."""
    machine = s.machines[m]
    running = machine.decodes + (1 if machine.unfinished >= 0 else 0)
    while machine.joining > 0 and running < machine.max_num_seqs:
        r = machine.joining_first
        machine.joining_first = s.requests[r].next
        machine.joining -= 1
        tokens = tokens_at_start(s, r)  # the last of them comes into the cache as it grows
        take_place(s, m, r)
        number(s, m, r)
        machine.kv_used_tokens -= in_blocks(s, m, tokens) - in_blocks(s, m, tokens - 1)
        running += 1
    if machine.joining == 0:
        machine.joining_last = -1


@inner_njit
def number(s: State, m: int, r: int) -> None:
    """It is the last that its machine has admitted."""
    machine = s.machines[m]
    s.requests[r].admitted = machine.admissions
    machine.admissions += 1


@inner_njit
def growth_tokens(s: State, m: int) -> int:
    """The blocks that decodes and the unfinished prompt need for this iteration, in tokens; sets the prompt's chunk."""
    machine = s.machines[m]
    size = machine.block_size
    growth = size * s.residues[m, -machine.decode_clock % size]
    if machine.unfinished >= 0:
        request = s.requests[machine.unfinished]
        room = machine.max_num_batched_tokens - machine.decodes
        request.chunk = min(request.prompt_tokens + request.generated - request.computed, room)
        growth += in_blocks(s, m, request.computed + request.chunk) - in_blocks(s, m, request.computed)
    return growth  # type: ignore[no-any-return]


@inner_njit
def preempt_last(s: State, m: int) -> None:
    """The running request that was admitted last loses its cache and waits at the front of the queue."""
    note_change(s, m)
    machine, row = s.machines[m], s.books[m]
    last = machine.unfinished
    for i in range(machine.first_end, machine.first_end + machine.decodes):
        r = s.ends[i].key
        if last < 0 or s.requests[r].admitted > s.requests[last].admitted:
            last = r
    request = s.requests[last]
    if last == machine.unfinished:
        machine.unfinished = -1
        held = request.computed
        full = held - held % machine.block_size
        machine.kv_used_tokens -= in_blocks(s, m, held) - full
        let_go(s, m, last, full)
    else:
        remove_decode(s, m, last)
        remaining_tokens = request.ends_at - machine.decode_clock
        request.was_preempted = True
        request.generated = request.output_tokens - remaining_tokens
        held = whole_tokens(s, last) - remaining_tokens
        request.computed = held - 1
        let_go(s, m, last, in_blocks(s, m, held - 1))
        row[b.TOKEN_WEIGHT] -= weight_to_next_token(s, last)
        if request.generated == 0:
            no_longer_starting(s, m, last)
            held += 1  # the books count its first token already
    if request.was_preempted:
        machine.put_back += 1
    row[b.RUNNING] -= 1
    row[b.WAITING] += 1
    row[b.KV_HELD] -= held
    request.next = machine.queue_first
    machine.queue_first = last
    if machine.queue_last < 0:
        machine.queue_last = last
    machine.queued += 1
    s.run[0].preemptions += 1
    lg.log(s, lg.PREEMPTED, m, last)


@inner_njit
def admit_prompts(s: State, m: int) -> None:
    """First come, first served, while tokens, places and blocks are left; those admitted come into the batch."""
    machine, row = s.machines[m], s.books[m]
    budget = machine.max_num_batched_tokens - machine.decodes
    last = machine.batch_first
    if last >= 0:
        budget -= s.requests[last].chunk
    while machine.queue_first >= 0 and budget > 0:
        running = machine.decodes + machine.batch_prompts
        if running >= machine.max_num_seqs:
            return
        r = machine.queue_first
        request = s.requests[r]
        is_back = request.was_preempted
        tokens = request.prompt_tokens + request.generated
        room = machine.kv_capacity_tokens - machine.kv_used_tokens
        if running > 0:
            room -= machine.watermark_tokens
        hit = shared = 0
        if machine.caches_prefixes:
            hit, shared = hit_tokens(s, m, r, tokens), shared_tokens(s, m, r)
        if in_blocks(s, m, tokens) - shared > room or not (is_back or admits(s, m)):
            return
        note_change(s, m)
        machine.queue_first = request.next
        if machine.queue_first < 0:
            machine.queue_last = -1
        machine.queued -= 1
        if last < 0:
            machine.batch_first = r
        else:
            s.requests[last].next = r
        last = r
        machine.batch_prompts += 1
        number(s, m, r)
        request.computed = hit
        request.chunk = min(tokens - hit, budget)
        machine.kv_used_tokens += in_blocks(s, m, hit + request.chunk) - shared
        if machine.caches_prefixes:
            use_prefix(s, m, r)
            publish(s, m, r)
            give_up_surplus(s, m)
            s.run[0].prefix_hit_tokens += hit
            row[b.KV_HELD] += hit
        budget -= request.chunk
        row[b.RUNNING] += 1
        row[b.WAITING] -= 1
        if is_back:
            machine.put_back -= 1
            let_in(s, m)


@inner_njit
def start_chunks(s: State, m: int) -> float:
    """Start an iteration; returns how long it takes."""
    note_change(s, m)
    machine, row = s.machines[m], s.books[m]
    prompt_tokens = attention = prefill_context = 0
    r = machine.batch_first
    for _ in range(machine.batch_prompts):
        request = s.requests[r]
        chunk, context = request.chunk, request.computed
        prompt_tokens += chunk
        attention += chunk * (2 * context + chunk)
        prefill_context += context
        is_last = context + chunk == request.prompt_tokens + request.generated
        row[b.KV_HELD] += chunk + (1 if is_last else 0)
        if np.isnan(request.prompt_start_s):
            request.prompt_start_s = s.run[0].now_s
        r = request.next
    return begin(s, m, prompt_tokens, attention, prefill_context)


@inner_njit
def end_chunk(s: State, m: int, r: int) -> bool:
    """A chunk is in the cache; returns whether it was the last one."""
    machine, request = s.machines[m], s.requests[r]
    request.computed += request.chunk
    is_last = request.computed >= request.prompt_tokens + request.generated
    machine.unfinished = -1 if is_last else r
    return is_last  # type: ignore[no-any-return]

"""KV memory and KV transfer, as in `splitgym.sim.transfers`, and what of a machine's work is left."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from splitgym.jit import inner_njit, njit
from splitgym.sim import books as b
from splitgym.sim.books import overhead_of_s
from splitgym.sim.clock import TRANSFER_END
from splitgym.sim.compiled import log as lg
from splitgym.sim.compiled.decoding import whole_tokens
from splitgym.sim.compiled.events import forget_lease_end, make_runnable, plan
from splitgym.sim.compiled.first_tokens import reported_tokens, tokens_at_start, tokens_to_send, unbook_cache
from splitgym.sim.compiled.network import begin_flow
from splitgym.sim.compiled.notes import note_change
from splitgym.sim.compiled.prefix import RELEASE, give_up_surplus
from splitgym.sim.compiled.slots import PREFIXES, RECEIVING, call, state_at
from splitgym.sim.compiled.state import State
from splitgym.view import DRAINING, READY

IntArray = npt.NDArray[np.int64]


@inner_njit
def lost_work_is_done(s: State, m: int) -> bool:
    """Whether nothing of the phases it gives up is left."""
    machine, row = s.machines[m], s.books[m]
    prompts = machine.loses_prompts and (row[b.PENDING_PROMPTS] > 0 or machine.outgoing > 0)
    tokens = machine.loses_tokens and row[b.DECODES] + row[b.COMING] > 0
    return not prompts and not tokens


@inner_njit
def admits(s: State, m: int) -> bool:
    """Whether it takes in new work. One about to restart, its old phase over, only finishes what it holds."""
    lifecycle = s.books[m, b.LIFECYCLE]
    if lifecycle == DRAINING:
        return s.run[0].switch_s == 0 or not lost_work_is_done(s, m)
    return lifecycle == READY  # type: ignore[no-any-return]


@inner_njit
def free(s: State, m: int, r: int, tokens: int) -> None:
    """A request gives memory back."""
    let_go(s, m, r, tokens)
    offer_room(s, m)


@inner_njit
def let_go(s: State, m: int, r: int, tokens: int) -> None:
    """A request gives back the memory of ``tokens``; with prefix caching it is kept while nobody needs the room."""
    machine = s.machines[m]
    machine.kv_used_tokens -= tokens
    if machine.caches_prefixes:
        machine.kv_used_tokens += call(s, PREFIXES, RELEASE, m, r, tokens)


@inner_njit
def offer_room(s: State, m: int) -> None:
    """First to caches waiting for room here, then to prompts, of other machines and its own."""
    let_in(s, m)
    machine = s.machines[m]
    if machine.blocked > 0:
        machine.blocked = 0
        for other in range(len(s.machines)):
            if s.blocked[m, other]:
                s.blocked[m, other] = False
                make_runnable(s, other)
    make_runnable(s, m)


@inner_njit
def in_blocks(s: State, m: int, tokens: int) -> int:
    """The blocks of ``tokens`` tokens, in tokens (discipline `vllm`)."""
    size = s.machines[m].block_size
    return -(-tokens // size) * size  # type: ignore[no-any-return]


@inner_njit
def need_to_come(s: State, m: int, r: int) -> int:
    """KV tokens reserved on its token machine before its cache is sent there."""
    return in_blocks(s, m, tokens_at_start(s, r)) if s.run[0].is_vllm else whole_tokens(s, r)


@inner_njit
def held_until_sent(s: State, m: int, r: int) -> int:
    """KV tokens its cache takes until it is sent on its prompt machine, or where it was a decode."""
    request = s.requests[r]
    if s.run[0].is_vllm:
        return in_blocks(s, m, tokens_at_start(s, r) - 1 if request.is_moved else request.prompt_tokens)
    return whole_tokens(s, r) if request.is_moved else request.prompt_tokens + 1


@inner_njit
def let_in(s: State, m: int) -> None:
    """`receive`, where a cache waits."""
    if s.machines[m].inbox_first >= 0:
        call(s, RECEIVING, 0, m, -1, 0)


@njit
def receiving_at(a: IntArray, _what: int, m: int, _r: int, _number: int) -> int:
    """`receive`."""
    receive(state_at(a), m)
    return 0


@inner_njit
def receive(s: State, m: int) -> None:
    """Serialized: reserve room for waiting caches, first come first served, and send them; those put back first.

    Caches that are here already (`leases.wait_in_place`) are first of all: nothing but room keeps them waiting.
    """
    machine = s.machines[m]
    while machine.inbox_first >= 0:
        r = machine.inbox_first
        need = need_to_come(s, m, r)
        is_here = s.requests[r].cache_machine == m
        if is_here:
            need -= held_until_sent(s, m, r)
        elif not admits(s, m) or machine.put_back > 0:
            return
        if need > machine.kv_capacity_tokens - machine.kv_used_tokens:
            return
        machine.inbox_first = s.requests[r].next
        if machine.inbox_first < 0:
            machine.inbox_last = -1
        if s.run[0].first_leased >= 0:
            forget_lease_end(s, r)
        note_change(s, m)
        s.books[m, b.WAITING] -= 1
        machine.kv_used_tokens += need
        if machine.caches_prefixes:
            give_up_surplus(s, m)
        if is_here:
            join(s, r, m)
        else:
            send(s, r)


@inner_njit
def wait_for_room(s: State, m: int, r: int) -> None:
    """Put a cache last in the inbox of ``m``."""
    machine = s.machines[m]
    s.requests[r].next = -1
    if machine.inbox_last < 0:
        machine.inbox_first = r
    else:
        s.requests[machine.inbox_last].next = r
    machine.inbox_last = r
    note_change(s, m)
    s.books[m, b.WAITING] += 1


@inner_njit
def send(s: State, r: int) -> None:
    """Put a cache on its way; what is seen of it after the prompt phase depends on the transfer mode."""
    run, request = s.run[0], s.requests[r]
    source, tokens = request.cache_machine, tokens_to_send(s, r)
    size_bytes = float(run.kv_bytes_per_token * tokens)
    bytes_per_s = min(s.machines[source].link_bytes_per_s, s.machines[request.token_machine].link_bytes_per_s)
    visible_bytes = size_bytes
    if run.is_layerwise and not request.is_moved:
        iteration_duration_s = run.now_s - request.prompt_start_s
        hidden_bytes = bytes_per_s * iteration_duration_s * (run.layers - 1) / run.layers
        visible_bytes = max(size_bytes / run.layers, size_bytes - hidden_bytes)
    request.transfer_start_s = run.now_s
    request.computed = tokens
    lg.log(s, lg.TRANSFER_START, source, r)
    overhead_s = overhead_of_s(run.overhead_s, run.overhead_per_block_s, run.block_tokens, tokens)
    if run.is_shared:
        begin_flow(s, r, visible_bytes, overhead_s)
    else:
        plan(s, run.now_s + (overhead_s + visible_bytes / bytes_per_s), TRANSFER_END, request.token_machine, r)


@inner_njit
def end_transfer(s: State, r: int) -> None:
    """The cache is at its token machine, and gone from where it was."""
    request = s.requests[r]
    source, destination = request.cache_machine, request.token_machine
    if not request.is_moved:
        request.transfer_end_s = s.run[0].now_s
    request.cache_machine = destination
    lg.log(s, lg.TRANSFER_END, destination, r)
    lg.log_stretch(s, lg.TRANSFER, source, r, request.transfer_start_s, destination, 0)
    held = reported_tokens(s, r)
    s.machines[source].outgoing -= 1
    note_change(s, source)
    note_change(s, destination)
    s.books[source, b.KV_HELD] -= held
    if request.is_moved:
        s.books[source, b.BOOKED_KV] -= held
    elif not s.run[0].token_machines_answer:
        unbook_cache(s, r)
    s.books[destination, b.KV_HELD] += held
    join(s, r, destination)
    free(s, source, r, held_until_sent(s, source, r))


@inner_njit
def join(s: State, r: int, m: int) -> None:
    """The cache is here: a place in the batch from the next iteration on."""
    machine = s.machines[m]
    note_change(s, m)
    s.books[m, b.RUNNING] += 1
    s.requests[r].next = -1
    if machine.joining_last < 0:
        machine.joining_first = r
    else:
        s.requests[machine.joining_last].next = r
    machine.joining_last = r
    machine.joining += 1
    make_runnable(s, m)

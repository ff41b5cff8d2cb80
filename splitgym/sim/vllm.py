"""What a machine does under discipline `vllm`: decodes always, prompts in chunks, KV memory in blocks, preemption."""

from __future__ import annotations

import math

from splitgym.sim import books as b
from splitgym.sim.iterations import Batch, Discipline, begin, end_computation, take_place
from splitgym.sim.migration import is_leaving, move_decodes
from splitgym.sim.paging import Paging, Preempted
from splitgym.sim.prefix import own_name
from splitgym.sim.transfers import give_up_surplus, receive
from splitgym.sim.world import SimMachine, World
from splitgym.view import DOWN, SWITCHING


def form_batch(world: World, machine: SimMachine) -> Batch | None:
    """What runs grows, the last admitted making room where blocks are short; if they are not, prompts are admitted."""
    if machine.row[b.LIFECYCLE] in (SWITCHING, DOWN):
        return None
    paging = paging_of(machine)
    is_short = True
    while is_short:
        take_in(world, machine)
        while is_leaving(world, machine) and move_decodes(world, machine):
            take_in(world, machine)
        is_short = False
        while (growth := growth_tokens(world, machine)) > machine.free_tokens:
            preempt_last(world, machine)
            is_short = True
        machine.kv_used_tokens += growth
        if paging.unfinished >= 0:
            publish(world, machine, paging.unfinished)
        give_up_surplus(machine)
        prompts = [paging.unfinished] if paging.unfinished >= 0 else []
        if not is_short:
            admit_prompts(world, machine, prompts)
        if prompts or len(machine.decodes):
            return Batch(prompts, None, len(machine.decodes))
    return None  # nothing was preempted, and nothing can run


def take_in(world: World, machine: SimMachine) -> None:
    """Caches that have arrived take a place in order, as long as there are places."""
    paging = paging_of(machine)
    running = len(machine.decodes) + (paging.unfinished >= 0)
    while machine.joining and running < paging.limits.max_num_seqs:
        request = machine.joining.pop(0)
        tokens = world.tokens_at_start(request)  # the last of them comes into the cache as it grows
        take_place(world, machine, request)
        paging.admit(request)
        machine.kv_used_tokens -= paging.in_blocks(tokens) - paging.in_blocks(tokens - 1)
        running += 1


def growth_tokens(world: World, machine: SimMachine) -> int:
    """The blocks that decodes and the unfinished prompt need for this iteration, in tokens; sets the prompt's chunk."""
    paging = paging_of(machine)
    size = paging.limits.block_size
    growth = size * sum((machine.decodes.tokens_of(request) - 1) % size == 0 for request in machine.decodes)
    request = paging.unfinished
    if request >= 0:
        computed = paging.computed[request]
        room = paging.limits.max_num_batched_tokens - len(machine.decodes)
        chunk = paging.chunks[request] = min(world.tokens_to_compute(machine, request) - computed, room)
        growth += paging.in_blocks(computed + chunk) - paging.in_blocks(computed)
    return growth


def preempt_last(world: World, machine: SimMachine) -> None:
    """The running request that was admitted last loses its cache and waits at the front of the queue."""
    paging, row = paging_of(machine), machine.row
    running = [*machine.decodes, paging.unfinished] if paging.unfinished >= 0 else [*machine.decodes]
    request = max(running, key=paging.admitted.__getitem__)
    if request == paging.unfinished:
        paging.unfinished = -1
        held = paging.computed.pop(request)
        machine.kv_used_tokens -= paging.in_blocks(held) - paging.in_full_blocks(held)
        world.let_go(machine, request, paging.in_full_blocks(held), held)
    else:
        held = machine.decodes.tokens_of(request)
        machine.preempted[request] = Preempted(*machine.decodes.remove(request))
        world.let_go(machine, request, paging.in_blocks(held - 1), held - 1)
        row[b.TOKEN_WEIGHT] -= world.weight_to_next_token(request)
        if request in machine.starting:
            machine.starting.remove(request)
            held += 1  # the books count its first token already
    machine.put_back += request in machine.preempted
    row[b.RUNNING] -= 1
    row[b.WAITING] += 1
    row[b.KV_HELD] -= held
    machine.queue.appendleft(request)
    world.preemptions += 1
    world.log("preempted", machine.index, request)


def admit_prompts(world: World, machine: SimMachine, prompts: list[int]) -> None:
    """First come, first served, while tokens, places and blocks are left; those admitted are added to ``prompts``."""
    paging, queue = paging_of(machine), machine.queue
    limits, decodes = paging.limits, len(machine.decodes)
    budget = limits.max_num_batched_tokens - decodes - sum(paging.chunks[request] for request in prompts)
    while queue and budget > 0 and decodes + len(prompts) < limits.max_num_seqs:
        request = queue[0]
        is_back = request in machine.preempted
        tokens = world.tokens_to_compute(machine, request)
        kept_free = paging.watermark_tokens if decodes + len(prompts) else 0
        names, own = world.names_on(machine, request), own_name(request)
        hit = shared = 0
        if paging.cache is not None:
            hit, shared = paging.cache.hit_tokens(names, own, tokens), paging.cache.shared_tokens(names)
        if not (is_back or machine.admits) or paging.in_blocks(tokens) - shared + kept_free > machine.free_tokens:
            return
        queue.popleft()
        prompts.append(request)
        paging.admit(request)
        paging.computed[request] = hit
        chunk = paging.chunks[request] = min(tokens - hit, budget)
        machine.kv_used_tokens += paging.in_blocks(hit + chunk) - shared
        if paging.cache is not None:
            paging.cache.use(names, own)
            publish(world, machine, request)
            give_up_surplus(machine)
            world.prefix_hit_tokens += hit
        machine.row[b.KV_HELD] += hit
        budget -= chunk
        machine.row[b.RUNNING] += 1
        machine.row[b.WAITING] -= 1
        if is_back:
            machine.put_back -= 1
            receive(world, machine)


def publish(world: World, machine: SimMachine, request: int) -> None:
    """Prefix caching: others may use what is computed of its prompt in this iteration, too."""
    paging = paging_of(machine)
    if paging.cache is not None:
        tokens = paging.computed[request] + paging.chunks[request]
        paging.cache.publish(world.names_on(machine, request), tokens)


def start_iteration(world: World, machine: SimMachine, batch: Batch) -> float:
    """Returns how long it takes."""
    paging, row = paging_of(machine), machine.row
    prompt_tokens = attention = prefill_context = 0
    for request in batch.prompts:
        chunk, context = paging.chunks[request], paging.computed[request]
        prompt_tokens += chunk
        attention += chunk * (2 * context + chunk)
        prefill_context += context
        row[b.KV_HELD] += chunk + (context + chunk == world.tokens_to_compute(machine, request))
        if math.isnan(world.outcome.prompt_start_s[request]):
            world.outcome.prompt_start_s[request] = world.clock.now
    machine.running_prompts = len(batch.prompts)
    return begin(world, machine, batch, prompt_tokens, attention, prefill_context)


def end_chunk(world: World, machine: SimMachine, request: int, now_s: float) -> None:
    """A chunk is in the cache; the last one yields a token, and the request goes on."""
    paging = paging_of(machine)
    paging.computed[request] += paging.chunks[request]
    if paging.computed[request] < world.tokens_to_compute(machine, request):
        paging.unfinished = request
        return
    paging.unfinished = -1
    del paging.computed[request]
    end_computation(world, machine, request, now_s)


def paging_of(machine: SimMachine) -> Paging:
    """It has one under this discipline."""
    assert machine.paging is not None
    return machine.paging


VLLM = Discipline(form_batch, start_iteration, end_chunk)

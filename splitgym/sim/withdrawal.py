"""A request is taken out of wherever it is, and memory, books and links are as if it had never come.

What an iteration is working on is taken out when it ends, before tokens are handed out, as vLLM does with requests that
are aborted: then `take_leave` does what `withdraw` has put off.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from splitgym.sim import books as b
from splitgym.sim.clock import ARRIVAL
from splitgym.sim.first_tokens import unbook_cache
from splitgym.sim.rows import IN_FLIGHT
from splitgym.sim.transfers import free, offer_room, receive
from splitgym.sim.world import LastToken, SimMachine, World

NAN = float("nan")


class Served(Protocol):
    """What an iteration gives tokens to; see `splitgym.sim.iterations.Batch`."""

    served: list[int] | None
    num_decodes: int


class Progress(NamedTuple):
    """How far a request had come on the machines that it leaves."""

    tokens: int = 0  # that it got there
    last: LastToken = LastToken(NAN, 0.0)  # of them


NOTHING = Progress()


def withdraw(world: World, request: int, broken: SimMachine | None = None) -> None:
    """Take out a request that has arrived and is not done; if it may go on, it begins again.

    Args:
        world: the run.
        request: in flight; or abandoned, then it is over.
        broken: a machine whose iteration will not end.
    """
    if world.outcome.prompt_machine[request] < 0:
        if request in world.unplaced:
            world.unplaced.remove(request)
        return
    for machine in machines_of(world, request):
        if machine.busy and machine is not broken and (request in machine.prompts or request in machine.decodes):
            if request not in machine.leaving:
                machine.leaving.append(request)
            return
    part_with(world, request)


def take_leave(world: World, machine: SimMachine, batch: Served) -> None:
    """Take out what was withdrawn during the iteration that ends now."""
    for request in machine.leaving:
        if request in machine.decodes and (batch.served is None or request in batch.served):
            batch.num_decodes -= 1
            if batch.served is not None:
                batch.served.remove(request)
        part_with(world, request)
    machine.leaving.clear()


def part_with(world: World, request: int) -> None:
    """Take it out now; unless its client is gone, it begins again: from its prompt and the tokens that it has had."""
    progress = release(world, request)
    world.moved.pop(request, None)
    world.cache_machine[request] = -1
    if world.outcome.status[request] != IN_FLIGHT:
        return
    if progress.tokens:
        world.prompt_tokens[request] += progress.tokens
        world.output_tokens[request] -= progress.tokens
        world.predicted[request] = max(world.predicted[request] - progress.tokens, 1.0)
        world.resumed[request] = progress.last
        world.ledger.prompt_weight[request] = world.ledger.token_weight[request]  # what it is charged by waits, too
    outcome = world.outcome
    outcome.prompt_machine[request] = outcome.token_machine[request] = -1
    outcome.prompt_start_s[request] = outcome.transfer_end_s[request] = NAN
    world.restarts += 1
    world.log("restart", -1, request)
    ask_again(world, request)


def ask_again(world: World, request: int) -> None:
    """Have its machines decided as soon as what happens at this instant allows."""
    world.clock.call(lambda: world.ask(request), world.clock.now, ARRIVAL, request=request)


def machines_of(world: World, request: int) -> tuple[SimMachine, ...]:
    """Its prompt machine and its token machine, once where they are one; the latter may not be chosen yet."""
    prompt, token = world.outcome.prompt_machine[request], world.outcome.token_machine[request]
    return (world.machines[prompt],) if token in (prompt, -1) else (world.machines[prompt], world.machines[token])


def release(world: World, request: int) -> Progress:
    """Give back what it holds, wherever it is. A machine that is busy is at the end of its iteration, or broken."""
    token = machines_of(world, request)[-1]
    for machine in machines_of(world, request):
        if request in machine.queue:
            return leave_queue(world, machine, request)
        if request in machine.prompts or (machine.paging is not None and machine.paging.unfinished == request):
            return leave_iteration(world, machine, request)
    if request in token.decodes:
        return leave_decodes(world, token, request)
    moved = world.moved.get(request)
    last = world.last_token(request) if moved is None else LastToken(moved.last_token_s, moved.tbt_max_s)
    need = world.need_to_come(token, request)
    tokens = world.tokens_at_start(request) - world.prompt_tokens[request]
    if world.outcome.token_machine[request] < 0:  # late choice: its prompt phase has just ended
        if world.token_machines_answer:
            unbook_cache(world, request)
        drop_cache(world, request)
        return Progress(tokens, last)
    forget_decode(world, token, request, world.output_tokens[request] - tokens)
    if request in token.joining:
        token.joining.remove(request)
        token.row[b.RUNNING] -= 1
        token.row[b.KV_HELD] -= world.reported_tokens(request)
        free(world, token, request, need, world.tokens_to_send(request))
    elif request in token.inbox:
        token.inbox.remove(request)
        lease_end = world.leases.pop(request, None)
        if lease_end is not None:
            world.clock.cancel(lease_end)
        token.row[b.WAITING] -= 1
        drop_cache(world, request)
        receive(world, token)
    else:
        event = world.on_the_way.pop(request, None)
        if event is not None:
            world.clock.cancel(event)
        else:
            world.network.withdraw(request)
        drop_cache(world, request)
        token.kv_used_tokens -= need  # of which nothing has come
        offer_room(world, token)
    return Progress(tokens, last)


def leave_queue(world: World, machine: SimMachine, request: int) -> Progress:
    """A prompt that waits, or a decode that has lost its cache."""
    machine.queue.remove(request)
    machine.row[b.WAITING] -= 1
    was_put_back = request in machine.preempted
    progress = forget_phase(world, machine, request)
    if was_put_back:
        machine.put_back -= 1
        receive(world, machine)
    world.make_runnable(machine)
    return progress


def leave_iteration(world: World, machine: SimMachine, request: int) -> Progress:
    """A prompt in work, or between its chunks (discipline `vllm`), or a decode whose cache is computed again."""
    row, paging, to_compute = machine.row, machine.paging, world.tokens_to_compute(machine, request)
    row[b.RUNNING] -= 1
    row[b.PROMPT_SINCE_S] = world.clock.now
    if request in machine.prompts:
        machine.prompts.remove(request)
    if paging is None:
        row[b.KV_HELD] -= to_compute + 1
        if world.layerwise and world.is_sent(request):
            free(world, machines_of(world, request)[-1], request, world.whole_tokens[request])
        progress = forget_phase(world, machine, request)
        free(world, machine, request, world.need_here(machine, request))
        return progress
    held = paging.computed.pop(request) + (paging.chunks[request] if machine.busy else 0)
    row[b.KV_HELD] -= held + (held == to_compute)
    if paging.unfinished == request:
        paging.unfinished = -1
    progress = forget_phase(world, machine, request)
    free(world, machine, request, paging.in_blocks(held), held)
    return progress


def leave_decodes(world: World, machine: SimMachine, request: int) -> Progress:
    """A decode with its cache."""
    row, paging, held = machine.row, machine.paging, machine.decodes.tokens_of(request)
    remaining_tokens, last_s, tbt_max_s = machine.decodes.remove(request)
    row[b.RUNNING] -= 1
    row[b.KV_HELD] -= held
    row[b.TOKEN_WEIGHT] -= world.weight_to_next_token(request)
    if request in machine.starting:
        machine.starting.remove(request)
        row[b.KV_HELD] -= 1  # the books count its first token already
    forget_decode(world, machine, request, remaining_tokens)
    if paging is None:
        free(world, machine, request, world.whole_tokens[request])
    else:
        there = held if machine.busy else held - 1
        free(world, machine, request, paging.in_blocks(there), there)
    return Progress(world.output_tokens[request] - remaining_tokens, LastToken(last_s, tbt_max_s))


def forget_phase(world: World, machine: SimMachine, request: int) -> Progress:
    """What is in work on a machine leaves the books: a prompt, or a decode that has lost its cache."""
    if request in machine.preempted:
        return forget_preempted(world, machine, request)
    forget_prompt(world, request)
    return NOTHING


def forget_preempted(world: World, machine: SimMachine, request: int) -> Progress:
    """A decode that has lost its cache leaves the books."""
    preempted = machine.preempted.pop(request)
    forget_decode(world, machine, request, preempted.remaining_tokens)
    last = LastToken(preempted.last_token_s, preempted.tbt_max_s)
    return Progress(world.output_tokens[request] - preempted.remaining_tokens, last)


def drop_cache(world: World, request: int) -> None:
    """The cache goes that its prompt machine keeps for another, or for itself, or the machine where it was a decode."""
    source, held = world.machines[world.cache_machine[request]], world.reported_tokens(request)
    source.row[b.KV_HELD] -= held
    if world.outcome.token_machine[request] != source.index:  # it does not wait in place (late choice)
        source.outgoing -= 1
        if request in world.moved:
            source.row[b.BOOKED_KV] -= held
        elif not world.token_machines_answer:
            unbook_cache(world, request)
    free(world, source, request, world.held_until_sent(source, request), world.tokens_to_send(request))


def forget_prompt(world: World, request: int) -> None:
    """A prompt whose first token is not out leaves the books of both its machines."""
    prompt_tokens, predicted = world.prompt_tokens[request], world.predicted[request]
    machines = machines_of(world, request)
    prompt, token = machines[0], machines[-1]
    is_chosen = world.outcome.token_machine[request] >= 0
    prompt.row[b.PENDING_PROMPTS] -= 1
    prompt.row[b.PENDING_TOKENS] -= prompt_tokens
    weigh_prompts(world, prompt)
    if prompt is not token or not is_chosen:
        prompt.row[b.BOOKED_KV] -= prompt_tokens + 1
    if not is_chosen:
        return
    row = token.row
    row[b.COMING] -= 1
    row[b.COMING_CONTEXT] -= prompt_tokens + 1
    row[b.REMAINING] -= predicted - 1
    row[b.BOOKED_KV] -= prompt_tokens + predicted
    row[b.TOKEN_WEIGHTED] -= world.ledger.token_weight[request] * (world.output_tokens[request] - 1)
    if world.is_answered_late(request):
        row[b.TOKEN_WEIGHTED] -= world.ledger.prompt_weight[request]
    clear_rounding(token)


def forget_decode(world: World, token: SimMachine, request: int, remaining_tokens: int) -> None:
    """A request whose prompt phase is over leaves the books of its token machine, which count its first token."""
    row, predicted, output_tokens = token.row, world.predicted[request], world.output_tokens[request]
    later_tokens = min(remaining_tokens, output_tokens - 1)
    row[b.DECODES] -= 1
    row[b.CONTEXT] -= world.whole_tokens[request] - later_tokens
    row[b.REMAINING] -= predicted - output_tokens + later_tokens
    row[b.BOOKED_KV] -= world.prompt_tokens[request] + predicted
    row[b.TOKEN_WEIGHTED] -= world.ledger.token_weight[request] * later_tokens
    if remaining_tokens > later_tokens:
        row[b.TOKEN_WEIGHTED] -= world.ledger.prompt_weight[request]
        unbook_cache(world, request)
    clear_rounding(token)


def weigh_prompts(world: World, machine: SimMachine) -> None:
    """Write anew what the pending prompts of a machine are worth together, in the order in which it takes them."""
    pending_s = weight = weighted_s = 0.0
    unfinished = machine.paging.unfinished if machine.paging is not None else -1
    first = [unfinished] if unfinished >= 0 and unfinished not in machine.prompts else []
    for request in (*first, *machine.prompts, *machine.queue):
        if request not in machine.preempted:
            pending_s += world.prompt_work_s[request]
            weight += world.ledger.prompt_weight[request]
            weighted_s += world.ledger.prompt_weight[request] * pending_s
    row = machine.row
    row[b.PENDING_S], row[b.PROMPT_WEIGHT], row[b.PROMPT_WEIGHTED_S] = pending_s, weight, weighted_s


def clear_rounding(machine: SimMachine) -> None:
    """Whatever rounding left, where nothing decodes or is to come."""
    if machine.row[b.DECODES] + machine.row[b.COMING] == 0:
        machine.row[[b.REMAINING, b.TOKEN_WEIGHT, b.TOKEN_WEIGHTED]] = 0.0

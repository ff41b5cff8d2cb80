"""What a machine does: wait for work, form a batch, process it, hand out its tokens. Here, discipline `splitwise`."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import NamedTuple

import simpy

from splitgym.hardware.latency import iteration_s
from splitgym.sim import books as b
from splitgym.sim.assignment import book_token_phase
from splitgym.sim.clock import ITERATION_END, MACHINE_START
from splitgym.sim.cluster import Batching
from splitgym.sim.energy import iteration_energy_j
from splitgym.sim.first_tokens import (
    await_first_token,
    close_gap,
    starting_among,
    yield_first_token,
    yield_first_tokens,
)
from splitgym.sim.leases import start_lease, wait_in_place
from splitgym.sim.migration import is_leaving, move_decodes, redirect
from splitgym.sim.paging import Preempted
from splitgym.sim.rows import COMPLETED
from splitgym.sim.transfers import free, receive, send
from splitgym.sim.withdrawal import take_leave
from splitgym.sim.world import SimMachine, World
from splitgym.view import DOWN, SWITCHING


@dataclass(slots=True)
class Batch:
    """One iteration's work."""

    prompts: list[int]
    served: list[int] | None  # decodes that get a token; None: all of them
    num_decodes: int


class Discipline(NamedTuple):
    """How a machine works in iterations."""

    form_batch: Callable[[World, SimMachine], Batch | None]
    start_iteration: Callable[[World, SimMachine, Batch], float]  # returns how long it takes
    end_prompt: Callable[[World, SimMachine, int, float], None]


def run_machine(world: World, machine: SimMachine, discipline: Discipline) -> Generator[simpy.Event, None, None]:
    """The process of one machine, for ever."""
    clock = world.clock
    while True:
        machine.wake = simpy.Event(clock)
        yield machine.wake
        while batch := discipline.form_batch(world, machine):
            start_s = clock.now
            end_s = start_s + discipline.start_iteration(world, machine, batch)
            machine.prompts = batch.prompts
            machine.due = clock.at(end_s, ITERATION_END, machine.index)
            yield machine.due
            if not machine.busy:  # it has gone down
                break
            end_iteration(world, machine, batch, start_s, discipline)
            yield clock.at(end_s, MACHINE_START, machine.index)


def form_batch(world: World, machine: SimMachine) -> Batch | None:
    """Forced decodes, then prompts first come first served, then decodes in order of arrival."""
    if machine.row[b.LIFECYCLE] in (SWITCHING, DOWN):
        return None
    take_in(world, machine)
    if is_leaving(world, machine):
        move_decodes(world, machine)
    limits = world.cluster.batching
    assert isinstance(limits, Batching)
    decodes = machine.decodes
    forced = decodes.passed_over(limits.max_preemptions)
    forced = forced[: min(limits.max_batch_size, limits.max_batch_tokens)]
    size = tokens = len(forced)
    prompts: list[int] = []
    queue = machine.queue
    while queue and size < limits.max_batch_size:
        prompt_tokens = world.tokens_to_compute(machine, queue[0])
        if size and tokens + prompt_tokens > limits.max_batch_tokens:
            break
        if not reserve_for_prompt(world, machine, queue[0]):
            break
        prompts.append(queue.popleft())
        size += 1
        tokens += prompt_tokens
        if prompts[-1] in machine.preempted:
            machine.put_back -= 1
            receive(world, machine)
    room = max(min(limits.max_batch_size - size, limits.max_batch_tokens - tokens), 0)
    others = len(decodes) - len(forced)
    if others <= room:
        return Batch(prompts, None, len(decodes)) if prompts or len(decodes) else None
    taken = set(forced)
    served = forced + [request for request in decodes.in_order() if request not in taken][:room]
    return Batch(prompts, served, len(served))


def reserve_for_prompt(world: World, machine: SimMachine, request: int) -> bool:
    """Take the memory a prompt needs before its iteration, here and, layer-wise, at its destination."""
    is_back = request in machine.preempted
    if not (is_back or machine.admits):
        return False
    need = world.need_here(machine, request)
    if need > machine.free_tokens:
        return False
    if world.layerwise and world.is_sent(request):  # then no cache waits, and none is computed again
        destination = world.machines[world.outcome.token_machine[request]]
        whole = world.whole_tokens[request]
        if whole > destination.free_tokens or not destination.admits:
            destination.blocked[machine.index] = machine
            return False
        destination.kv_used_tokens += whole
    machine.kv_used_tokens += need
    return True


def start_iteration(world: World, machine: SimMachine, batch: Batch) -> float:
    """Returns how long it takes."""
    now_s = world.clock.now
    row = machine.row
    prompt_tokens = attention = 0
    for request in batch.prompts:
        length = world.tokens_to_compute(machine, request)
        prompt_tokens += length
        attention += length * length
        if request not in machine.preempted:
            world.outcome.prompt_start_s[request] = now_s
    count = len(batch.prompts)
    if count:
        machine.running_prompts = count
        row[b.WAITING] -= count
        row[b.RUNNING] += count
        row[b.KV_HELD] += prompt_tokens + count
    return begin(world, machine, batch, prompt_tokens, attention, 0)


def begin(
    world: World, machine: SimMachine, batch: Batch, prompt_tokens: int, attention: int, prefill_context: int
) -> float:
    """Start the iteration of these features (`iteration_s`); returns how long it takes."""
    count = len(batch.prompts)
    context = machine.decodes.context_tokens(batch.served)
    features = prompt_tokens, count, attention, prefill_context, batch.num_decodes, context
    duration_s = iteration_s(machine.law, *features) * machine.pace
    machine.busy = True
    batch_tokens = prompt_tokens + batch.num_decodes if count else 0
    most_tokens, most_decodes, most_context = machine.largest
    if batch_tokens > most_tokens or batch.num_decodes > most_decodes or context > most_context:
        machine.largest = (
            max(batch_tokens, most_tokens),
            max(batch.num_decodes, most_decodes),
            max(context, most_context),
        )
    energy_j = iteration_energy_j(machine.law, duration_s, prompt_tokens, batch.num_decodes, context)
    world.ledger.on_energy(*energy_j, duration_s * machine.idle_w)
    return float(duration_s)


def end_iteration(world: World, machine: SimMachine, batch: Batch, start_s: float, discipline: Discipline) -> None:
    """Hand out the tokens: decodes first, then the first tokens of prompts, which join afterwards."""
    now_s = world.clock.now
    count, num_decodes = len(batch.prompts), batch.num_decodes
    if machine.leaving:
        take_leave(world, machine, batch)
    machine.busy = False
    if batch.num_decodes or batch.served is not None:
        end_decodes(world, machine, batch, now_s)
    for request in batch.prompts:
        discipline.end_prompt(world, machine, request, now_s)
    machine.prompts = []
    if count:
        machine.running_prompts = 0
        if machine.row[b.PENDING_PROMPTS] == 0:  # whatever rounding left
            machine.row[[b.PENDING_S, b.PROMPT_WEIGHT, b.PROMPT_WEIGHTED_S]] = 0.0
    if world.recorder is not None:
        world.recorder.iteration(machine.index, start_s, now_s, count, num_decodes)


def end_decodes(world: World, machine: SimMachine, batch: Batch, now_s: float) -> None:
    """A token for each decode of the batch; those that are done leave and free their memory."""
    row = machine.row
    starting = starting_among(machine, batch.served)
    later_tokens = batch.num_decodes - len(starting)
    row[b.CONTEXT] += later_tokens
    row[b.KV_HELD] += later_tokens
    row[b.REMAINING] -= later_tokens
    world.ledger.tokens_out += later_tokens
    if batch.served is None:
        row[b.TOKEN_WEIGHTED] -= row[b.TOKEN_WEIGHT]
        yield_first_tokens(world, machine, starting, now_s)
        done = machine.decodes.serve_all(now_s)
    else:
        weight = 0.0  # one by one: from Python 3.12 on, sum() rounds in another way
        for request in batch.served:
            weight += world.weight_to_next_token(request)
        row[b.TOKEN_WEIGHTED] -= weight
        yield_first_tokens(world, machine, starting, now_s)
        done = machine.decodes.serve(set(batch.served), now_s)
    for request, tbt_max_s in done:
        end_decode(world, machine, request, tbt_max_s, now_s)
    if done and row[b.DECODES] + row[b.COMING] == 0:
        row[[b.REMAINING, b.TOKEN_WEIGHT, b.TOKEN_WEIGHTED]] = 0.0


def end_decode(world: World, machine: SimMachine, request: int, tbt_max_s: float, now_s: float) -> None:
    """It leaves and frees its memory."""
    row, whole = machine.row, world.whole_tokens[request]
    if world.output_tokens[request] > 1 or request in world.resumed:
        world.outcome.tbt_max_s[request] = tbt_max_s
    row[b.DECODES] -= 1
    row[b.RUNNING] -= 1
    row[b.CONTEXT] -= whole
    row[b.KV_HELD] -= whole
    row[b.TOKEN_WEIGHT] -= world.ledger.token_weight[request]
    finish(world, request, machine, now_s)
    free(world, machine, request, world.held_at_end(machine, request))


def end_computation(world: World, machine: SimMachine, request: int, now_s: float) -> None:
    """Its prompt is in the cache, or, where the cache was lost, prompt and tokens so far are there again."""
    preempted = machine.preempted.pop(request, None)
    if preempted is None:
        end_prompt(world, machine, request, now_s)
    else:
        end_recomputation(world, machine, request, preempted, now_s)


def end_prompt(world: World, machine: SimMachine, request: int, now_s: float) -> None:
    """The prompt phase is over; the cache stays, is sent, or is dropped where no token is to come."""
    prompt_tokens = world.prompt_tokens[request]
    is_chosen_now = world.cluster.chooses_late
    if is_chosen_now and world.output_tokens[request] == 1 and not world.token_machines_answer:
        is_chosen_now = False  # there is no token phase
        world.outcome.token_machine[request] = machine.index
        machine.row[b.BOOKED_KV] -= prompt_tokens + 1
        book_token_phase(world, request, machine)
    token = world.machines[world.outcome.token_machine[request]]
    if not is_chosen_now and is_leaving(world, token) and token is not machine and not world.layerwise:
        redirect(world, request)
        token = world.machines[world.outcome.token_machine[request]]
    if not world.is_answered_late(request):
        if request in world.resumed:
            close_gap(world, request, now_s)
        yield_first_token(world, machine, request, now_s)
    row = machine.row
    row[b.RUNNING] -= 1
    work_s = world.prompt_work_s[request]
    row[b.PENDING_PROMPTS] -= 1
    row[b.PENDING_TOKENS] -= prompt_tokens
    row[b.PENDING_S] -= work_s
    row[b.PROMPT_SINCE_S] = now_s
    row[b.PROMPT_WEIGHTED_S] -= row[b.PROMPT_WEIGHT] * work_s
    row[b.PROMPT_WEIGHT] -= world.ledger.prompt_weight[request]
    if is_chosen_now:
        machine.outgoing += 1
        world.awaiting.append(request)
    else:
        begin_token_phase(world, machine, token, request, now_s)


def begin_token_phase(world: World, machine: SimMachine, token: SimMachine, request: int, now_s: float) -> None:
    """Its prompt phase has ended on ``machine``."""
    prompt_tokens, row = world.prompt_tokens[request], machine.row
    token.row[b.COMING] -= 1
    token.row[b.COMING_CONTEXT] -= prompt_tokens + 1
    if world.output_tokens[request] == 1 and not world.is_answered_late(request):
        row[b.KV_HELD] -= prompt_tokens + 1
        if token is not machine:
            row[b.BOOKED_KV] -= prompt_tokens + 1
        finish(world, request, token, now_s)
        free(world, machine, request, world.held_at_end(machine, request))
        return
    token.row[b.DECODES] += 1
    token.row[b.CONTEXT] += prompt_tokens + 1
    if token is machine:
        if machine.paging is None and world.cluster.chooses_late:
            wait_in_place(world, machine, request)
        elif machine.paging is None:
            world.join(request, machine)
        else:  # it runs already
            row[b.RUNNING] += 1
            take_place(world, machine, request)
        return
    machine.outgoing += 1
    if world.layerwise:
        send(world, request, now_s)
    else:
        token.inbox.append(request)
        token.row[b.WAITING] += 1
        receive(world, token)
        start_lease(world, request)


def end_recomputation(world: World, machine: SimMachine, request: int, preempted: Preempted, now_s: float) -> None:
    """A decode that had lost its cache has it again, and its next token."""
    row = machine.row
    row[b.TOKEN_WEIGHTED] -= world.weight_to_next_token(request)
    row[b.TOKEN_WEIGHT] += world.ledger.token_weight[request]
    tbt_max_s = preempted.tbt_max_s
    is_first = preempted.remaining_tokens == world.output_tokens[request]
    if is_first:
        yield_first_token(world, machine, request, now_s)
    else:
        row[b.CONTEXT] += 1
        row[b.REMAINING] -= 1
        world.ledger.tokens_out += 1
    if not is_first or request in world.resumed:
        tbt_max_s = max(tbt_max_s, now_s - preempted.last_token_s)
    remaining_tokens = preempted.remaining_tokens - 1
    if remaining_tokens > 0:
        machine.decodes.join(request, world.whole_tokens[request], remaining_tokens, now_s, tbt_max_s)
        return
    end_decode(world, machine, request, tbt_max_s, now_s)
    if row[b.DECODES] + row[b.COMING] == 0:
        row[[b.REMAINING, b.TOKEN_WEIGHT, b.TOKEN_WEIGHTED]] = 0.0


def finish(world: World, request: int, token: SimMachine, now_s: float) -> None:
    """The last token is out."""
    world.outcome.finish_s[request] = now_s
    world.outcome.status[request] = COMPLETED
    predicted = world.predicted[request]
    token.row[b.REMAINING] += world.output_tokens[request] - predicted
    token.row[b.BOOKED_KV] -= world.prompt_tokens[request] + predicted
    world.log("finish", token.index, request)
    world.ledger.on_finish(request, now_s)


def take_in(world: World, machine: SimMachine) -> None:
    """Decodes whose cache has arrived take their place."""
    for request in machine.joining:
        take_place(world, machine, request)
    machine.joining.clear()


def take_place(world: World, machine: SimMachine, request: int) -> None:
    """Its token phase begins."""
    machine.row[b.TOKEN_WEIGHT] += world.weight_to_next_token(request)
    whole = world.whole_tokens[request]
    remaining = whole - world.tokens_at_start(request)
    moved = world.moved.pop(request, None)
    if moved is None:
        machine.decodes.join(request, whole, remaining, *world.last_token(request))
    else:
        machine.decodes.join(request, whole, *moved)
    await_first_token(world, machine, request, remaining)


SPLITWISE = Discipline(form_batch, start_iteration, end_computation)

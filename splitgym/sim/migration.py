"""Draining with migration (`Cluster.migrate`): what a role change leaves without its phase goes on elsewhere.

Prompts that wait go to the prompt machine with fewest pending tokens, token phases to the token machine with most KV
memory that is not booked: ready ones that can hold the request, of equals the first. A token phase never goes to the
machine that had its prompt or has its cache. Where there is none, draining is as without migration.
"""

from __future__ import annotations

from splitgym.sim import books as b
from splitgym.sim.assignment import enter_queue, leave_books
from splitgym.sim.paging import Preempted
from splitgym.sim.transfers import receive
from splitgym.sim.world import SimMachine, World
from splitgym.view import PROMPT, READY, TOKEN

COMING, DECODING = (b.COMING, b.COMING_CONTEXT), (b.DECODES, b.CONTEXT)
"""Columns of the books that count a token phase, before the end of its prompt phase and after."""


def leave_phases(world: World, machine: SimMachine) -> None:
    """A role change: what waits is given to others at once, decodes at the next boundary (`move_decodes`)."""
    if PROMPT in machine.lost_phases:
        hand_over_prompts(world, machine)
    if TOKEN in machine.lost_phases:
        for other in world.machines:
            if other is not machine:
                for request in other.queue:
                    if world.outcome.token_machine[request] == machine.index:
                        redirect(world, request)
                world.make_runnable(other)  # it may have waited for room here
        for request in list(machine.inbox):
            is_here = world.cache_machine[request] == machine.index  # it is moved once it decodes
            destination = None if is_here else freest(world, request)
            if destination is not None:
                machine.inbox.remove(request)
                machine.row[b.WAITING] -= 1
                rebook(world, request, destination, DECODING)
                wait_for_room(world, request, destination)
        world.make_runnable(machine)


def hand_over_prompts(world: World, machine: SimMachine) -> None:
    """Prompts that wait, not those in work, nor decodes to be computed again."""
    waiting = [request for request in machine.queue if request not in machine.preempted]
    for request in reversed(waiting):
        machine.queue.remove(request)
        leave_books(world, request, machine)
    outcome = world.outcome
    for request in waiting:
        others = [
            other
            for other in world.machines
            if other.row[b.LIFECYCLE] == READY
            and other.row[b.ROLE] != TOKEN
            and world.need_here(other, request) <= other.kv_capacity_tokens
        ]
        other = min(others, key=lambda other: other.row[b.PENDING_TOKENS], default=machine)
        answered_late = world.is_answered_late(request)
        outcome.prompt_machine[request] = other.index
        change = world.is_answered_late(request) - answered_late
        if change:
            token = world.machines[outcome.token_machine[request]]
            token.row[b.TOKEN_WEIGHTED] += change * world.ledger.prompt_weight[request]
        if other is not machine:
            count(world, request, other)
        enter_queue(world, request, other, 0)


def is_leaving(world: World, machine: SimMachine) -> bool:
    """Whether its token phases are moved."""
    return world.cluster.migrate and TOKEN in machine.lost_phases


def redirect(world: World, request: int) -> None:
    """Its prompt phase is not over: its token phase is to be elsewhere."""
    destination = freest(world, request)
    if destination is not None:
        rebook(world, request, destination, COMING)


def move_decodes(world: World, machine: SimMachine) -> bool:
    """At an iteration boundary: caches of decodes are to be sent, in order of arrival; whether there are any."""
    some = False
    for request in machine.decodes.in_order():
        destination = freest(world, request)
        if destination is None:
            continue
        some = True
        world.moved[request] = Preempted(*machine.decodes.remove(request))
        if request in machine.starting:
            machine.starting.remove(request)
        machine.outgoing += 1
        machine.row[b.RUNNING] -= 1
        machine.row[b.TOKEN_WEIGHT] -= world.weight_to_next_token(request)
        rebook(world, request, destination, DECODING)
        machine.row[b.BOOKED_KV] += world.reported_tokens(request)
        wait_for_room(world, request, destination)
    return some


def freest(world: World, request: int) -> SimMachine | None:
    """Where a token phase goes that has to go elsewhere."""
    whole = world.whole_tokens[request]
    excluded = world.cache_machine[request], world.outcome.prompt_machine[request]
    others = [
        machine
        for machine in world.machines
        if machine.row[b.LIFECYCLE] == READY
        and machine.row[b.ROLE] != PROMPT
        and machine.kv_capacity_tokens >= whole
        and machine.index not in excluded
    ]
    return max(others, key=lambda machine: machine.kv_capacity_tokens - machine.row[b.BOOKED_KV], default=None)


def rebook(world: World, request: int, destination: SimMachine, columns: tuple[int, int]) -> None:
    """Its token phase is another machine's."""
    old = world.machines[world.outcome.token_machine[request]]
    tokens, prompt_tokens, predicted = (
        world.reported_tokens(request),
        world.prompt_tokens[request],
        world.predicted[request],
    )
    remaining_tokens = world.whole_tokens[request] - tokens
    weighted = world.ledger.token_weight[request] * remaining_tokens
    if world.tokens_at_start(request) == prompt_tokens:  # its token machine makes the first, or the next, of them
        weighted += world.ledger.prompt_weight[request]
    counted, context = columns
    for row, sign in ((old.row, -1), (destination.row, 1)):
        row[counted] += sign
        row[context] += sign * tokens
        row[b.REMAINING] += sign * (predicted - (tokens - prompt_tokens))
        row[b.BOOKED_KV] += sign * (prompt_tokens + predicted)
        row[b.TOKEN_WEIGHTED] += sign * weighted
    if old.row[b.DECODES] + old.row[b.COMING] == 0:  # whatever rounding left
        old.row[[b.REMAINING, b.TOKEN_WEIGHT, b.TOKEN_WEIGHTED]] = 0.0
    world.outcome.token_machine[request] = destination.index
    count(world, request, destination)


def wait_for_room(world: World, request: int, machine: SimMachine) -> None:
    """Its cache is to come here."""
    machine.inbox.append(request)
    machine.row[b.WAITING] += 1
    receive(world, machine)


def count(world: World, request: int, machine: SimMachine) -> None:
    """A request has been given to another machine."""
    world.migrations += 1
    world.log("moved", machine.index, request)

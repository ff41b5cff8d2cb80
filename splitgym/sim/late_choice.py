"""The token machine is chosen when the prompt phase ends (`Cluster.token_choice`), no longer at the arrival."""

from __future__ import annotations

from splitgym.sim import books as b
from splitgym.sim.assignment import book_token_phase
from splitgym.sim.first_tokens import close_gap, yield_first_token
from splitgym.sim.iterations import begin_token_phase
from splitgym.sim.outages import may_wait
from splitgym.sim.withdrawal import part_with
from splitgym.sim.world import SimMachine, World


def choose_token_machine(world: World, request: int, token: SimMachine) -> None:
    """The cache is sent to ``token``, or stays there."""
    machine = world.machines[world.outcome.prompt_machine[request]]
    world.log("chosen", token.index, request)
    if world.whole_tokens[request] > token.kv_capacity_tokens:
        world.fail(request)
        part_with(world, request)
        return
    world.outcome.token_machine[request] = token.index
    machine.outgoing -= 1
    if token is machine:
        machine.row[b.BOOKED_KV] -= world.prompt_tokens[request] + 1
        if world.token_machines_answer:
            if request in world.resumed:
                close_gap(world, request, world.clock.now)
            yield_first_token(world, machine, request, world.clock.now)
    book_token_phase(world, request, token)
    begin_token_phase(world, machine, token, request, world.clock.now)


def default_token_machine(world: World, request: int) -> SimMachine | None:
    """The permitted machine that holds the request with the most KV memory not booked, of equals the first."""
    token_mask = world.books.masks(world.prompt_tokens[request])[1]
    machines = [
        machine
        for machine in world.machines
        if token_mask[machine.index] and machine.kv_capacity_tokens >= world.whole_tokens[request]
    ]
    return max(machines, key=lambda machine: machine.kv_capacity_tokens - machine.row[b.BOOKED_KV], default=None)


def go_without(world: World, request: int) -> None:
    """No permitted machine can hold it: its cache is dropped; while a machine is down it begins again."""
    if not may_wait(world):
        world.fail(request)
    part_with(world, request)

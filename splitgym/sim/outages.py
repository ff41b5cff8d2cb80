"""What goes wrong: machines go down and come back, or are slow; clients give up."""

from __future__ import annotations

from splitgym.sim import books as b
from splitgym.sim.clock import MACHINE_START
from splitgym.sim.faults import DOWN, PACE, Change
from splitgym.sim.rows import ABANDONED, IN_FLIGHT
from splitgym.sim.transfers import offer_room
from splitgym.sim.withdrawal import ask_again, part_with, withdraw
from splitgym.sim.world import SimMachine, World
from splitgym.view import DOWN as IS_DOWN
from splitgym.view import READY


def change_machine(world: World, change: Change) -> None:
    """Let happen what is to happen to a machine."""
    machine = world.machines[change.machine]
    if change.kind == PACE:
        machine.pace = change.factor
    elif change.kind == DOWN:
        go_down(world, machine)
    else:
        come_up(world, machine)


def go_down(world: World, machine: SimMachine) -> None:
    """Its work and its caches are lost; requests that had or were to have either of its phases there begin again."""
    machine.row[b.LIFECYCLE] = IS_DOWN
    machine.lost_phases = ()
    machine.down_since_s = world.clock.now
    world.draining.pop(machine.index, None)
    if machine.ready is not None:
        world.clock.cancel(machine.ready)
        machine.ready = None
    world.log("down", machine.index, -1)
    for request in machine.leaving:
        part_with(world, request)
    machine.leaving.clear()
    for request in range(world.ledger.arrived):
        if needs(world, request, machine.index):
            withdraw(world, request, machine)
    if machine.paging is not None and machine.paging.cache is not None:
        machine.paging.cache.give_up(0)
    if machine.busy:
        assert machine.due is not None
        machine.busy = False
        machine.prompts = []
        machine.running_prompts = 0
        world.clock.cancel(machine.due)
        world.clock.trigger(machine.due, world.clock.now, MACHINE_START, machine.index)


def needs(world: World, request: int, machine: int) -> bool:
    """Whether a request in flight has something on a machine, or something to come there."""
    outcome = world.outcome
    is_here = machine in (outcome.token_machine[request], world.cache_machine[request])
    return is_here and outcome.status[request] == IN_FLIGHT


def come_up(world: World, machine: SimMachine) -> None:
    """It is empty, and ready in the role that it last had or was to have."""
    machine.row[b.LIFECYCLE] = READY
    world.log("up", machine.index, -1)
    if world.recorder is not None:
        world.recorder.outage(machine.index, machine.down_since_s, world.clock.now)
    offer_room(world, machine)
    place_waiting(world)


def place_waiting(world: World) -> None:
    """Ask again about the requests for which there was no machine."""
    for request in world.unplaced:
        ask_again(world, request)
    world.unplaced.clear()


def may_wait(world: World) -> bool:
    """Whether a request that fits nowhere now may later: a machine is down."""
    return any(machine.row[b.LIFECYCLE] == IS_DOWN for machine in world.machines)


def give_up(world: World, request: int) -> None:
    """The client has waited long enough."""
    if world.outcome.status[request] != IN_FLIGHT:
        return
    world.outcome.status[request] = ABANDONED
    world.lost += 1
    world.log("abandoned", -1, request)
    withdraw(world, request)

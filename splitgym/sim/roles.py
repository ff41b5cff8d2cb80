"""Roles change at a cost: drain what the new role does not permit, switch, be ready."""

from __future__ import annotations

from splitgym.sim import books as b
from splitgym.sim.clock import ROLE_READY
from splitgym.sim.migration import leave_phases
from splitgym.sim.outages import place_waiting
from splitgym.sim.transfers import offer_room
from splitgym.sim.world import SimMachine, World
from splitgym.view import DRAINING, MIXED, PROMPT, READY, ROLES, SWITCHING, TOKEN


def change_role(world: World, machine: SimMachine, role: int) -> None:
    """Becoming mixed only permits more and is done at once; giving up a phase drains, then takes ``switch_s``."""
    old = int(machine.row[b.ROLE])
    machine.row[b.ROLE] = role
    world.log(f"role_{ROLES[role]}", machine.index, -1)
    place_waiting(world)
    if role == MIXED:
        return
    machine.row[b.LIFECYCLE] = DRAINING
    machine.lost_phases = tuple(phase for phase in (PROMPT, TOKEN) if old in (phase, MIXED) and phase != role)
    world.draining[machine.index] = machine
    if world.cluster.migrate:
        leave_phases(world, machine)
    settle(world)


def settle(world: World) -> None:
    """Let machines go on whose draining is over."""
    if not world.draining:
        return
    switch_s = world.cluster.switch_s
    for machine in list(world.draining.values()):
        if not machine.lost_work_is_done:
            continue
        if switch_s == 0:
            del world.draining[machine.index]
            become_ready(world, machine)
        elif machine.kv_used_tokens == 0 and not machine.busy and not machine.put_back:
            del world.draining[machine.index]
            machine.row[b.LIFECYCLE] = SWITCHING
            if machine.paging is not None and machine.paging.cache is not None:
                machine.paging.cache.give_up(0)
            start_s = world.clock.now
            world.log("switching", machine.index, -1)
            machine.ready = world.clock.call(
                lambda machine=machine, start_s=start_s: end_switch(world, machine, start_s),  # type: ignore[misc]
                start_s + switch_s,
                ROLE_READY,
                machine.index,
            )


def end_switch(world: World, machine: SimMachine, start_s: float) -> None:
    """The machine has restarted."""
    if world.recorder is not None:
        world.recorder.switch(machine.index, start_s, world.clock.now)
    become_ready(world, machine)


def become_ready(world: World, machine: SimMachine) -> None:
    """It serves in its new role."""
    machine.row[b.LIFECYCLE] = READY
    machine.ready = None
    machine.lost_phases = ()
    world.log("ready", machine.index, -1)
    offer_room(world, machine)
    place_waiting(world)

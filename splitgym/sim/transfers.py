"""KV memory and KV transfer: who waits for room, and when a cache is there."""

from __future__ import annotations

from splitgym.sim import books as b
from splitgym.sim.clock import TRANSFER_END
from splitgym.sim.first_tokens import unbook_cache
from splitgym.sim.world import SimMachine, World


def free(world: World, machine: SimMachine, request: int, tokens: int, there: int = 0) -> None:
    """A request gives memory back (`World.let_go`)."""
    world.let_go(machine, request, tokens, there)
    offer_room(world, machine)


def offer_room(world: World, machine: SimMachine) -> None:
    """First to caches waiting for room here, then to prompts, of other machines and its own."""
    receive(world, machine)
    blocked, machine.blocked = machine.blocked, {}
    for index in sorted(blocked):
        world.make_runnable(blocked[index])
    world.make_runnable(machine)


def give_up_surplus(machine: SimMachine) -> None:
    """Prefix caching: memory has been taken; keep no more than is free."""
    if machine.paging is not None and machine.paging.cache is not None:
        machine.paging.cache.give_up(machine.free_tokens)


def receive(world: World, machine: SimMachine) -> None:
    """Serialized: reserve room for waiting caches, first come first served, and send them; those put back first.

    Caches that are here already (`leases.wait_in_place`) are first of all: nothing but room keeps them waiting.
    """
    while machine.inbox:
        request = machine.inbox[0]
        need = world.need_to_come(machine, request)
        is_here = world.cache_machine[request] == machine.index
        if is_here:
            need -= world.held_until_sent(machine, request)
        elif not machine.admits or machine.put_back:
            return
        if need > machine.free_tokens:
            return
        machine.inbox.popleft()
        lease_end = world.leases.pop(request, None)
        if lease_end is not None:
            world.clock.cancel(lease_end)
        machine.row[b.WAITING] -= 1
        machine.kv_used_tokens += need
        give_up_surplus(machine)
        if is_here:
            world.join(request, machine)
        else:
            send(world, request, world.clock.now)


def send(world: World, request: int, start_s: float) -> None:
    """Put a cache on its way; what is seen of it after the prompt phase depends on the transfer mode."""
    source = world.machines[world.cache_machine[request]]
    destination = world.machines[world.outcome.token_machine[request]]
    tokens = world.tokens_to_send(request)
    size_bytes = world.cluster.model.kv_bytes_per_token * tokens
    bytes_per_s = min(source.link_bytes_per_s, destination.link_bytes_per_s)
    visible_bytes = float(size_bytes)
    if world.layerwise and request not in world.moved:
        layers = world.cluster.model.layers
        iteration_duration_s = start_s - world.outcome.prompt_start_s[request]
        hidden_bytes = bytes_per_s * iteration_duration_s * (layers - 1) / layers
        visible_bytes = max(size_bytes / layers, size_bytes - hidden_bytes)
    world.log("transfer_start", source.index, request)
    transfer = world.cluster.transfer
    per_block_s, block_tokens = transfer.overhead_per_block_s, world.cluster.kv_block_tokens
    overhead_s = b.overhead_of_s(transfer.overhead_s, per_block_s, block_tokens, tokens)

    def arrive() -> None:
        world.on_the_way.pop(request, None)
        end_transfer(world, request, source, destination, start_s)

    def begin() -> None:
        world.on_the_way.pop(request, None)
        world.network.begin(request, source.index, destination.index, visible_bytes, arrive)

    key = TRANSFER_END, destination.index, request
    if not transfer.is_shared:
        due_s = start_s + (overhead_s + visible_bytes / bytes_per_s)
        world.on_the_way[request] = world.clock.call(arrive, due_s, *key)
    elif overhead_s > 0:
        world.on_the_way[request] = world.clock.call(begin, start_s + overhead_s, *key)
    else:
        begin()


def end_transfer(world: World, request: int, source: SimMachine, destination: SimMachine, start_s: float) -> None:
    """The cache is at its token machine, and gone from where it was."""
    now_s = world.clock.now
    if request not in world.moved:
        world.outcome.transfer_end_s[request] = now_s
    world.cache_machine[request] = destination.index
    world.log("transfer_end", destination.index, request)
    if world.recorder is not None:
        world.recorder.transfer(request, source.index, destination.index, start_s, now_s)
    held = world.reported_tokens(request)
    source.outgoing -= 1
    source.row[b.KV_HELD] -= held
    if request in world.moved:
        source.row[b.BOOKED_KV] -= held
    elif not world.token_machines_answer:
        unbook_cache(world, request)
    destination.row[b.KV_HELD] += held
    world.join(request, destination)
    free(world, source, request, world.held_until_sent(source, request), world.tokens_to_send(request))

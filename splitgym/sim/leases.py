"""Leases (`Transfer.kv_lease_s`): a cache that waits too long for room is dropped, and its prompt computed again.

It is computed where the request's tokens are to be made, as by a token machine whose fetch finds the cache gone (vLLM's
``kv_load_failure_policy: recompute``). So no request loses its cache twice in this way, and no memory is held for ever
by caches that wait for each other's room.
"""

from __future__ import annotations

from splitgym.sim import books as b
from splitgym.sim.clock import LEASE_END
from splitgym.sim.first_tokens import unbook_cache
from splitgym.sim.paging import Preempted
from splitgym.sim.transfers import free, receive
from splitgym.sim.world import SimMachine, World


def start_lease(world: World, request: int) -> None:
    """Its prompt phase is over; if its cache has to wait for room, then no longer than this."""
    lease_s = world.cluster.transfer.kv_lease_s
    inbox = world.machines[world.outcome.token_machine[request]].inbox
    if lease_s is None or request not in inbox:
        return
    end = world.leases[request] = world.clock.at(world.clock.now + lease_s, LEASE_END)
    end.callbacks.append(lambda _: end_lease(world, request))


def wait_in_place(world: World, machine: SimMachine, request: int) -> None:
    """The cache stays where its prompt was, but room for the output is to be reserved (late choice, `splitwise`).

    It stands before caches that are to come, after those that are here already.
    """
    inbox = machine.inbox
    here = (n for n, other in enumerate(inbox) if world.cache_machine[other] != machine.index)
    inbox.insert(next(here, len(inbox)), request)
    machine.row[b.WAITING] += 1
    receive(world, machine)
    start_lease(world, request)


def end_lease(world: World, request: int) -> None:
    """The cache is dropped; the request waits on its token machine to be computed again."""
    del world.leases[request]
    source = world.machines[world.outcome.prompt_machine[request]]
    token = world.machines[world.outcome.token_machine[request]]
    world.recomputations += 1
    world.log("cache_dropped", source.index, request)
    token.inbox.remove(request)
    world.cache_machine[request] = token.index
    remaining_tokens = world.whole_tokens[request] - world.tokens_at_start(request)
    token.preempted[request] = Preempted(remaining_tokens, *world.last_token(request))
    put_back(token, request)
    world.make_runnable(token)
    prompt_tokens = world.prompt_tokens[request]
    source.row[b.KV_HELD] -= prompt_tokens + 1
    if source is not token:
        source.outgoing -= 1
        if not world.token_machines_answer:
            unbook_cache(world, request)
    free(world, source, request, world.held_until_sent(source, request), prompt_tokens)


def put_back(machine: SimMachine, request: int) -> None:
    """Into the queue, before the first that arrived later."""
    machine.put_back += 1
    place = next((n for n, other in enumerate(machine.queue) if other > request), len(machine.queue))
    machine.queue.insert(place, request)

"""A request's first token: when the client sees it, on whichever machine it is made.

Where token machines make it (`Cluster.first_token`), the prompt phase of a request whose cache is sent yields nothing,
and the first iteration of its token phase yields the first token. The books count that token from the end of the
prompt phase on, as a router does that hears of the prompt phase's end and of nothing between the two.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Collection

from splitgym.sim import books as b
from splitgym.sim.world import LastToken, SimMachine, World


def yield_first_token(world: World, machine: SimMachine, request: int, now_s: float) -> None:
    """The client sees it, or, of a request that began again, its next token."""
    if request in world.resumed:
        world.log("resumed", machine.index, request)
        world.ledger.tokens_out += 1
    else:
        world.outcome.first_token_s[request] = now_s
        world.log("first_token", machine.index, request)
        world.ledger.on_first_token(request, now_s)
    if world.is_answered_late(request):  # only now a router knows that its cache is no longer on the prompt machine
        unbook_cache(world, request)


def unbook_cache(world: World, request: int) -> None:
    """Its prompt machine's books count its cache no longer."""
    source = world.machines[world.outcome.prompt_machine[request]]
    source.row[b.BOOKED_KV] -= world.prompt_tokens[request] + 1


def close_gap(world: World, request: int, now_s: float) -> None:
    """A request that began again has its next token from a prompt phase; the gap before it counts."""
    before = world.resumed[request]
    tbt_max_s = max(before.tbt_max_s, now_s - before.time_s)
    world.resumed[request] = LastToken(now_s, tbt_max_s)
    if world.output_tokens[request] == 1:
        world.outcome.tbt_max_s[request] = tbt_max_s


def await_first_token(world: World, machine: SimMachine, request: int, remaining_tokens: int) -> None:
    """A decode takes its place, with so many tokens to come; where these are all, its first is the next."""
    if remaining_tokens == world.output_tokens[request]:
        insort(machine.starting, request)


def starting_among(machine: SimMachine, served: Collection[int] | None) -> list[int]:
    """Decodes without a first token, of ``served`` or (``None``) of all, in order of arrival."""
    if not machine.starting or served is None:
        return list(machine.starting)
    return [request for request in machine.starting if request in served]


def yield_first_tokens(world: World, machine: SimMachine, requests: list[int], now_s: float) -> None:
    """The first tokens of ``requests``, which decode; the time before is no gap between tokens."""
    for request in requests:
        machine.starting.remove(request)
        if request not in world.resumed:
            machine.decodes.begin(request, now_s)
        machine.row[b.TOKEN_WEIGHT] += world.ledger.token_weight[request] - world.ledger.prompt_weight[request]
        yield_first_token(world, machine, request, now_s)

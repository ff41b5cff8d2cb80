"""A request at its machines: a prompt in a queue, a token phase to come, and what the books have of them."""

from __future__ import annotations

from splitgym.sim import books as b
from splitgym.sim.world import SimMachine, World


def enter_queue(world: World, request: int, machine: SimMachine, hit_tokens: int) -> None:
    """Its prompt is to be processed here, after those that wait already; so much of it may be in memory."""
    prompt_tokens, weight = world.prompt_tokens[request], world.ledger.prompt_weight[request]
    work_s = world.prompt_work_s[request] = world.books.prompt_s(machine.index, prompt_tokens, hit_tokens)
    row = machine.row
    if row[b.PENDING_PROMPTS] == 0:
        row[b.PROMPT_SINCE_S] = world.clock.now
    row[b.PENDING_PROMPTS] += 1
    row[b.PENDING_TOKENS] += prompt_tokens
    row[b.PENDING_S] += work_s
    row[b.PROMPT_WEIGHT] += weight
    row[b.PROMPT_WEIGHTED_S] += weight * row[b.PENDING_S]
    row[b.WAITING] += 1
    if world.outcome.token_machine[request] != machine.index:
        row[b.BOOKED_KV] += prompt_tokens + 1
    world.cache_machine[request] = machine.index
    machine.queue.append(request)
    world.make_runnable(machine)


def book_token_phase(world: World, request: int, machine: SimMachine) -> None:
    """Its token phase is to come here."""
    prompt_tokens, predicted = world.prompt_tokens[request], world.predicted[request]
    row = machine.row
    row[b.COMING] += 1
    row[b.COMING_CONTEXT] += prompt_tokens + 1
    row[b.REMAINING] += predicted - 1
    row[b.BOOKED_KV] += prompt_tokens + predicted
    row[b.TOKEN_WEIGHTED] += world.ledger.token_weight[request] * (world.output_tokens[request] - 1)
    if world.is_answered_late(request):
        row[b.TOKEN_WEIGHTED] += world.ledger.prompt_weight[request]


def leave_books(world: World, request: int, machine: SimMachine) -> None:
    """It is not to be processed here after all; of several, the last of the queue first."""
    prompt_tokens, weight = world.prompt_tokens[request], world.ledger.prompt_weight[request]
    row = machine.row
    row[b.PROMPT_WEIGHTED_S] -= weight * row[b.PENDING_S]
    row[b.PROMPT_WEIGHT] -= weight
    row[b.PENDING_S] -= world.prompt_work_s[request]
    row[b.PENDING_TOKENS] -= prompt_tokens
    row[b.PENDING_PROMPTS] -= 1
    row[b.WAITING] -= 1
    if world.outcome.token_machine[request] != machine.index:
        row[b.BOOKED_KV] -= prompt_tokens + 1
    if row[b.PENDING_PROMPTS] == 0:  # whatever rounding left
        row[[b.PENDING_S, b.PROMPT_WEIGHT, b.PROMPT_WEIGHTED_S]] = 0.0

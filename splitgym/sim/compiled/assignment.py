"""A request at its machines, as in `splitgym.sim.assignment`, over records."""

from __future__ import annotations

from splitgym.jit import inner_njit
from splitgym.sim import books as b
from splitgym.sim.books import prompt_alone_s
from splitgym.sim.compiled import log as lg
from splitgym.sim.compiled.events import make_runnable
from splitgym.sim.compiled.first_tokens import is_answered_late
from splitgym.sim.compiled.notes import note_change
from splitgym.sim.compiled.state import State
from splitgym.sim.rows import FAILED


@inner_njit
def enter_queue(s: State, r: int, m: int, hit_tokens: int) -> None:
    """Its prompt is to be processed here, after those that wait already; so much of it may be in memory."""
    machine, request, row = s.machines[m], s.requests[r], s.books[m]
    prompt_tokens, weight = request.prompt_tokens, request.prompt_weight
    work_s = prompt_alone_s(s.laws[int(row[b.LAW])], prompt_tokens, hit_tokens, 0, 0)
    request.prompt_work_s = work_s
    note_change(s, m)
    if row[b.PENDING_PROMPTS] == 0:
        row[b.PROMPT_SINCE_S] = s.run[0].now_s
    row[b.PENDING_PROMPTS] += 1
    row[b.PENDING_TOKENS] += prompt_tokens
    row[b.PENDING_S] += work_s
    row[b.PROMPT_WEIGHT] += weight
    row[b.PROMPT_WEIGHTED_S] += weight * row[b.PENDING_S]
    row[b.WAITING] += 1
    if request.token_machine != m:
        row[b.BOOKED_KV] += prompt_tokens + 1
    request.cache_machine = m
    request.next = -1
    if machine.queue_last < 0:
        machine.queue_first = r
    else:
        s.requests[machine.queue_last].next = r
    machine.queue_last = r
    machine.queued += 1
    make_runnable(s, m)


@inner_njit
def book_token_phase(s: State, r: int, m: int) -> None:
    """Its token phase is to come here."""
    request, row = s.requests[r], s.books[m]
    prompt_tokens, predicted = request.prompt_tokens, request.predicted
    note_change(s, m)
    row[b.COMING] += 1
    row[b.COMING_CONTEXT] += prompt_tokens + 1
    row[b.REMAINING] += predicted - 1
    row[b.BOOKED_KV] += prompt_tokens + predicted
    row[b.TOKEN_WEIGHTED] += request.token_weight * (request.output_tokens - 1)
    if is_answered_late(s, r):
        row[b.TOKEN_WEIGHTED] += request.prompt_weight


@inner_njit
def fail(s: State, r: int) -> None:
    """The request fits nowhere."""
    s.requests[r].status = FAILED
    if s.run[0].is_disturbed:
        s.run[0].lost += 1
    lg.log(s, lg.FAILED, -1, r)


@inner_njit
def leave_books(s: State, r: int, m: int) -> None:
    """It is not to be processed here after all; of several, the last of the queue first."""
    request, row = s.requests[r], s.books[m]
    row[b.PROMPT_WEIGHTED_S] -= request.prompt_weight * row[b.PENDING_S]
    row[b.PROMPT_WEIGHT] -= request.prompt_weight
    row[b.PENDING_S] -= request.prompt_work_s
    row[b.PENDING_TOKENS] -= request.prompt_tokens
    row[b.PENDING_PROMPTS] -= 1
    row[b.WAITING] -= 1
    if request.token_machine != m:
        row[b.BOOKED_KV] -= request.prompt_tokens + 1
    if row[b.PENDING_PROMPTS] == 0:  # whatever rounding left
        row[b.PENDING_S] = row[b.PROMPT_WEIGHT] = row[b.PROMPT_WEIGHTED_S] = 0.0

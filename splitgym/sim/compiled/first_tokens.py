"""A request's first token, as in `splitgym.sim.first_tokens`, over records."""

from __future__ import annotations

import numpy as np

from splitgym.jit import inner_njit
from splitgym.sim import books as b
from splitgym.sim.compiled import log as lg
from splitgym.sim.compiled.decoding import LEFT_OUT
from splitgym.sim.compiled.notes import note_change
from splitgym.sim.compiled.state import State
from splitgym.sim.compiled.totals import count_first_token


@inner_njit
def is_answered_late(s: State, r: int) -> bool:
    """Whether its token machine makes its first token, too."""
    request = s.requests[r]
    return s.run[0].token_machines_answer and request.prompt_machine != request.token_machine  # type: ignore[no-any-return]


@inner_njit
def tokens_at_start(s: State, r: int) -> int:
    """Prompt and tokens so far when its token phase begins, or goes on elsewhere."""
    request = s.requests[r]
    if request.is_moved:
        return request.prompt_tokens + request.generated  # type: ignore[no-any-return]
    return request.prompt_tokens + (0 if is_answered_late(s, r) else 1)  # type: ignore[no-any-return]


@inner_njit
def reported_tokens(s: State, r: int) -> int:
    """The tokens that books count for its cache when its token phase begins, or goes on elsewhere."""
    return max(tokens_at_start(s, r), s.requests[r].prompt_tokens + 1)  # type: ignore[no-any-return]


@inner_njit
def tokens_to_send(s: State, r: int) -> int:
    """What is in its cache then: the last token is not."""
    return reported_tokens(s, r) - 1


@inner_njit
def weight_to_next_token(s: State, r: int) -> float:
    """Its weight in the weighted slowdown until its next token is there."""
    request = s.requests[r]
    return request.prompt_weight if np.isnan(request.first_token_s) else request.token_weight  # type: ignore[no-any-return]


@inner_njit
def yield_first_token(s: State, m: int, r: int) -> None:
    """The client sees it, or, of a request that began again, its next token."""
    if s.requests[r].is_resumed:
        lg.log(s, lg.RESUMED, m, r)
        s.run[0].tokens_out += 1
    else:
        s.requests[r].first_token_s = s.run[0].now_s
        lg.log(s, lg.FIRST_TOKEN, m, r)
        count_first_token(s, r, s.run[0].now_s)
    if is_answered_late(s, r):
        unbook_cache(s, r)


@inner_njit
def unbook_cache(s: State, r: int) -> None:
    """Its prompt machine's books count its cache no longer."""
    source = s.requests[r].prompt_machine
    note_change(s, source)
    s.books[source, b.BOOKED_KV] -= s.requests[r].prompt_tokens + 1


@inner_njit
def close_gap(s: State, r: int) -> None:
    """A request that began again has its next token from a prompt phase; the gap before it counts."""
    request, now_s = s.requests[r], s.run[0].now_s
    request.tbt_max_s = max(request.tbt_max_s, now_s - request.last_token_s)
    request.last_token_s = now_s


@inner_njit
def await_first_token(s: State, m: int, r: int, remaining_tokens: int) -> None:
    """A decode takes its place, with so many tokens to come; where these are all, its first is the next."""
    if remaining_tokens < s.requests[r].output_tokens:
        return
    machine = s.machines[m]
    before, after = -1, machine.starting_first
    while 0 <= after < r:
        before, after = after, s.requests[after].next_starting
    s.requests[r].next_starting = after
    if before < 0:
        machine.starting_first = r
    else:
        s.requests[before].next_starting = r


@inner_njit
def no_longer_starting(s: State, m: int, r: int) -> None:
    """Take one that is starting from the chain."""
    machine, following = s.machines[m], s.requests[r].next_starting
    if machine.starting_first == r:
        machine.starting_first = following
        return
    before = machine.starting_first
    while s.requests[before].next_starting != r:
        before = s.requests[before].next_starting
    s.requests[before].next_starting = following


@inner_njit
def is_served(s: State, m: int, r: int) -> bool:
    """Whether a decode gets a token in this iteration."""
    return s.machines[m].batch_serves_all or s.requests[r].served != LEFT_OUT  # type: ignore[no-any-return]


@inner_njit
def count_starting(s: State, m: int) -> int:
    """Decodes without a first token that get one in this iteration."""
    count = 0
    r = s.machines[m].starting_first
    while r >= 0:
        count += 1 if is_served(s, m, r) else 0
        r = s.requests[r].next_starting
    return count


@inner_njit
def yield_first_tokens(s: State, m: int) -> None:
    """The first tokens of decodes that are served; the time before is no gap between tokens."""
    r = s.machines[m].starting_first
    while r >= 0:
        request = s.requests[r]
        following = request.next_starting
        if is_served(s, m, r):
            no_longer_starting(s, m, r)
            if not request.is_resumed:
                request.last_token_s = s.run[0].now_s
            s.books[m, b.TOKEN_WEIGHT] += request.token_weight - request.prompt_weight
            yield_first_token(s, m, r)
        r = following

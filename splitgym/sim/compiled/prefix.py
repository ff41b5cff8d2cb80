"""Prefix caching, as in `splitgym.sim.prefix`, over records: COPY is a named stretch of memory on one machine.

The copies of a name are chained; those that nobody uses are chained by machine, too, first what is given up first.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from splitgym.jit import inner_njit, njit
from splitgym.sim.books import FloatArray
from splitgym.sim.compiled.slots import PREFIXES, call, desk_at, state_at
from splitgym.sim.compiled.state import State

IntArray = npt.NDArray[np.int64]

COUNT_HITS, RELEASE, GIVE_UP = range(3)
"""What `prefixes_at` does."""


@njit
def prefixes_at(a: IntArray, what: int, m: int, r: int, tokens: int) -> int:
    """`count_hits` for the view; `release`, which returns the tokens still used; `give_up` down to ``tokens``."""
    s = state_at(a)
    if what == COUNT_HITS:
        count_hits(s, r, desk_at(a).hits)
    elif what == RELEASE:
        return release(s, m, r, tokens)
    else:
        give_up(s, m, tokens)
    return 0


@inner_njit
def own_name(s: State, r: int) -> int:
    """Of what is only this request's: they come after the prompts' names."""
    return len(s.first_copies) - s.run[0].num_requests + r  # type: ignore[no-any-return]


@inner_njit
def names_end(s: State, m: int, r: int) -> int:
    """Where in `State.prefix_names` the blocks end that it shares there; they begin at `prefix_first`."""
    is_there = s.requests[r].prompt_machine == m
    return s.prefix_first[r + 1] if is_there else s.prefix_first[r]  # type: ignore[no-any-return]


@inner_njit
def find(s: State, m: int, name: int) -> int:
    """The copy of a name on a machine, -1 if there is none."""
    c = s.first_copies[name] - 1
    while c >= 0 and s.copies[c].machine != m:
        c = s.copies[c].next
    return c  # type: ignore[no-any-return]


@inner_njit
def count_hits(s: State, r: int, hits: FloatArray) -> None:
    """How much of a prompt each machine has: (num_machines,)."""
    hits[:] = 0.0
    size = s.run[0].prefix_tokens
    for place in range(s.prefix_first[r + 1] - s.prefix_first[r]):
        c = s.first_copies[s.prefix_names[s.prefix_first[r] + place]] - 1
        while c >= 0:
            copy = s.copies[c]
            if hits[copy.machine] == place * size:
                hits[copy.machine] += copy.tokens
            c = copy.next
    c = s.first_copies[own_name(s, r)] - 1
    while c >= 0:
        hits[s.copies[c].machine] = with_own(s, c, int(hits[s.copies[c].machine]))
        c = s.copies[c].next
    for m in range(len(hits)):
        hits[m] = min(hits[m], most_hit(s, m, s.requests[r].prompt_tokens))


@inner_njit
def most_hit(s: State, m: int, tokens: int) -> int:
    """The last of these tokens is always computed."""
    size = s.machines[m].block_size
    return (tokens - 1) // size * size  # type: ignore[no-any-return]


@inner_njit
def hit_tokens(s: State, m: int, r: int, tokens: int) -> int:
    """How many of a prompt's ``tokens`` are there from its beginning on."""
    hit = 0
    for i in range(s.prefix_first[r], names_end(s, m, r)):
        c = find(s, m, s.prefix_names[i])
        held = s.copies[c].tokens if c >= 0 else 0
        hit += held
        if held < s.run[0].prefix_tokens:
            break
    c = find(s, m, own_name(s, r))
    if c >= 0:
        hit = with_own(s, c, hit)
    return min(hit, most_hit(s, m, tokens))


@inner_njit
def with_own(s: State, c: int, hit: int) -> int:
    """How many tokens are there of a request whose own copy is ``c``, so many of them by the names of their blocks."""
    copy = s.copies[c]
    return max(hit, min(copy.first + copy.tokens, copy.end)) if copy.first <= hit else hit


@inner_njit
def shared_tokens(s: State, m: int, r: int) -> int:
    """How many of its prompt's tokens others use already, so that they take no more memory."""
    shared = 0
    for i in range(s.prefix_first[r], names_end(s, m, r)):
        c = find(s, m, s.prefix_names[i])
        if c >= 0 and s.copies[c].users > 0:
            shared += s.copies[c].tokens
    return shared


@inner_njit
def use_prefix(s: State, m: int, r: int) -> None:
    """A request is admitted."""
    forget_own(s, m, r)
    for i in range(s.prefix_first[r], names_end(s, m, r)):
        c = find(s, m, s.prefix_names[i])
        if c < 0:
            c = add_copy(s, m, s.prefix_names[i])
        elif s.copies[c].users == 0:
            take_out(s, m, c)
        s.copies[c].users += 1


@inner_njit
def forget_own(s: State, m: int, r: int) -> None:
    """What is only this request's is not kept any more."""
    c = find(s, m, own_name(s, r))
    if c >= 0:
        take_out(s, m, c)
        remove_copy(s, own_name(s, r), c)


@inner_njit
def publish(s: State, m: int, r: int) -> None:
    """Others may use the full blocks of its prompt that are computed, or will be in this iteration."""
    request, size = s.requests[r], s.run[0].prefix_tokens
    there = request.computed + request.chunk
    there -= there % s.machines[m].block_size
    for i in range(s.prefix_first[r], names_end(s, m, r)):
        if there <= 0:
            return
        copy = s.copies[find(s, m, s.prefix_names[i])]
        copy.tokens = max(copy.tokens, min(there, size))
        there -= size


@inner_njit
def release(s: State, m: int, r: int, tokens: int) -> int:
    """A request of that many tokens gives them back, the last first; returns how many others still use."""
    first, end = s.prefix_first[r], names_end(s, m, r)
    before, there = (end - first) * s.run[0].prefix_tokens, s.requests[r].computed
    forget_own(s, m, r)  # of an earlier stay
    if tokens > before:
        c = add_copy(s, m, own_name(s, r))
        copy = s.copies[c]
        copy.tokens = tokens - before
        copy.first, copy.end = before, there - there % s.machines[m].block_size
        keep(s, m, c)
    shared = 0
    for i in range(end - 1, first - 1, -1):
        c = find(s, m, s.prefix_names[i])
        copy = s.copies[c]
        copy.users -= 1
        if copy.users > 0:
            shared += copy.tokens
        elif copy.tokens > 0:
            keep(s, m, c)
        else:
            remove_copy(s, s.prefix_names[i], c)
    return shared


@inner_njit
def give_up_surplus(s: State, m: int) -> None:
    """Memory has been taken: keep no more than is free."""
    call(s, PREFIXES, GIVE_UP, m, -1, s.machines[m].kv_capacity_tokens - s.machines[m].kv_used_tokens)


@inner_njit
def give_up(s: State, m: int, free_tokens: int) -> None:
    """Keep no more than is free: least recently released first."""
    machine = s.machines[m]
    surplus = machine.kept_tokens - free_tokens
    while surplus > 0:
        c = machine.kept_first
        copy = s.copies[c]
        tokens = min(copy.tokens, surplus)
        surplus -= tokens
        if tokens == copy.tokens:
            take_out(s, m, c)
            remove_copy(s, copy.name, c)
        else:
            copy.tokens -= tokens
            machine.kept_tokens -= tokens


# --- copies ---------------------------------------------------------------------------------------------------------


@inner_njit
def keep(s: State, m: int, c: int) -> None:
    """Nobody uses it any more: it is the last to be given up."""
    machine, copy = s.machines[m], s.copies[c]
    copy.before, copy.after = machine.kept_last, -1
    if machine.kept_last < 0:
        machine.kept_first = c
    else:
        s.copies[machine.kept_last].after = c
    machine.kept_last = c
    machine.kept_tokens += copy.tokens


@inner_njit
def take_out(s: State, m: int, c: int) -> None:
    """It is not kept any more."""
    machine, copy = s.machines[m], s.copies[c]
    if copy.before < 0:
        machine.kept_first = copy.after
    else:
        s.copies[copy.before].after = copy.after
    if copy.after < 0:
        machine.kept_last = copy.before
    else:
        s.copies[copy.after].before = copy.before
    machine.kept_tokens -= copy.tokens


@inner_njit
def add_copy(s: State, m: int, name: int) -> int:
    """An empty one."""
    run = s.run[0]
    c = run.free_copies - 1
    if c >= 0:
        run.free_copies = s.copies[c].next + 1
    else:
        c = run.copies_given
        run.copies_given += 1
    copy = s.copies[c]
    copy.name, copy.machine, copy.users, copy.tokens = name, m, 0, 0
    copy.next = s.first_copies[name] - 1
    s.first_copies[name] = c + 1
    return c  # type: ignore[no-any-return]


@inner_njit
def remove_copy(s: State, name: int, c: int) -> None:
    """It is gone."""
    run = s.run[0]
    if s.first_copies[name] == c + 1:
        s.first_copies[name] = s.copies[c].next + 1
    else:
        other = s.first_copies[name] - 1
        while s.copies[other].next != c:
            other = s.copies[other].next
        s.copies[other].next = s.copies[c].next
    s.copies[c].next = run.free_copies - 1
    run.free_copies = c + 1

"""The decodes of one machine, as in `splitgym.sim.decoding`, over records.

Ends are kept in a heap, members in a list by arrival, chained through the requests. Largest gaps are kept in groups: a
request that becomes steady joins the group of those whose largest gap since then is the same, and a gap that is larger
than those of some groups makes them one (union-find, `group`).
"""

from __future__ import annotations

from splitgym.jit import lean_njit
from splitgym.sim.compiled.events import pop, push
from splitgym.sim.compiled.state import Records, State

LEFT_OUT, SERVED, FORCED = range(3)


@lean_njit
def whole_tokens(s: State, r: int) -> int:
    """Prompt and output."""
    return s.requests[r].prompt_tokens + s.requests[r].output_tokens  # type: ignore[no-any-return]


@lean_njit
def join_decodes(s: State, m: int, r: int) -> None:
    """Take in a request that has all but its first token to come."""
    machine, request = s.machines[m], s.requests[r]
    request.ends_at = machine.decode_clock + request.output_tokens - 1
    request.last_token_s = request.first_token_s
    request.tbt_max_s = 0.0
    request.passed_over = 0
    machine.context_tokens += request.prompt_tokens + 1
    machine.decodes += 1
    before = machine.youngest
    while before > r:
        before = s.requests[before].before
    after = s.requests[before].after if before >= 0 else machine.oldest
    link(s, m, before, r)
    link(s, m, r, after)
    make_fresh(s, m, r)
    add_end(s, m, r)


@lean_njit
def link(s: State, m: int, before: int, after: int) -> None:
    """Make two members neighbours; -1 stands for the end of the list."""
    if before >= 0:
        s.requests[before].after = after
    else:
        s.machines[m].oldest = after
    if after >= 0:
        s.requests[after].before = before
    else:
        s.machines[m].youngest = before


@lean_njit
def make_fresh(s: State, m: int, r: int) -> None:
    """Its last token was not at the end of the last common iteration."""
    machine, request = s.machines[m], s.requests[r]
    request.is_fresh = True
    request.next = machine.fresh_first
    machine.fresh_first = r
    machine.fresh += 1


@lean_njit
def leave(s: State, m: int, r: int) -> None:
    """The request is done."""
    machine = s.machines[m]
    link(s, m, s.requests[r].before, s.requests[r].after)
    machine.context_tokens -= whole_tokens(s, r)
    machine.decodes -= 1


@lean_njit
def serve_all(s: State, m: int, end_s: float) -> int:
    """One token for everybody at ``end_s``; returns the first of those that are done, chained by `next`."""
    machine = s.machines[m]
    machine.decode_clock += 1
    machine.context_tokens += machine.decodes
    if machine.decodes > machine.fresh:
        note_gap(s, m, end_s - machine.last_s)
    if machine.fresh > 0:
        settle_fresh(s, m, end_s)
    machine.last_s = end_s
    if machine.has_left_out:
        r = machine.oldest
        while r >= 0:
            s.requests[r].passed_over = 0
            r = s.requests[r].after
        machine.has_left_out = False
    first = last = -1
    while machine.ends > 0 and s.ends[machine.first_end].time_s == machine.decode_clock:
        r = s.ends[machine.first_end].key
        pop(s.ends[machine.first_end :], machine.ends)
        machine.ends -= 1
        leave(s, m, r)
        request = s.requests[r]
        request.tbt_max_s = largest_gap_s(s.requests, r)
        request.next = -1
        if last < 0:
            first = r
        else:
            s.requests[last].next = r
        last = r
    if machine.decodes == 0:
        machine.least_gap = machine.newly_steady = -1
    return first


@lean_njit
def serve_some(s: State, m: int, end_s: float) -> int:
    """One token for those not marked LEFT_OUT; the others are passed over. Returns as `serve_all` does."""
    machine = s.machines[m]
    machine.context_tokens += machine.batch_decodes
    machine.fresh_first = -1
    machine.fresh = machine.ends = 0
    first = last = -1
    r = machine.oldest
    while r >= 0:
        request = s.requests[r]
        after = request.after
        if not request.is_fresh:
            request.tbt_max_s = largest_gap_s(s.requests, r)
            request.last_token_s = machine.last_s
        is_done = False
        if request.served == LEFT_OUT:
            request.passed_over += 1
        else:
            request.passed_over = 0
            request.tbt_max_s = max(request.tbt_max_s, end_s - request.last_token_s)
            request.last_token_s = end_s
            request.ends_at -= 1
            is_done = request.ends_at == machine.decode_clock
        if is_done:
            leave(s, m, r)
            request.next = -1
            if last < 0:
                first = r
            else:
                s.requests[last].next = r
            last = r
        else:
            make_fresh(s, m, r)
            add_end(s, m, r)
        r = after
    machine.least_gap = machine.newly_steady = -1
    machine.has_left_out = True
    return first


# --- gaps -----------------------------------------------------------------------------------------------------------


@lean_njit
def note_gap(s: State, m: int, gap_s: float) -> None:
    """A gap for all that are steady: groups whose own is not larger, and those newly steady, become one."""
    machine, requests = s.machines[m], s.requests
    root, top = machine.newly_steady, machine.least_gap
    while top >= 0 and requests[top].gap_s <= gap_s:
        if root >= 0:
            requests[root].group = top
        root = top
        top = requests[top].below
    if root >= 0:
        requests[root].gap_s = gap_s
        requests[root].below = top
        machine.least_gap = root
    machine.newly_steady = -1


@lean_njit
def settle_fresh(s: State, m: int, end_s: float) -> None:
    """The fresh have a token at ``end_s`` as all others have, and form a group without a gap so far."""
    machine = s.machines[m]
    root = r = machine.fresh_first
    while r >= 0:
        request = s.requests[r]
        request.tbt_max_s = max(request.tbt_max_s, end_s - request.last_token_s)
        request.is_fresh = False
        request.group = root
        r = request.next
    s.requests[root].gap_s = 0.0
    machine.newly_steady = root
    machine.fresh_first = -1
    machine.fresh = 0


@lean_njit
def largest_gap_s(requests: Records, r: int) -> float:
    """Of one that is steady."""
    root = r
    while requests[root].group != root:
        requests[root].group = requests[requests[root].group].group  # halve the path
        root = requests[root].group
    return max(requests[r].tbt_max_s, requests[root].gap_s)  # type: ignore[no-any-return]


# --- ends -----------------------------------------------------------------------------------------------------------


@lean_njit
def add_end(s: State, m: int, r: int) -> None:
    """Put a request's end into its machine's heap."""
    machine = s.machines[m]
    if machine.ends == machine.ends_room:
        make_room(s, m)
    push(s.ends[machine.first_end :], machine.ends, s.requests[r].ends_at, r)
    machine.ends += 1


@lean_njit
def make_room(s: State, m: int) -> None:
    """Move a machine's heap to a stretch of twice the length.

    A request decodes on one machine only, so all stretches together are at most 4 x the requests + 16 x the machines.
    """
    run, machine = s.run[0], s.machines[m]
    first = run.ends_given
    for k in range(machine.ends):
        s.ends[first + k].time_s = s.ends[machine.first_end + k].time_s
        s.ends[first + k].key = s.ends[machine.first_end + k].key
    machine.first_end = first
    machine.ends_room = max(2 * machine.ends_room, 8)
    run.ends_given += machine.ends_room

"""The decodes of one machine, as in `splitgym.sim.decoding`, over records.

Members stand in one stretch of `State.ends`: as a heap of their ends or, while some are left out, in order of arrival.
Gaps are a stack of decreasing maxima in a stretch of `State.gaps`.
"""

from __future__ import annotations

from splitgym.jit import inner_njit, seldom_njit
from splitgym.sim.compiled.events import pop, push
from splitgym.sim.compiled.state import Records, State

LEFT_OUT, SERVED, FORCED = range(3)


@inner_njit
def whole_tokens(s: State, r: int) -> int:
    """Prompt and output."""
    return s.requests[r].prompt_tokens + s.requests[r].output_tokens  # type: ignore[no-any-return]


@inner_njit
def join_decodes(s: State, m: int, r: int, remaining_tokens: int) -> None:
    """Take in a request whose token phase begins, with that many tokens to come."""
    request = s.requests[r]
    if not request.is_resumed:
        request.last_token_s = request.first_token_s
        request.tbt_max_s = 0.0
    add_decode(s, m, r, remaining_tokens)


@inner_njit
def add_decode(s: State, m: int, r: int, remaining_tokens: int) -> None:
    """Take in a request that has that many tokens to come; its last token's time and largest gap are known."""
    machine, request = s.machines[m], s.requests[r]
    request.ends_at = machine.decode_clock + remaining_tokens
    request.passed_over = 0
    machine.context_tokens += whole_tokens(s, r) - remaining_tokens
    if s.run[0].is_vllm:
        s.residues[m, residue(s, m, r)] += 1
    make_fresh(s, m, r)
    if machine.decodes == machine.ends_room:
        make_room_for_ends(s, m)
    members = s.ends[machine.first_end :]
    if machine.has_left_out:
        insert(members, machine.decodes, request.ends_at, r)
    else:
        push(members, machine.decodes, request.ends_at, r)
    machine.decodes += 1


@inner_njit
def residue(s: State, m: int, r: int) -> int:
    """Its tokens in the cache less its machine's decode clock, which does not change, modulo the block size.

    A decode needs another block where its tokens in the cache fill their blocks: when this is minus the clock.
    """
    return (whole_tokens(s, r) - 1 - s.requests[r].ends_at) % s.machines[m].block_size  # type: ignore[no-any-return]


@inner_njit
def remove_decode(s: State, m: int, r: int) -> None:
    """Take one out before its end; gaps so far are settled for all."""
    machine = s.machines[m]
    members, count = s.ends[machine.first_end :], machine.decodes
    if s.run[0].is_vllm:
        s.residues[m, residue(s, m, r)] -= 1
    machine.context_tokens -= whole_tokens(s, r) - (s.requests[r].ends_at - machine.decode_clock)
    machine.fresh_first = -1
    machine.fresh = machine.decodes = 0
    for i in range(count):
        member = members[i].key
        request = s.requests[member]
        if not request.is_fresh:
            request.tbt_max_s = largest_gap_s(s, m, member)
            request.last_token_s = machine.last_s
        if member != r:
            make_fresh(s, m, member)
            if machine.has_left_out:
                insert(members, machine.decodes, request.ends_at, member)
            else:
                push(members, machine.decodes, request.ends_at, member)
            machine.decodes += 1
    machine.gaps = 0


@inner_njit
def make_fresh(s: State, m: int, r: int) -> None:
    """Its last token was not at the end of the last common iteration."""
    machine, request = s.machines[m], s.requests[r]
    request.is_fresh = True
    request.next = machine.fresh_first
    machine.fresh_first = r
    machine.fresh += 1


@inner_njit
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
    members = s.ends[machine.first_end :]
    if machine.has_left_out:
        for i in range(machine.decodes):
            r = members[i].key
            s.requests[r].passed_over = 0
            push(members, i, s.requests[r].ends_at, r)
        machine.has_left_out = False
    first = last = -1
    while machine.decodes > 0 and members[0].time_s == machine.decode_clock:
        r = members[0].key
        pop(members, machine.decodes)
        machine.decodes -= 1
        machine.context_tokens -= whole_tokens(s, r)
        if s.run[0].is_vllm:
            s.residues[m, residue(s, m, r)] -= 1
        request = s.requests[r]
        request.tbt_max_s = largest_gap_s(s, m, r)
        request.next = -1
        if last < 0:
            first = r
        else:
            s.requests[last].next = r
        last = r
    if machine.decodes == 0:
        machine.gaps = 0
    return first


@inner_njit
def leave_some_out(s: State, m: int) -> None:
    """Bring the members into order of arrival, in which they stay until everybody is served again."""
    machine = s.machines[m]
    if machine.has_left_out:
        return
    machine.has_left_out = True
    members, count = s.ends[machine.first_end :], machine.decodes
    for i in range(count):
        push(members, i, members[i].key, members[i].key)
    for i in range(count - 1, -1, -1):  # the least comes last
        r = members[0].key
        pop(members, i + 1)
        members[i].key = r
    for i in range(count // 2):
        members[i].key, members[count - 1 - i].key = members[count - 1 - i].key, members[i].key
    for i in range(count):
        members[i].time_s = s.requests[members[i].key].ends_at


@inner_njit
def serve_some(s: State, m: int, end_s: float) -> int:
    """One token for those not marked LEFT_OUT; the others are passed over. Returns as `serve_all` does."""
    machine = s.machines[m]
    machine.context_tokens += machine.batch_decodes
    members, count = s.ends[machine.first_end :], machine.decodes
    machine.fresh_first = -1
    machine.fresh = machine.decodes = 0
    first = last = -1
    for i in range(count):
        r = members[i].key
        request = s.requests[r]
        if not request.is_fresh:
            request.tbt_max_s = largest_gap_s(s, m, r)
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
            machine.context_tokens -= whole_tokens(s, r)
            request.next = -1
            if last < 0:
                first = r
            else:
                s.requests[last].next = r
            last = r
        else:
            make_fresh(s, m, r)
            insert(members, machine.decodes, request.ends_at, r)
            machine.decodes += 1
    machine.gaps = 0
    return first


@inner_njit
def insert(members: Records, count: int, ends_at: int, r: int) -> None:
    """Add a member to the ``count`` that stand in order of arrival."""
    place = count
    while place > 0 and members[place - 1].key > r:
        members[place].time_s, members[place].key = members[place - 1].time_s, members[place - 1].key
        place -= 1
    members[place].time_s = ends_at
    members[place].key = r


# --- gaps -----------------------------------------------------------------------------------------------------------


@inner_njit
def note_gap(s: State, m: int, gap_s: float) -> None:
    """A gap for all that are steady; if it is nobody's largest, nothing is to be kept."""
    machine = s.machines[m]
    gaps = s.gaps[machine.first_gap :]
    top = machine.gaps - 1
    while top >= 0 and gaps[top].time_s <= gap_s:
        top -= 1
    if top < 0 or machine.steady_since >= gaps[top].key:
        if top + 1 == machine.gaps_room:
            make_room_for_gaps(s, m)
            gaps = s.gaps[machine.first_gap :]
        top += 1
        gaps[top].time_s = gap_s
        gaps[top].key = machine.decode_clock
    machine.gaps = top + 1


@inner_njit
def settle_fresh(s: State, m: int, end_s: float) -> None:
    """The fresh have a token at ``end_s`` as all others have; later gaps count for them as for those."""
    machine = s.machines[m]
    r = machine.fresh_first
    while r >= 0:
        request = s.requests[r]
        request.tbt_max_s = max(request.tbt_max_s, end_s - request.last_token_s)
        request.is_fresh = False
        request.since = machine.decode_clock
        r = request.next
    machine.steady_since = machine.decode_clock
    machine.fresh_first = -1
    machine.fresh = 0


@inner_njit
def largest_gap_s(s: State, m: int, r: int) -> float:
    """Of one that is steady: its own before, or the first of the stack after that."""
    machine, request = s.machines[m], s.requests[r]
    gaps = s.gaps[machine.first_gap :]
    first, end = 0, machine.gaps
    while first < end:
        middle = (first + end) >> 1
        if gaps[middle].key > request.since:
            end = middle
        else:
            first = middle + 1
    return max(request.tbt_max_s, gaps[first].time_s) if first < machine.gaps else request.tbt_max_s  # type: ignore[no-any-return]


# --- stretches ------------------------------------------------------------------------------------------------------
# Where a request decodes on one machine only, all of them are at most 4 x the requests + 16 x the machines. Where it
# may decode on several, stretches are packed when that is used up.


@inner_njit
def make_room_for_ends(s: State, m: int) -> None:
    """Move a machine's members to a stretch of twice the length."""
    run, machine = s.run[0], s.machines[m]
    if run.ends_given + max(2 * machine.ends_room, 8) > len(s.ends):
        pack_ends(s)
    first = run.ends_given
    move(s.ends, machine.first_end, first, machine.decodes)
    machine.first_end = first
    machine.ends_room = max(2 * machine.ends_room, 8)
    run.ends_given += machine.ends_room


@inner_njit
def make_room_for_gaps(s: State, m: int) -> None:
    """Move a machine's gaps to a stretch of twice the length."""
    run, machine = s.run[0], s.machines[m]
    if run.gaps_given + max(2 * machine.gaps_room, 8) > len(s.gaps):
        pack_gaps(s)
    first = run.gaps_given
    move(s.gaps, machine.first_gap, first, machine.gaps)
    machine.first_gap = first
    machine.gaps_room = max(2 * machine.gaps_room, 8)
    run.gaps_given += machine.gaps_room


@seldom_njit
def pack_ends(s: State) -> None:
    """Bring all members to the front, one machine's after another's, without room for more."""
    run = s.run[0]
    run.ends_given = 0
    before = -1
    for _ in range(len(s.machines)):
        m = -1
        for other in range(len(s.machines)):
            follows = s.machines[other].ends_room > 0 and s.machines[other].first_end > before
            if follows and (m < 0 or s.machines[other].first_end < s.machines[m].first_end):
                m = other
        if m < 0:
            return
        machine = s.machines[m]
        before = machine.first_end
        move(s.ends, before, run.ends_given, machine.decodes)
        machine.first_end = run.ends_given
        machine.ends_room = machine.decodes
        run.ends_given += machine.decodes


@seldom_njit
def pack_gaps(s: State) -> None:
    """As `pack_ends`."""
    run = s.run[0]
    run.gaps_given = 0
    before = -1
    for _ in range(len(s.machines)):
        m = -1
        for other in range(len(s.machines)):
            follows = s.machines[other].gaps_room > 0 and s.machines[other].first_gap > before
            if follows and (m < 0 or s.machines[other].first_gap < s.machines[m].first_gap):
                m = other
        if m < 0:
            return
        machine = s.machines[m]
        before = machine.first_gap
        move(s.gaps, before, run.gaps_given, machine.gaps)
        machine.first_gap = run.gaps_given
        machine.gaps_room = machine.gaps
        run.gaps_given += machine.gaps


@inner_njit
def move(entries: Records, source: int, destination: int, count: int) -> None:
    """Copy ``count`` entries."""
    for k in range(count):
        entries[destination + k].time_s = entries[source + k].time_s
        entries[destination + k].key = entries[source + k].key

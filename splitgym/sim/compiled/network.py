"""The network `shared`, as in `splitgym.sim.network`, over records."""

from __future__ import annotations

from splitgym.jit import lean_njit
from splitgym.sim.clock import TRANSFER_END
from splitgym.sim.compiled.events import cancel, plan
from splitgym.sim.compiled.state import Records, State


@lean_njit
def begin_flow(s: State, r: int, size_bytes: float, overhead_s: float) -> None:
    """Send ``size_bytes`` once the overhead is over."""
    run, flows = s.run[0], s.flows
    place = run.flows
    while place > 0 and flows[place - 1].request > r:
        copy_flow(flows, place - 1, place)
        place -= 1
    run.flows += 1
    flow = flows[place]
    flow.request, flow.is_on_link, flow.left_bytes, flow.bytes_per_s = r, False, size_bytes, 0.0
    if overhead_s > 0:
        plan(s, run.now_s + overhead_s, TRANSFER_END, s.requests[r].token_machine, r)
    else:
        enter_link(s, place)


@lean_njit
def end_flow(s: State, r: int) -> bool:
    """A transfer's overhead is over, or all of it: returns whether it is all."""
    run, flows = s.run[0], s.flows
    place = 0
    while flows[place].request != r:
        place += 1
    if not flows[place].is_on_link:
        enter_link(s, place)
        return False
    run.flows -= 1
    for later in range(place, run.flows):
        copy_flow(flows, later + 1, later)
    s.machines[s.requests[r].prompt_machine].sent -= 1
    s.machines[s.requests[r].token_machine].received -= 1
    share(s, r)
    return True


@lean_njit
def copy_flow(flows: Records, source: int, destination: int) -> None:
    """Move a flow to another place."""
    old, new = flows[source], flows[destination]
    new.request, new.is_on_link = old.request, old.is_on_link
    new.left_bytes, new.since_s, new.bytes_per_s = old.left_bytes, old.since_s, old.bytes_per_s


@lean_njit
def enter_link(s: State, place: int) -> None:
    """Its bytes are sent from now on."""
    flow = s.flows[place]
    flow.is_on_link = True
    flow.since_s = s.run[0].now_s
    s.machines[s.requests[flow.request].prompt_machine].sent += 1
    s.machines[s.requests[flow.request].token_machine].received += 1
    share(s, flow.request)


@lean_njit
def share(s: State, r: int) -> None:
    """Settle the transfers whose rate changes as ``r`` comes or goes, in order of requests."""
    run = s.run[0]
    source, destination = s.requests[r].prompt_machine, s.requests[r].token_machine
    for place in range(run.flows):
        flow = s.flows[place]
        request = s.requests[flow.request]
        touched = request.prompt_machine == source or request.token_machine == destination
        if not (flow.is_on_link and touched):
            continue
        sender, receiver = s.machines[request.prompt_machine], s.machines[request.token_machine]
        bytes_per_s = min(sender.link_bytes_per_s / sender.sent, receiver.link_bytes_per_s / receiver.received)
        if bytes_per_s == flow.bytes_per_s:
            continue
        flow.left_bytes = max(flow.left_bytes - flow.bytes_per_s * (run.now_s - flow.since_s), 0.0)
        flow.since_s = run.now_s
        if flow.bytes_per_s > 0:
            cancel(s, TRANSFER_END, request.token_machine, flow.request)
        flow.bytes_per_s = bytes_per_s
        plan(s, run.now_s + flow.left_bytes / bytes_per_s, TRANSFER_END, request.token_machine, flow.request)

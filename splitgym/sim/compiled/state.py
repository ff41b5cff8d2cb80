"""The state of a compiled run: a few arrays of records, which is all there is to copy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from splitgym.sim.books import Books
from splitgym.sim.clock import FAULT
from splitgym.sim.cluster import Batching, Scenario
from splitgym.sim.ledger import baseline_of
from splitgym.sim.rows import IN_FLIGHT, RequestRows

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
Records = npt.NDArray[np.void]
Zeros = Callable[..., npt.NDArray[Any]]

NEVER_S = float("inf")
NO_DECISION = -1

_MOST_TOKENS = 2**31 - 1  # of a prompt or an output; one that has more fits nowhere anyway

# Lists are chained through records: -1 ends a chain. A request is in one list of those that share a link at a time.
REQUEST = np.dtype(
    [
        ("arrival_s", "f8"),
        ("prompt_tokens", "i4"),
        ("output_tokens", "i4"),
        ("predicted", "f8"),  # output tokens
        ("prompt_weight", "f8"),
        ("token_weight", "f8"),
        ("ttft_allowed_s", "f8"),
        ("token_phase_allowed_s", "f8"),
        ("prompt_machine", "i4"),
        ("token_machine", "i4"),
        ("status", "i4"),
        ("prompt_work_s", "f8"),  # its prompt phase alone, on its prompt machine
        ("prompt_start_s", "f8"),
        ("first_token_s", "f8"),
        ("transfer_start_s", "f8"),
        ("transfer_end_s", "f8"),
        ("finish_s", "f8"),
        # In work, in chunks (`vllm`):
        ("computed", "i4"),  # tokens in the cache; also when it leaves a machine, of what it leaves there
        ("chunk", "i4"),  # tokens to come there in this iteration
        ("generated", "i4"),  # tokens it had when it last lost its cache as a decode, or was moved
        ("admitted", "i8"),  # when, among those of its machine
        ("was_preempted", "?"),  # has lost its cache as a decode
        ("next", "i4"),  # in a machine's queue, batch, inbox, joining list, fresh list, done; or awaiting a choice
        ("lease_end_s", "f8"),  # NaN where its cache does not wait for room
        ("next_leased", "i4"),
        ("next_starting", "i4"),  # among decodes of its machine without a first token
        # While it decodes (`decoding`):
        ("last_token_s", "f8"),  # known where it is fresh
        ("tbt_max_s", "f8"),
        ("since", "i4"),  # of its machine's decode clock: later gaps of all members count for it
        ("ends_at", "i4"),  # its machine's decode clock when its last token is due, if it is never left out
        ("passed_over", "i4"),
        ("served", "i4"),  # in an iteration that leaves some out: LEFT_OUT, SERVED or FORCED
        ("slo_class", "i4"),
        # Where a role change may have moved it (`migration`):
        ("cache_machine", "i4"),  # of those in flight: where the prompt is, then where the cache is
        ("is_moved", "?"),  # as a decode
        ("is_fresh", "?"),  # its last token was not at the end of its machine's last common iteration
        # Where something goes wrong:
        ("deadline_s", "f8"),  # from its arrival to when the client gives up
        ("is_resumed", "?"),  # it began again; its client has tokens, the last at ``last_token_s``
        ("is_leaving", "?"),  # withdrawn when the iteration that it is in ends
        ("next_leaving", "i4"),
    ],
    align=True,
)

MACHINE = np.dtype(
    [
        ("noted", "i4"),  # the number of its latest note (`notes`)
        ("kv_capacity_tokens", "i8"),
        ("link_bytes_per_s", "f8"),
        ("law", "i8"),  # of `State.laws`, the true one
        ("idle_w", "f8"),  # what it draws between iterations
        ("kv_used_tokens", "i8"),
        ("outgoing", "i8"),  # caches kept here until they are sent
        ("sent", "i4"),  # of `State.flows`
        ("received", "i4"),
        ("first_sent", "i4"),  # of `State.pairs`
        ("first_received", "i4"),
        ("first_to_end", "i4"),  # of those that it receives
        ("queue_first", "i4"),  # prompts waiting
        ("queue_last", "i4"),
        ("queued", "i4"),
        ("inbox_first", "i4"),  # caches waiting for room here
        ("inbox_last", "i4"),
        ("joining_first", "i4"),  # decodes that join at the next boundary
        ("joining_last", "i4"),
        ("joining", "i4"),
        ("starting_first", "i4"),  # decodes without a first token, in order of arrival
        ("is_idle", "?"),  # waits for work
        ("is_busy", "?"),  # in an iteration
        ("batch_first", "i4"),  # its prompts: that many of the chain from here
        ("batch_prompts", "i4"),
        ("batch_decodes", "i4"),
        ("batch_serves_all", "?"),
        ("batch_start_s", "f8"),
        ("loses_prompts", "?"),  # phases that must be over before a role change
        ("loses_tokens", "?"),
        ("next_draining", "i4"),
        ("switch_start_s", "f8"),
        # Under discipline `vllm`:
        ("max_num_seqs", "i8"),
        ("max_num_batched_tokens", "i8"),
        ("block_size", "i8"),
        ("watermark_tokens", "i8"),
        ("caches_prefixes", "?"),
        ("kept_tokens", "i8"),  # that nobody uses
        ("kept_first", "i4"),
        ("kept_last", "i4"),
        ("unfinished", "i4"),  # the prompt of which chunks are still to come
        ("put_back", "i4"),  # preempted decodes that wait in the queue
        ("admissions", "i8"),
        ("blocked", "i4"),  # how many machines' next prompt waits for room here
        ("most_batch_tokens", "i4"),  # of any iteration, with prompts
        ("most_decodes", "i4"),
        ("most_context", "i8"),
        # Its decodes (`decoding`):
        ("decodes", "i4"),
        ("decode_clock", "i4"),  # counts iterations that serve everybody
        ("context_tokens", "i8"),
        ("ends_room", "i4"),  # of their stretch of `State.ends`
        ("first_end", "i4"),
        ("gaps", "i4"),  # how many stand in its stretch of `State.gaps`
        ("gaps_room", "i4"),
        ("first_gap", "i4"),
        ("steady_since", "i4"),  # the decode clock when a member last became steady
        ("last_s", "f8"),  # when the last iteration that served everybody ended
        ("fresh_first", "i4"),
        ("fresh", "i4"),
        ("has_left_out", "?"),  # somebody, in the last iteration or the one going on
        # Where something goes wrong:
        ("pace", "f8"),  # what its iterations take, times that
        ("leaving_first", "i4"),  # withdrawn when its iteration ends
        ("leaving_last", "i4"),
        ("down_since_s", "f8"),
    ],
    align=True,
)

RUN = np.dtype(
    [
        ("num_requests", "i8"),
        ("horizon_s", "f8"),
        ("max_batch_tokens", "i8"),
        ("max_batch_size", "i8"),
        ("max_preemptions", "i8"),
        ("is_vllm", "?"),
        ("preemptions", "i8"),
        ("recomputations", "i8"),  # because a lease ended
        ("chooses_late", "?"),  # token machines, when prompt phases end
        ("first_awaiting", "i8"),  # requests whose token machine is to be chosen now
        ("last_awaiting", "i8"),
        ("migrates", "?"),
        ("migrations", "i8"),  # how often a role change gave a request to another machine
        ("kv_lease_s", "f8"),  # NEVER_S: caches wait for room as long as it takes
        ("first_leased", "i8"),  # caches that wait for room, in order of their leases' ends; others among them
        ("last_leased", "i8"),
        ("next_lease_end_s", "f8"),
        ("caches_prefixes", "?"),  # some machine does
        ("prefix_tokens", "i8"),  # in each named block of prompts
        ("prefix_hit_tokens", "i8"),
        ("copies_given", "i8"),  # of `State.copies`, to those there are or were
        ("free_copies", "i8"),  # 1 + the first that was given and is free again
        ("is_layerwise", "?"),
        ("is_shared", "?"),  # the network
        ("token_machines_answer", "?"),  # they make the first token of a request whose cache is sent
        ("is_stale", "?"),  # what machines say of themselves
        ("overhead_s", "f8"),
        ("overhead_per_block_s", "f8"),
        ("block_tokens", "i8"),
        ("first_free_pair", "i8"),
        ("kv_bytes_per_token", "i8"),
        ("layers", "i8"),
        ("switch_s", "f8"),
        ("tick_s", "f8"),
        ("idle_w", "f8"),
        ("records", "?"),
        ("now_s", "f8"),
        ("closed_s", "f8"),  # NaN while the run goes on
        ("next_arrival", "i8"),
        ("next_arrival_s", "f8"),
        ("arrivals_over", "?"),
        ("ticks", "i8"),
        ("next_tick_s", "f8"),
        ("follow_up", "?"),  # after the horizon, until
        ("last_s", "f8"),
        ("pending", "i8"),  # kind of the decision that is due
        ("pending_request", "i8"),
        ("first_draining", "i8"),
        ("last_draining", "i8"),
        ("may_settle", "?"),  # something has happened to a draining machine
        ("events", "i8"),
        ("starts", "i8"),
        ("deadlines", "i8"),
        ("sorted_deadlines", "i8"),  # the first of them: they are in the heap
        ("missed_until_s", "f8"),  # deadlines before that have been counted where they were missed
        ("ends_given", "i8"),  # to machines, of `State.ends`
        ("gaps_given", "i8"),
        ("noted", "i8"),  # the number of the next note (`notes`)
        ("first_noted", "i8"),  # of the first that is still there
        ("read", "i8"),  # where the latest reader stopped
        ("shown", "i8"),  # where the view did
        ("shown_masks", "i8"),  # how often masks had been filled by then
        ("log_lines", "i8"),
        # Running totals (`totals`):
        ("time_s", "f8"),
        ("unfinished", "i8"),
        ("weight", "f8"),
        ("time_in_system_s", "f8"),
        ("slowdown", "f8"),
        ("prompt_energy_j", "f8"),
        ("token_energy_j", "f8"),
        ("not_idle_j", "f8"),  # what busy machines would have drawn idle
        ("ttft_missed", "i8"),
        ("tbt_missed", "i8"),
        ("arrived", "i8"),
        ("finished", "i8"),
        ("tokens_out", "i8"),
        # Where something goes wrong:
        ("is_disturbed", "?"),
        ("lost", "i8"),  # requests that will not finish
        ("restarts", "i8"),
        ("unplaced_first", "i8"),  # requests that wait for a machine to come back, or are held back
        ("unplaced_last", "i8"),
        ("some_held", "?"),  # back, since the latest tick
    ],
    align=True,
)

FLOW = np.dtype(
    [
        ("goal_bytes", "f8"),  # it ends when its pair has sent so much; before it is on the link, its own bytes
        ("next", "i4"),  # of its pair, to end after it
    ],
    align=True,
)
"""A transfer on its way over a shared network."""

PAIR = np.dtype(
    [
        ("source", "i4"),
        ("destination", "i4"),
        ("since_s", "f8"),
        ("sent_bytes", "f8"),  # by then, of a transfer that began with the pair
        ("bytes_per_s", "f8"),
        ("first", "i4"),  # transfer to end
        ("end_s", "f8"),  # its end
        ("next_sent", "i4"),  # by the same machine, or the next free record
        ("next_received", "i4"),
    ],
    align=True,
)
"""Two machines with transfers from one to the other, all at the same rate."""

TIMED = np.dtype([("time_s", "f8"), ("key", "i8")], align=True)
"""An entry of a heap: what comes first has the least time, then the least key."""

COPY = np.dtype(
    [
        ("name", "i4"),
        ("machine", "i4"),
        ("users", "i4"),
        ("tokens", "i4"),  # that are there, in whole blocks
        ("first", "i4"),  # of a request's own: its tokens before it, and to the end of its last full block
        ("end", "i4"),
        ("next", "i4"),  # of the name, or the next free record
        ("before", "i4"),  # among those that its machine keeps
        ("after", "i4"),
    ],
    align=True,
)
"""A named stretch of one machine's KV memory (`prefix`)."""

CHANGE = np.dtype([("kind", "i8"), ("factor", "f8")], align=True)
"""What happens to a machine; see `splitgym.sim.faults.Change`."""

LINE = np.dtype(
    [
        ("kind", "i8"),
        ("machine", "i8"),
        ("request", "i8"),
        ("start_s", "f8"),
        ("time_s", "f8"),
        ("prompts", "i8"),
        ("decodes", "i8"),
    ],
    align=True,
)

NOTES = 8
"""Room for notes, per machine."""

LOG_CHUNK = 4096
"""The log is emptied when it holds more lines than this."""


class State(NamedTuple):
    """What a run is, for compiled functions."""

    requests: Records  # (num_requests,) REQUEST
    machines: Records  # (num_machines,) MACHINE
    books: FloatArray  # (num_machines, NUM_COLUMNS), the rows of `Books`
    laws: FloatArray  # (num_laws, LAW_SIZE)
    masked: IntArray  # (4,) as in `BookArrays`
    notes: IntArray  # ((1 + NOTES) · num_machines,) all machines, then those that have changed (`notes`)
    run: Records  # (1,) RUN
    iterations: Records  # TIMED, a tournament of the ends of iterations, of as many machines as a power of two
    events: Records  # TIMED, a heap: ends of transfers and role changes to come
    flows: Records  # (num_requests,) FLOW, where the network is shared
    starts: Records  # TIMED, a heap: machines that form a batch once everything else of this instant has happened
    deadlines: Records  # TIMED, a heap, then those that are not in it yet
    ends: Records  # TIMED, stretches for the machines' decodes: (decode clock, request) of the ends of token phases
    gaps: Records  # TIMED, stretches for the machines' largest gaps between tokens: (gap, decode clock)
    blocked: BoolArray  # (num_machines, num_machines): [d, m] where the next prompt of m waits for room at d
    log: Records  # LINE, nothing where the run is not recorded
    residues: IntArray  # (num_machines, blocks' tokens): decodes by when they need a block (`decoding.residue`), `vllm`
    pairs: Records  # PAIR, where the network is shared
    flow_ends: Records  # TIMED, a tournament of the first ends of transfers to each machine, likewise
    reports: FloatArray  # as in `BookArrays`
    copies: Records  # COPY, with prefix caching
    first_copies: IntArray  # (num_names + num_requests,) 1 + the first copy of each name, 0 for none
    prefix_first: IntArray  # (num_requests + 1,) as in `splitgym.workload.Prefixes`
    prefix_names: IntArray  # (num_blocks,) names of the blocks of prompts, from 0
    faults: Records  # CHANGE, in order
    rows: IntArray  # (NUM_ROWS, 3) in compiled code: its own `slots.run_rows`


def size_of(scenario: Scenario) -> int:
    """How many bytes a state and its books need, about."""
    events = 13 if scenario.is_disturbed else 11
    per_request = REQUEST.itemsize + events * TIMED.itemsize + FLOW.itemsize * scenario.cluster.transfer.is_shared
    per_machine = 2304 + 8 * _most_block_tokens(scenario)
    pairs = _most_pairs(scenario) * PAIR.itemsize
    prefixes = _prefix_bytes(scenario)
    return per_request * len(scenario.requests) + per_machine * scenario.cluster.num_machines + pairs + prefixes + 8192


def new_state(scenario: Scenario, books: Books, *, record: bool, zeros: Zeros = np.zeros) -> State:
    """The state before anything has happened, in arrays that ``zeros`` makes."""
    cluster, count = scenario.cluster, len(scenario.requests)
    num_machines = cluster.num_machines
    notes = zeros((1 + NOTES) * num_machines, np.int64)
    notes[:] = np.arange(len(notes))
    run = zeros(1, RUN)
    run["num_requests"] = count
    run["horizon_s"] = scenario.horizon_s
    if isinstance(cluster.batching, Batching):
        run["max_batch_tokens"] = cluster.batching.max_batch_tokens
        run["max_batch_size"] = cluster.batching.max_batch_size
        run["max_preemptions"] = cluster.batching.max_preemptions
    run["is_vllm"] = bool(cluster.vllm)
    run["caches_prefixes"] = scenario.caches_prefixes
    run["prefix_tokens"] = 0 if scenario.prefixes is None else scenario.prefixes.block_tokens
    run["is_layerwise"] = cluster.transfer.mode == "layerwise"
    run["is_shared"] = cluster.transfer.is_shared
    run["token_machines_answer"] = cluster.first_token == "token_machine"
    run["migrates"] = cluster.migrate
    run["chooses_late"] = cluster.chooses_late
    run["first_awaiting"] = run["last_awaiting"] = -1
    lease_s = cluster.transfer.kv_lease_s
    run["kv_lease_s"] = NEVER_S if lease_s is None else lease_s
    run["first_leased"] = run["last_leased"] = -1
    run["next_lease_end_s"] = NEVER_S
    run["is_stale"] = cluster.telemetry is not None
    run["overhead_s"] = cluster.transfer.overhead_s
    run["overhead_per_block_s"] = cluster.transfer.overhead_per_block_s
    run["block_tokens"] = cluster.kv_block_tokens
    run["kv_bytes_per_token"] = cluster.model.kv_bytes_per_token
    run["layers"] = cluster.model.layers
    run["switch_s"] = cluster.switch_s
    run["tick_s"] = NEVER_S if scenario.tick_s is None else scenario.tick_s
    run["idle_w"] = sum(machine.profile.power.idle_w for machine in cluster.machines)
    run["records"] = record
    run["closed_s"] = np.nan
    run["next_tick_s"] = run["tick_s"]
    run["ticks"] = 1
    run["pending"] = run["shown_masks"] = NO_DECISION
    run["pending_request"] = run["first_draining"] = run["last_draining"] = -1
    run["noted"] = run["first_noted"] = run["read"] = 1
    is_disturbed = run["is_disturbed"] = scenario.is_disturbed
    run["unplaced_first"] = run["unplaced_last"] = -1
    changes = scenario.faults.changes
    first_s = scenario.requests.arrival_s[0] if count else NEVER_S
    run["arrivals_over"] = not count or first_s > scenario.horizon_s
    run["next_arrival_s"] = NEVER_S if run["arrivals_over"][0] else first_s
    state = State(
        requests=_requests(scenario, zeros),
        machines=_machines(scenario, books, zeros),
        books=books.rows,
        laws=books.laws,
        masked=books.arrays.masked,
        notes=notes,
        run=run,
        iterations=_tournament(num_machines, zeros),
        events=zeros(num_machines + (3 if is_disturbed else 1) * count + len(changes) + 1, TIMED),
        flows=zeros(count if run["is_shared"][0] else 0, FLOW),
        starts=zeros(num_machines, TIMED),
        deadlines=zeros(2 * count + 1, TIMED),
        ends=zeros(4 * count + 16 * num_machines, TIMED),
        gaps=zeros(4 * count + 16 * num_machines, TIMED),
        blocked=zeros((num_machines, num_machines if run["is_layerwise"][0] else 0), np.bool_),
        log=zeros(_most_lines(scenario) if record else 0, LINE),
        residues=zeros((num_machines, _most_block_tokens(scenario)), np.int64),
        pairs=_pairs(scenario, zeros),
        flow_ends=_tournament(num_machines, zeros) if run["is_shared"][0] else zeros(0, TIMED),
        reports=books.arrays.reports,
        **_prefix_arrays(scenario, zeros),
        faults=zeros(len(changes), CHANGE),
        rows=np.zeros((0, 3), np.int64),
    )
    for number, change in enumerate(changes):  # in order, which makes them a heap
        state.faults[number] = change.kind, change.factor
        state.events[number] = change.time_s, (FAULT << 20 | change.machine) << 32 | number  # `events.event_key`
    run["events"] = len(changes)
    return state


def rows_of(state: State, scenario: Scenario, end_s: float) -> RequestRows:
    """One row for each request that has arrived."""
    arrived = int(state.run["arrived"][0])
    given, done = scenario.requests, state.requests[:arrived]
    finish_s = done["finish_s"].copy()
    several = given.output_tokens[:arrived] > 1
    return RequestRows(
        arrival_s=given.arrival_s[:arrived],
        prompt_tokens=given.prompt_tokens[:arrived],
        output_tokens=given.output_tokens[:arrived],
        prompt_machine=done["prompt_machine"].astype(np.int64),
        token_machine=done["token_machine"].astype(np.int64),
        prompt_start_s=done["prompt_start_s"].copy(),
        first_token_s=done["first_token_s"].copy(),
        transfer_end_s=done["transfer_end_s"].copy(),
        finish_s=finish_s,
        tbt_max_s=np.where(several & ~np.isnan(finish_s), done["tbt_max_s"], np.nan),
        status=done["status"].astype(np.int64),
        end_s=end_s,
        frontend_s=scenario.cluster.frontend_s,
        slo_class=given.slo_class[:arrived] if scenario.cluster.classes else None,
        class_names=scenario.cluster.class_names,
    )


def _most_block_tokens(scenario: Scenario) -> int:
    return max((own.block_size for own in scenario.cluster.vllm), default=0)


def _most_lines(scenario: Scenario) -> int:
    """Of the log between two looks at it: with migration a decision that changes all roles may move a request often."""
    count, num_machines = len(scenario.requests), scenario.cluster.num_machines
    moves = 2 * count * num_machines.bit_length() if scenario.cluster.migrate else 0
    return LOG_CHUNK + 7 * count + 7 * num_machines + 7 + moves


def _most_pairs(scenario: Scenario) -> int:
    most = min(len(scenario.requests), scenario.cluster.num_machines**2)
    return most if scenario.cluster.transfer.is_shared else 0


def _most_copies(scenario: Scenario) -> int:
    """Each holds a block at least, but for those of running requests, each on two machines at most."""
    cluster, requests = scenario.cluster, scenario.requests
    num_blocks = sum(
        tokens // own.block_size for tokens, own in zip(cluster.kv_capacity_tokens, cluster.vllm, strict=True)
    )
    names = 0 if scenario.prefixes is None else len(scenario.prefixes.blocks)
    return min(num_blocks + 2 * names, cluster.num_machines * (names + len(requests)))


def _prefix_bytes(scenario: Scenario) -> int:
    if not scenario.caches_prefixes:
        return 0
    names = 0 if scenario.prefixes is None else len(scenario.prefixes.blocks)
    return _most_copies(scenario) * COPY.itemsize + 16 * (names + len(scenario.requests) + 1)


def _prefix_arrays(scenario: Scenario, zeros: Zeros) -> dict[str, npt.NDArray[Any]]:
    """For prefix caching, and empty without it."""
    if not scenario.caches_prefixes:
        nothing = zeros(0, np.int64)
        return {"copies": zeros(0, COPY), "first_copies": nothing, "prefix_first": nothing, "prefix_names": nothing}
    count, prefixes = len(scenario.requests), scenario.prefixes
    blocks = np.empty(0, np.int64) if prefixes is None else prefixes.blocks
    names, numbers = np.unique(blocks, return_inverse=True)
    first, prefix_names = zeros(count + 1, np.int64), zeros(len(blocks), np.int64)
    first[:] = 0 if prefixes is None else prefixes.first
    prefix_names[:] = numbers
    first_copies = zeros(len(names) + count, np.int64)
    copies = zeros(_most_copies(scenario), COPY)
    return {"copies": copies, "first_copies": first_copies, "prefix_first": first, "prefix_names": prefix_names}


def _pairs(scenario: Scenario, zeros: Zeros) -> Records:
    pairs = zeros(_most_pairs(scenario), PAIR)
    pairs["next_sent"] = np.arange(1, 1 + len(pairs))
    return pairs


def _requests(scenario: Scenario, zeros: Zeros) -> Records:
    cluster, given = scenario.cluster, scenario.requests
    baseline = baseline_of(cluster, given)
    requests = zeros(len(given), REQUEST)
    requests["arrival_s"] = given.arrival_s
    requests["prompt_tokens"] = np.minimum(given.prompt_tokens, _MOST_TOKENS)
    requests["output_tokens"] = np.minimum(given.output_tokens, _MOST_TOKENS)
    requests["predicted"] = given.predicted_output_tokens
    requests["prompt_weight"] = baseline.prompt_weight
    requests["token_weight"] = baseline.token_weight
    requests["ttft_allowed_s"] = baseline.ttft_allowed_s
    requests["token_phase_allowed_s"] = baseline.token_phase_allowed_s
    requests["slo_class"] = given.slo_class
    requests["deadline_s"] = given.deadline_s
    requests["status"] = IN_FLIGHT
    for name in ("prompt_machine", "token_machine", "cache_machine", "next"):
        requests[name] = -1
    for name in ("prompt_start_s", "first_token_s", "transfer_end_s", "finish_s", "lease_end_s"):
        requests[name] = np.nan
    return requests


def _tournament(num_machines: int, zeros: Zeros) -> Records:
    leaves = 1 << (num_machines - 1).bit_length()
    ends = zeros(2 * leaves, TIMED)
    ends["time_s"] = NEVER_S
    ends["key"][leaves:] = np.arange(leaves)
    return ends


def _machines(scenario: Scenario, books: Books, zeros: Zeros) -> Records:
    machines = zeros(scenario.cluster.num_machines, MACHINE)
    profiles = [machine.profile for machine in scenario.cluster.machines]
    machines["kv_capacity_tokens"] = scenario.cluster.kv_capacity_tokens
    if scenario.cluster.vllm:
        for name in ("max_num_seqs", "max_num_batched_tokens", "block_size"):
            machines[name] = [getattr(own, name) for own in scenario.cluster.vllm]
        machines["caches_prefixes"] = [own.prefix_caching for own in scenario.cluster.vllm]
        machines["watermark_tokens"] = scenario.cluster.watermark_tokens
    machines["link_bytes_per_s"] = [profile.link_bytes_per_s for profile in profiles]
    machines["idle_w"] = [profile.power.idle_w for profile in profiles]
    machines["law"] = books.true_laws
    machines["is_idle"] = True
    machines["pace"] = 1.0
    chains = ("queue_first", "queue_last", "inbox_first", "inbox_last", "joining_first", "joining_last", "batch_first")
    links = ("next_draining", "unfinished", "first_sent", "first_received", "leaving_first", "leaving_last")
    kept = "kept_first", "kept_last"
    for name in (*chains, "fresh_first", "starting_first", *links, *kept):
        machines[name] = -1
    return machines

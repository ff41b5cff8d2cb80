"""The state of a run, which the parts of the reference engine share."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import simpy

from splitgym.sim import books as b
from splitgym.sim.books import Books
from splitgym.sim.clock import MACHINE_START, Clock
from splitgym.sim.cluster import Scenario
from splitgym.sim.decoding import Decodes
from splitgym.sim.ledger import Ledger
from splitgym.sim.network import SharedNetwork
from splitgym.sim.paging import Paging, Preempted
from splitgym.sim.prefix import PrefixCache, own_name
from splitgym.sim.recorder import Recorder
from splitgym.sim.rows import FAILED, IN_FLIGHT, RequestRows
from splitgym.sim.telemetry import new_reports
from splitgym.view import DRAINING, LIFECYCLES, PROMPT, READY, ROLES, TOKEN

FloatArray = npt.NDArray[np.float64]


@dataclass(slots=True, eq=False)
class SimMachine:
    """A machine as it is now."""

    index: int
    law: FloatArray  # (LAW_SIZE,) the true one
    row: FloatArray  # its row of the books
    kv_capacity_tokens: int
    link_bytes_per_s: float
    idle_w: float  # what it draws between iterations
    restarts: bool  # whether giving up a phase takes it out of service
    pace: float = 1.0  # what its iterations take, times that
    queue: deque[int] = field(default_factory=deque)  # prompts waiting
    decodes: Decodes = field(default_factory=Decodes)
    joining: list[int] = field(default_factory=list)  # decodes that join at the next boundary
    starting: list[int] = field(default_factory=list)  # decodes here without a first token, in order of arrival
    inbox: deque[int] = field(default_factory=deque)  # caches waiting for room here
    blocked: dict[int, SimMachine] = field(default_factory=dict)  # machines whose next prompt waits for room here
    kv_used_tokens: int = 0
    outgoing: int = 0  # caches kept here until they are sent
    lost_phases: tuple[int, ...] = ()  # what must be over before a role change
    running_prompts: int = 0
    busy: bool = False
    prompts: list[int] = field(default_factory=list)  # in its iteration
    leaving: list[int] = field(default_factory=list)  # withdrawn when its iteration ends
    due: simpy.Event | None = None  # the end of its latest iteration
    ready: simpy.Event | None = None  # the end of its restart, while it is switching
    down_since_s: float = 0.0
    paging: Paging | None = None  # under discipline `vllm`
    preempted: dict[int, Preempted] = field(default_factory=dict)  # decodes without a cache, until it is recomputed
    put_back: int = 0  # those of them that wait in the queue
    largest: tuple[int, int, int] = (0, 0, 0)  # batch tokens with prompts, decodes, their context, of any iteration
    wake: simpy.Event | None = None  # set while idle

    @property
    def free_tokens(self) -> int:
        """KV memory not reserved."""
        return self.kv_capacity_tokens - self.kv_used_tokens

    @property
    def role_name(self) -> str:
        """``prompt``, ``token`` or ``mixed``."""
        return ROLES[int(self.row[b.ROLE])]

    @property
    def lifecycle_name(self) -> str:
        """``ready``, ``draining``, ``switching`` or ``down``."""
        return LIFECYCLES[int(self.row[b.LIFECYCLE])]

    @property
    def admits(self) -> bool:
        """Whether it takes in new work. One about to restart, its old phase over, only finishes what it holds."""
        if self.row[b.LIFECYCLE] == DRAINING:
            return not self.restarts or not self.lost_work_is_done
        return bool(self.row[b.LIFECYCLE] == READY)

    @property
    def lost_work_is_done(self) -> bool:
        """Whether nothing of the phases it gives up is left."""
        row = self.row
        prompts = PROMPT in self.lost_phases and (row[b.PENDING_PROMPTS] > 0 or self.outgoing > 0)
        tokens = TOKEN in self.lost_phases and row[b.DECODES] + row[b.COMING] > 0
        return not prompts and not tokens


class LastToken(NamedTuple):
    """The last token that a client has."""

    time_s: float
    tbt_max_s: float  # the largest gap up to it


class Outcome:
    """What has happened to each request so far."""

    def __init__(self, count: int) -> None:
        self.prompt_machine = [-1] * count
        self.token_machine = [-1] * count
        self.prompt_start_s = [np.nan] * count
        self.first_token_s = [np.nan] * count
        self.transfer_end_s = [np.nan] * count
        self.finish_s = [np.nan] * count
        self.tbt_max_s = [np.nan] * count
        self.status = [IN_FLIGHT] * count


class World:
    """Clock, books and machines of one run, and its requests as plain lists."""

    def __init__(self, scenario: Scenario, *, record: bool) -> None:
        cluster, requests = scenario.cluster, scenario.requests
        self.cluster = cluster
        self.requests = requests
        self.clock = Clock()
        self.books = Books(cluster, reports=new_reports(cluster, scenario.seed))
        self.ledger = Ledger(cluster, requests)
        self.recorder = Recorder() if record else None
        self.layerwise = cluster.transfer.mode == "layerwise"
        self.token_machines_answer = cluster.first_token == "token_machine"
        self.arrival_s: list[float] = requests.arrival_s.tolist()
        self.prompt_tokens: list[int] = requests.prompt_tokens.tolist()
        self.output_tokens: list[int] = requests.output_tokens.tolist()
        self.whole_tokens: list[int] = (requests.prompt_tokens + requests.output_tokens).tolist()
        self.predicted: list[float] = requests.predicted_output_tokens.tolist()
        self.slo_class: list[int] = requests.slo_class.tolist()
        self.deadline_s: list[float] = requests.deadline_s.tolist()
        self.prompt_work_s = [0.0] * len(requests)  # its prompt phase alone, on its prompt machine
        self.outcome = Outcome(len(requests))
        self.machines = [
            SimMachine(
                index,
                self.books.laws[self.books.true_laws[index]],
                self.books.rows[index],
                cluster.kv_capacity_tokens[index],
                machine.profile.link_bytes_per_s,
                machine.profile.power.idle_w,
                cluster.switch_s > 0,
            )
            for index, machine in enumerate(cluster.machines)
        ]
        self.draining: dict[int, SimMachine] = {}
        self.network = SharedNetwork(self.clock, [machine.link_bytes_per_s for machine in self.machines])
        self.preemptions = 0
        self.cache_machine = [-1] * len(requests)  # of those in flight: where the prompt is, then where the cache is
        self.moved: dict[int, Preempted] = {}  # decodes whose caches are to be at another machine
        self.awaiting: deque[int] = deque()  # whose prompt phase is over, and whose token machine is to be chosen now
        self.migrations = 0  # how often a role change gave a request to another machine
        self.leases: dict[int, simpy.Event] = {}  # their ends, of caches that wait for room
        self.recomputations = 0  # prompts computed again because a lease ended
        self.prefix_hit_tokens = 0
        prefixes = scenario.prefixes
        self.prefix_names = [[] for _ in range(len(requests))] if prefixes is None else prefixes.of_each()
        self.is_disturbed = scenario.is_disturbed
        self.lost = 0  # requests that will not finish, where the run is disturbed
        self.restarts = 0  # of requests, after an outage
        self.resumed: dict[int, LastToken] = {}  # of requests that begin again, with tokens that the client has
        self.unplaced: list[int] = []  # requests that wait for a machine to come back
        self.on_the_way: dict[int, simpy.Event] = {}  # caches that do not share the links, or not yet
        self.ask: Callable[[int], None] = lambda request: None  # have a request's machines decided
        for index, limits in enumerate(cluster.vllm):
            paging = self.machines[index].paging = Paging(limits, cluster.watermark_tokens[index])
            if limits.prefix_caching:
                paging.cache = PrefixCache(limits.block_size, 0 if prefixes is None else prefixes.block_tokens)

    def log(self, kind: str, machine: int, request: int) -> None:
        """Add a line to the event log, where one is kept."""
        if self.recorder is not None:
            self.recorder.event(self.clock.now, kind, machine, request)

    def fail(self, request: int) -> None:
        """The request fits nowhere."""
        self.outcome.status[request] = FAILED
        self.lost += self.is_disturbed
        self.log("failed", -1, request)

    def make_runnable(self, machine: SimMachine) -> None:
        """Let an idle machine form a batch once everything of this instant has happened."""
        if machine.wake is not None:
            self.clock.trigger(machine.wake, self.clock.now, MACHINE_START, machine.index)
            machine.wake = None

    def join(self, request: int, machine: SimMachine) -> None:
        """The cache is here: a place in the batch from the next iteration on."""
        machine.row[b.RUNNING] += 1
        machine.joining.append(request)
        self.make_runnable(machine)

    @property
    def all_done(self) -> bool:
        """Whether no request that has arrived can still finish."""
        return self.ledger.unfinished == (self.lost if self.is_disturbed else 0)

    def last_token(self, request: int) -> LastToken:
        """Of a request whose prompt phase is over, and that has not decoded since."""
        return self.resumed.get(request) or LastToken(self.outcome.first_token_s[request], 0.0)

    def is_sent(self, request: int) -> bool:
        """Whether its cache goes from one machine to another."""
        outcome = self.outcome
        has_token_phase = self.output_tokens[request] > 1 or self.token_machines_answer
        return has_token_phase and outcome.prompt_machine[request] != outcome.token_machine[request]

    def is_answered_late(self, request: int) -> bool:
        """Whether its token machine makes its first token, too."""
        return self.token_machines_answer and self.is_sent(request)

    def tokens_at_start(self, request: int) -> int:
        """Prompt and tokens so far when its token phase begins, or goes on elsewhere."""
        moved = self.moved.get(request)
        if moved is not None:
            return self.whole_tokens[request] - moved.remaining_tokens
        return self.prompt_tokens[request] + (0 if self.is_answered_late(request) else 1)

    def reported_tokens(self, request: int) -> int:
        """The tokens that books count for its cache when its token phase begins, or goes on elsewhere."""
        return max(self.tokens_at_start(request), self.prompt_tokens[request] + 1)

    def tokens_to_send(self, request: int) -> int:
        """What is in its cache then: the last token is not."""
        return self.reported_tokens(request) - 1

    def weight_to_next_token(self, request: int) -> float:
        """Its weight in the weighted slowdown until its next token is there."""
        waits = math.isnan(self.outcome.first_token_s[request])
        return self.ledger.prompt_weight[request] if waits else self.ledger.token_weight[request]

    def tokens_to_compute(self, machine: SimMachine, request: int) -> int:
        """Its prompt; where its cache was lost, with the tokens so far."""
        preempted = machine.preempted.get(request)
        if preempted is None:
            return self.prompt_tokens[request]
        return self.whole_tokens[request] - preempted.remaining_tokens

    def need_here(self, machine: SimMachine, request: int) -> int:
        """KV tokens a request takes on its prompt machine: all of it where its token phase follows there."""
        follows = self.outcome.token_machine[request] == machine.index
        return self.whole_tokens[request] if follows else self.prompt_tokens[request] + 1

    def need_to_come(self, machine: SimMachine, request: int) -> int:
        """KV tokens reserved on its token machine before its cache is sent there."""
        paging = machine.paging
        return self.whole_tokens[request] if paging is None else paging.in_blocks(self.tokens_at_start(request))

    def held_until_sent(self, machine: SimMachine, request: int) -> int:
        """KV tokens its cache takes until it is sent on its prompt machine, or where it was a decode."""
        paging, is_moved = machine.paging, request in self.moved
        if paging is not None:
            return paging.in_blocks(self.tokens_at_start(request) - 1 if is_moved else self.prompt_tokens[request])
        return self.whole_tokens[request] if is_moved else self.prompt_tokens[request] + 1

    def held_at_end(self, machine: SimMachine, request: int) -> int:
        """KV tokens it takes where its last token is made; that one is in no cache."""
        paging = machine.paging
        return self.need_here(machine, request) if paging is None else paging.in_blocks(self.whole_tokens[request] - 1)

    def names_on(self, machine: SimMachine, request: int) -> list[int]:
        """The blocks that it shares there: where its prompt is computed. A cache that was sent is its own."""
        return self.prefix_names[request] if self.outcome.prompt_machine[request] == machine.index else []

    def let_go(self, machine: SimMachine, request: int, tokens: int, there: int = 0) -> None:
        """A request gives back the memory of ``tokens``; with prefix caching it is kept while nobody needs the room.

        So many tokens of it are ``there`` that it may want again; 0 for one that is over.
        """
        machine.kv_used_tokens -= tokens
        if machine.paging is not None and machine.paging.cache is not None:
            names = self.names_on(machine, request)
            machine.kv_used_tokens += machine.paging.cache.release(names, own_name(request), tokens, there)

    def note_hits(self, request: int) -> None:
        """How much of a prompt each machine has, for the view; -1: no request."""
        for machine in self.machines:
            if machine.paging is not None and machine.paging.cache is not None:
                hit = 0
                if request >= 0:
                    names, tokens = self.prefix_names[request], self.prompt_tokens[request]
                    hit = machine.paging.cache.hit_tokens(names, own_name(request), tokens)
                self.books.arrays.hits[machine.index] = hit

    def rows(self, end_s: float) -> RequestRows:
        """One row for each request that has arrived."""
        arrived, outcome = self.ledger.arrived, self.outcome
        return RequestRows(
            arrival_s=self.requests.arrival_s[:arrived],
            prompt_tokens=self.requests.prompt_tokens[:arrived],
            output_tokens=self.requests.output_tokens[:arrived],
            prompt_machine=np.array(outcome.prompt_machine[:arrived], np.int64),
            token_machine=np.array(outcome.token_machine[:arrived], np.int64),
            prompt_start_s=np.array(outcome.prompt_start_s[:arrived]),
            first_token_s=np.array(outcome.first_token_s[:arrived]),
            transfer_end_s=np.array(outcome.transfer_end_s[:arrived]),
            finish_s=np.array(outcome.finish_s[:arrived]),
            tbt_max_s=np.array(outcome.tbt_max_s[:arrived]),
            status=np.array(outcome.status[:arrived], np.int64),
            end_s=end_s,
            frontend_s=self.cluster.frontend_s,
            slo_class=self.requests.slo_class[:arrived] if self.cluster.classes else None,
            class_names=self.cluster.class_names,
        )

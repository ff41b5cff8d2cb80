"""The reference engine: the contract of docs/simulator.md in SimPy, written to be read.

One process brings the arrivals, one ticks, and one runs each machine: wait for work, form a batch, process it, hand out
its tokens. The engine stops wherever a decision is due; `advance` runs to it and `decide` answers it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import simpy

from splitgym.hardware.latency import iteration_s
from splitgym.sim import books as b
from splitgym.sim.books import Books
from splitgym.sim.clock import ARRIVAL, CONTROL_TICK, ITERATION_END, MACHINE_START, ROLE_READY, TRANSFER_END, Clock
from splitgym.sim.cluster import Scenario
from splitgym.sim.decoding import Decodes
from splitgym.sim.ledger import Ledger, Meters
from splitgym.sim.recorder import Recorder
from splitgym.sim.rows import COMPLETED, FAILED, IN_FLIGHT, RequestRows
from splitgym.view import DRAINING, LIFECYCLES, MIXED, PROMPT, READY, ROLES, SWITCHING, TICK, TOKEN
from splitgym.view import ARRIVAL as ARRIVAL_DECISION
from splitgym.view import ClusterView, Decision

FloatArray = npt.NDArray[np.float64]
Process = Generator[simpy.Event, None, None]


class InvalidDecision(ValueError):  # noqa: N818  (it is the decision that is invalid)
    """A decision names a machine that does not exist or may not be chosen, or a role change that is not permitted."""


@dataclass(frozen=True)
class MachineState:
    """A machine as somebody sees it who looks from outside, for pictures."""

    role: str
    lifecycle: str
    queued_prompts: int
    running_prompts: int
    decodes: int
    kv_used_tokens: int  # reserved
    kv_capacity_tokens: int


@dataclass(slots=True)
class _Batch:
    prompts: list[int]
    served: list[int] | None  # decodes that get a token; None: all of them
    num_decodes: int


@dataclass(slots=True, eq=False)
class _Machine:
    index: int
    law: FloatArray
    row: FloatArray  # its row of the books
    kv_capacity_tokens: int
    link_bytes_per_s: float
    prompt_power_w: float  # above idle
    decode_power_w: float  # above idle
    queue: deque[int] = field(default_factory=deque)  # prompts waiting
    decodes: Decodes = field(default_factory=Decodes)
    joining: list[int] = field(default_factory=list)  # decodes that join at the next boundary
    inbox: deque[int] = field(default_factory=deque)  # caches waiting for room here
    blocked: dict[int, _Machine] = field(default_factory=dict)  # machines whose next prompt waits for room here
    kv_used_tokens: int = 0
    outgoing: int = 0  # caches kept here until they are sent
    lost_phases: tuple[int, ...] = ()  # what must be over before a role change
    running_prompts: int = 0
    busy: bool = False
    wake: simpy.Event | None = None  # set while idle

    @property
    def free_tokens(self) -> int:
        return self.kv_capacity_tokens - self.kv_used_tokens

    def lost_work_is_done(self) -> bool:
        """Whether nothing of the phases it gives up is left."""
        row = self.row
        prompts = PROMPT in self.lost_phases and (row[b.PENDING_PROMPTS] > 0 or self.outgoing > 0)
        tokens = TOKEN in self.lost_phases and row[b.DECODES] + row[b.COMING] > 0
        return not prompts and not tokens


class ReferenceEngine:
    """One run of a scenario.

    Args:
        scenario: what is simulated.
        record: keep the event log and the machines' activity (`recorder`).
    """

    def __init__(self, scenario: Scenario, *, record: bool = False) -> None:
        cluster, requests = scenario.cluster, scenario.requests
        self.scenario = scenario
        self.books = Books(cluster)
        self.ledger = Ledger(cluster, requests)
        self.recorder = Recorder() if record else None
        self._clock = Clock()
        self._pending: int | None = None  # kind of the decision that is due
        self.pending_request = -1
        self._follow_up = False  # after the horizon
        self._arrivals_over = False
        self._closed_s: float | None = None

        self._arrival_s: list[float] = requests.arrival_s.tolist()
        self._prompt: list[int] = requests.prompt_tokens.tolist()
        self._output: list[int] = requests.output_tokens.tolist()
        self._predicted: list[float] = requests.predicted_output_tokens.tolist()
        self._kv_bytes_per_token = cluster.model.kv_bytes_per_token
        self._layerwise = cluster.transfer.mode == "layerwise"
        self._machines = [
            _Machine(
                index,
                self.books.laws[index],
                self.books.rows[index],
                machine.profile.kv_capacity_tokens,
                machine.profile.link_bytes_per_s,
                machine.profile.prompt_power_w - machine.profile.idle_power_w,
                machine.profile.decode_power_w - machine.profile.idle_power_w,
            )
            for index, machine in enumerate(cluster.machines)
        ]
        self._draining: dict[int, _Machine] = {}

        count = len(requests)
        self._prompt_machine = [-1] * count
        self._token_machine = [-1] * count
        self._work_s = [0.0] * count
        self._prompt_start_s = [np.nan] * count
        self._first_token_s = [np.nan] * count
        self._transfer_end_s = [np.nan] * count
        self._finish_s = [np.nan] * count
        self._tbt_max_s = [np.nan] * count
        self._status = [IN_FLIGHT] * count

        self._clock.process(self._arrivals())
        if scenario.tick_s is not None:
            self._clock.process(self._ticks(scenario.tick_s))
        for machine in self._machines:
            self._clock.process(self._run(machine))

    # --- driving ------------------------------------------------------------------------------------------------

    @property
    def now_s(self) -> float:
        """The present."""
        return self._closed_s if self._closed_s is not None else float(self._clock.now)

    def advance(self) -> ClusterView | None:
        """Run to the next decision; ``None`` when the horizon is reached or everything is done."""
        clock, horizon_s = self._clock, self.scenario.horizon_s
        while self._pending is None:
            done = self._arrivals_over and not self.ledger.unfinished
            if done or clock.peek() > horizon_s or clock.peek() == float("inf"):
                if horizon_s != float("inf"):
                    self._closed_s = horizon_s
                return None
            clock.step()
        return self.view()

    def view(self) -> ClusterView:
        """What may be known for the decision that is due.

        Raises:
            RuntimeError: if none is.
        """
        if self._pending is None:
            raise RuntimeError("no decision is due: call advance() first")
        request = self.pending_request
        if request < 0:
            return self.books.view(TICK, self.now_s, 0, 0.0)
        return self.books.view(ARRIVAL_DECISION, self.now_s, self._prompt[request], self._predicted[request])

    def decide(self, decision: Decision) -> None:
        """Carry out the decision that is due.

        Raises:
            InvalidDecision: if it names what does not exist or is not permitted.
            RuntimeError: if no decision is due.
        """
        if self._pending is None:
            raise RuntimeError("no decision is due: call advance() first")
        if decision.role_changes:
            self.change_roles(decision.role_changes)
        request = self.pending_request
        if request >= 0:
            view = self.view()
            self._check_machine("prompt", decision.prompt_machine, view.prompt_mask)
            self._check_machine("token", decision.token_machine, view.token_mask)
            self._assign(request, self._machines[decision.prompt_machine], self._machines[decision.token_machine])
        self._pending = None
        self.pending_request = -1

    def change_roles(self, changes: tuple[tuple[int, int], ...]) -> None:
        """Change roles while a decision is due, without deciding it.

        Raises:
            InvalidDecision: if a machine or role does not exist or the change is not permitted.
        """
        for index, role in changes:
            if not 0 <= index < len(self._machines):
                raise InvalidDecision(f"machine {index} is to change its role, but {self._machine_range()}")
            if not 0 <= role < len(ROLES):
                raise InvalidDecision(f"role {role} does not exist: 0 is prompt, 1 is token, 2 is mixed")
            if not self.view().role_mask[index, role]:
                row = self._machines[index].row
                state = f"it is {LIFECYCLES[int(row[b.LIFECYCLE])]} in role {ROLES[int(row[b.ROLE])]}"
                raise InvalidDecision(f"machine {index} may not become {ROLES[role]} now: {state} (see role_mask)")
            self._change_role(self._machines[index], role)

    def _check_machine(self, phase: str, index: int, mask: npt.NDArray[np.bool_]) -> None:
        if not 0 <= index < len(self._machines):
            raise InvalidDecision(f"{phase} machine {index} does not exist: {self._machine_range()}")
        if not mask[index]:
            row = self._machines[index].row
            state = f"it is {LIFECYCLES[int(row[b.LIFECYCLE])]} in role {ROLES[int(row[b.ROLE])]}"
            raise InvalidDecision(f"{phase} machine {index} may not be chosen: {state} (see {phase}_mask)")

    def _machine_range(self) -> str:
        return f"there are {len(self._machines)} machines, 0 to {len(self._machines) - 1}"

    def finish(self) -> None:
        """After the horizon: nothing more arrives or is decided; what is unfinished is followed for ``drain_s``."""
        self._follow_up = True
        self._pending = None
        last_s = self.scenario.horizon_s + self.scenario.drain_s
        while self.ledger.unfinished and self._clock.peek() <= last_s and self._clock.peek() != float("inf"):
            self._clock.step()
        ended_s = float(self._clock.now)
        if self.scenario.horizon_s != float("inf"):
            ended_s = max(ended_s, self.scenario.horizon_s)
            if self.ledger.unfinished and last_s != float("inf"):
                ended_s = last_s
        self._closed_s = ended_s

    # --- what is left behind ------------------------------------------------------------------------------------

    def meters(self) -> Meters:
        """Running totals up to now."""
        return self.ledger.meters(self.now_s)

    def state(self) -> list[MachineState]:
        """The machines as they are."""
        return [
            MachineState(
                ROLES[int(machine.row[b.ROLE])],
                LIFECYCLES[int(machine.row[b.LIFECYCLE])],
                len(machine.queue),
                machine.running_prompts,
                len(machine.decodes) + len(machine.joining),
                machine.kv_used_tokens,
                machine.kv_capacity_tokens,
            )
            for machine in self._machines
        ]

    def rows(self) -> RequestRows:
        """One row for each request that has arrived."""
        arrived = self.ledger.arrived
        requests = self.scenario.requests
        return RequestRows(
            arrival_s=requests.arrival_s[:arrived],
            prompt_tokens=requests.prompt_tokens[:arrived],
            output_tokens=requests.output_tokens[:arrived],
            prompt_machine=np.array(self._prompt_machine[:arrived], np.int64),
            token_machine=np.array(self._token_machine[:arrived], np.int64),
            prompt_start_s=np.array(self._prompt_start_s[:arrived]),
            first_token_s=np.array(self._first_token_s[:arrived]),
            transfer_end_s=np.array(self._transfer_end_s[:arrived]),
            finish_s=np.array(self._finish_s[:arrived]),
            tbt_max_s=np.array(self._tbt_max_s[:arrived]),
            status=np.array(self._status[:arrived], np.int64),
            end_s=self.now_s,
        )

    # --- arrivals and ticks -------------------------------------------------------------------------------------

    def _arrivals(self) -> Process:
        for request, arrival_s in enumerate(self._arrival_s):
            if arrival_s > self.scenario.horizon_s:
                break
            yield self._clock.at(arrival_s, ARRIVAL, request=request)
            if self._follow_up:
                break
            self.books.arrived(arrival_s, self._prompt[request], self._predicted[request])
            self.ledger.on_arrival(request, arrival_s)
            self._log("arrival", -1, request)
            if self._fits_somewhere(request):
                self._pending = ARRIVAL_DECISION
                self.pending_request = request
            else:
                self._fail(request)
        self._arrivals_over = True

    def _ticks(self, tick_s: float) -> Process:
        tick = 1
        while not self._follow_up:
            yield self._clock.at(tick * tick_s, CONTROL_TICK)
            stuck = self._clock.peek() == float("inf")  # nothing but this process is left
            if self._follow_up or stuck:
                return
            self._pending = TICK
            tick += 1

    def _fits_somewhere(self, request: int) -> bool:
        view = self.books.view(ARRIVAL_DECISION, self.now_s, self._prompt[request], self._predicted[request])
        need = self._prompt[request] + self._output[request]
        return bool(view.prompt_mask.any()) and any(
            machine.kv_capacity_tokens >= need for machine in self._machines if view.token_mask[machine.index]
        )

    def _fail(self, request: int) -> None:
        self._status[request] = FAILED
        self._log("failed", -1, request)

    def _assign(self, request: int, prompt: _Machine, token: _Machine) -> None:
        prompt_tokens, predicted = self._prompt[request], self._predicted[request]
        self._prompt_machine[request] = prompt.index
        self._token_machine[request] = token.index
        self._log("assigned", prompt.index, request)
        whole = prompt_tokens + self._output[request]
        if (whole if prompt is token else prompt_tokens + 1) > prompt.kv_capacity_tokens or (
            whole > token.kv_capacity_tokens
        ):
            self._fail(request)
            return
        self._work_s[request] = work_s = self.books.prompt_s(prompt.index, prompt_tokens)
        row = prompt.row
        if row[b.PENDING_PROMPTS] == 0:
            row[b.PROMPT_SINCE_S] = self.now_s
        row[b.PENDING_PROMPTS] += 1
        row[b.PENDING_TOKENS] += prompt_tokens
        row[b.PENDING_S] += work_s
        weight = self.ledger.prompt_weight[request]
        row[b.PROMPT_WEIGHT] += weight
        row[b.PROMPT_WEIGHTED_S] += weight * row[b.PENDING_S]
        row[b.WAITING] += 1
        if prompt is not token:
            row[b.BOOKED_KV] += prompt_tokens + 1
        row = token.row
        row[b.COMING] += 1
        row[b.COMING_CONTEXT] += prompt_tokens + 1
        row[b.REMAINING] += predicted - 1
        row[b.BOOKED_KV] += prompt_tokens + predicted
        row[b.TOKEN_WEIGHTED] += self.ledger.token_weight[request] * (self._output[request] - 1)
        prompt.queue.append(request)
        self._make_runnable(prompt)

    # --- machines -----------------------------------------------------------------------------------------------

    def _run(self, machine: _Machine) -> Process:
        clock = self._clock
        while True:
            machine.wake = simpy.Event(clock)
            yield machine.wake
            while batch := self._form_batch(machine):
                start_s = clock.now
                end_s = start_s + self._start_iteration(machine, batch)
                yield clock.at(end_s, ITERATION_END, machine.index)
                self._end_iteration(machine, batch, start_s)
                yield clock.at(end_s, MACHINE_START, machine.index)

    def _make_runnable(self, machine: _Machine) -> None:
        if machine.wake is not None:
            self._clock.trigger(machine.wake, self._clock.now, MACHINE_START, machine.index)
            machine.wake = None

    def _form_batch(self, machine: _Machine) -> _Batch | None:
        """Forced decodes, then prompts first come first served, then decodes in order of arrival."""
        if machine.row[b.LIFECYCLE] == SWITCHING:
            return None
        self._take_in(machine)
        limits = self.scenario.cluster.batching
        decodes = machine.decodes
        forced = decodes.passed_over(limits.max_preemptions)
        forced = forced[: min(limits.max_batch_size, limits.max_batch_tokens)]
        size = tokens = len(forced)
        prompts: list[int] = []
        queue = machine.queue
        while queue and size < limits.max_batch_size:
            prompt_tokens = self._prompt[queue[0]]
            if size and tokens + prompt_tokens > limits.max_batch_tokens:
                break
            if not self._reserve_for_prompt(machine, queue[0]):
                break
            prompts.append(queue.popleft())
            size += 1
            tokens += prompt_tokens
        room = max(min(limits.max_batch_size - size, limits.max_batch_tokens - tokens), 0)
        others = len(decodes) - len(forced)
        if others <= room:
            return _Batch(prompts, None, len(decodes)) if prompts or len(decodes) else None
        taken = set(forced)
        served = forced + [request for request in decodes.in_order() if request not in taken][:room]
        return _Batch(prompts, served, len(served))

    def _reserve_for_prompt(self, machine: _Machine, request: int) -> bool:
        """Take the memory a prompt needs before its iteration, here and, layer-wise, at its destination."""
        if not self._admits(machine):
            return False
        need = self._need_here(machine, request)
        if need > machine.free_tokens:
            return False
        if self._layerwise and self._is_sent(request):
            destination = self._machines[self._token_machine[request]]
            whole = self._prompt[request] + self._output[request]
            if whole > destination.free_tokens or not self._admits(destination):
                destination.blocked[machine.index] = machine
                return False
            destination.kv_used_tokens += whole
        machine.kv_used_tokens += need
        return True

    def _is_sent(self, request: int) -> bool:
        return self._output[request] > 1 and self._prompt_machine[request] != self._token_machine[request]

    def _need_here(self, machine: _Machine, request: int) -> int:
        """KV tokens a request takes on its prompt machine: all of it where its token phase follows there."""
        follows = self._token_machine[request] == machine.index
        return self._prompt[request] + (self._output[request] if follows else 1)

    def _start_iteration(self, machine: _Machine, batch: _Batch) -> float:
        """Returns how long it takes."""
        now_s = self._clock.now
        row = machine.row
        prompt_tokens = attention = 0
        for request in batch.prompts:
            length = self._prompt[request]
            prompt_tokens += length
            attention += length * length
            self._prompt_start_s[request] = now_s
        count = len(batch.prompts)
        if count:
            machine.running_prompts = count
            row[b.WAITING] -= count
            row[b.RUNNING] += count
            row[b.KV_HELD] += prompt_tokens + count
        context = machine.decodes.context_tokens(batch.served)
        duration_s = iteration_s(machine.law, prompt_tokens, count, attention, 0, batch.num_decodes, context)
        machine.busy = True
        power_w = machine.prompt_power_w if count else machine.decode_power_w
        self.ledger.on_energy(duration_s * power_w)
        return float(duration_s)

    def _end_iteration(self, machine: _Machine, batch: _Batch, start_s: float) -> None:
        """Hand out the tokens: decodes first, then the first tokens of prompts, which join afterwards."""
        now_s = self._clock.now
        machine.busy = False
        if batch.num_decodes or batch.served is not None:
            self._end_decodes(machine, batch, now_s)
        for request in batch.prompts:
            self._end_prompt(machine, request, now_s)
        count = len(batch.prompts)
        if count:
            machine.running_prompts = 0
            machine.row[b.RUNNING] -= count
            if machine.row[b.PENDING_PROMPTS] == 0:  # whatever rounding left
                machine.row[[b.PENDING_S, b.PROMPT_WEIGHT, b.PROMPT_WEIGHTED_S]] = 0.0
        if self.recorder is not None:
            self.recorder.iteration(machine.index, start_s, now_s, count, batch.num_decodes)
        self._settle_roles()

    def _end_decodes(self, machine: _Machine, batch: _Batch, now_s: float) -> None:
        row = machine.row
        row[b.CONTEXT] += batch.num_decodes
        row[b.KV_HELD] += batch.num_decodes
        row[b.REMAINING] -= batch.num_decodes
        self.ledger.tokens_out += batch.num_decodes
        if batch.served is None:
            row[b.TOKEN_WEIGHTED] -= row[b.TOKEN_WEIGHT]
            done = machine.decodes.serve_all(now_s)
        else:
            row[b.TOKEN_WEIGHTED] -= sum(self.ledger.token_weight[request] for request in batch.served)
            done = machine.decodes.serve(set(batch.served), now_s)
        for request, tbt_max_s in done:
            self._tbt_max_s[request] = tbt_max_s
            whole = self._prompt[request] + self._output[request]
            row[b.DECODES] -= 1
            row[b.RUNNING] -= 1
            row[b.CONTEXT] -= whole
            row[b.KV_HELD] -= whole
            row[b.TOKEN_WEIGHT] -= self.ledger.token_weight[request]
            self._finish(request, machine, now_s)
            self._free(machine, whole)
        if done and row[b.DECODES] + row[b.COMING] == 0:
            row[[b.REMAINING, b.TOKEN_WEIGHT, b.TOKEN_WEIGHTED]] = 0.0

    def _end_prompt(self, machine: _Machine, request: int, now_s: float) -> None:
        prompt_tokens, output_tokens = self._prompt[request], self._output[request]
        self._first_token_s[request] = now_s
        self._log("first_token", machine.index, request)
        self.ledger.on_first_token(request, now_s)
        row = machine.row
        work_s = self._work_s[request]
        row[b.PENDING_PROMPTS] -= 1
        row[b.PENDING_TOKENS] -= prompt_tokens
        row[b.PENDING_S] -= work_s
        row[b.PROMPT_SINCE_S] = now_s
        row[b.PROMPT_WEIGHTED_S] -= row[b.PROMPT_WEIGHT] * work_s
        row[b.PROMPT_WEIGHT] -= self.ledger.prompt_weight[request]

        token = self._machines[self._token_machine[request]]
        token.row[b.COMING] -= 1
        token.row[b.COMING_CONTEXT] -= prompt_tokens + 1
        if output_tokens == 1:
            row[b.KV_HELD] -= prompt_tokens + 1
            if token is not machine:
                row[b.BOOKED_KV] -= prompt_tokens + 1
            self._finish(request, token, now_s)
            self._free(machine, self._need_here(machine, request))
            return
        token.row[b.DECODES] += 1
        token.row[b.CONTEXT] += prompt_tokens + 1
        if token is machine:
            self._join(request, machine)
            return
        machine.outgoing += 1
        if self._layerwise:
            self._send(request, now_s)
        else:
            token.inbox.append(request)
            token.row[b.WAITING] += 1
            self._receive(token)

    def _join(self, request: int, machine: _Machine) -> None:
        """The cache is here: a place in the batch from the next iteration on."""
        machine.row[b.RUNNING] += 1
        machine.joining.append(request)
        self._make_runnable(machine)

    def _take_in(self, machine: _Machine) -> None:
        for request in machine.joining:
            machine.row[b.TOKEN_WEIGHT] += self.ledger.token_weight[request]
            whole = self._prompt[request] + self._output[request]
            machine.decodes.join(request, whole, self._output[request] - 1, self._first_token_s[request])
        machine.joining.clear()

    def _finish(self, request: int, token: _Machine, now_s: float) -> None:
        self._finish_s[request] = now_s
        self._status[request] = COMPLETED
        predicted = self._predicted[request]
        token.row[b.REMAINING] += self._output[request] - predicted
        token.row[b.BOOKED_KV] -= self._prompt[request] + predicted
        self._log("finish", token.index, request)
        self.ledger.on_finish(request, now_s)

    def _free(self, machine: _Machine, tokens: int) -> None:
        """Give memory back: first to caches waiting for it, then to prompts, here and elsewhere."""
        machine.kv_used_tokens -= tokens
        self._offer_room(machine)

    def _offer_room(self, machine: _Machine) -> None:
        self._receive(machine)
        blocked, machine.blocked = machine.blocked, {}
        for index in sorted(blocked):
            self._make_runnable(blocked[index])
        self._make_runnable(machine)

    # --- KV transfer --------------------------------------------------------------------------------------------

    def _receive(self, machine: _Machine) -> None:
        """Serialized: reserve room for waiting caches, first come first served, and send them."""
        while machine.inbox and self._admits(machine):
            request = machine.inbox[0]
            whole = self._prompt[request] + self._output[request]
            if whole > machine.free_tokens:
                return
            machine.inbox.popleft()
            machine.row[b.WAITING] -= 1
            machine.kv_used_tokens += whole
            self._send(request, self._clock.now)

    def _send(self, request: int, start_s: float) -> None:
        source = self._machines[self._prompt_machine[request]]
        destination = self._machines[self._token_machine[request]]
        size_bytes = self._kv_bytes_per_token * self._prompt[request]
        bytes_per_s = min(source.link_bytes_per_s, destination.link_bytes_per_s)
        visible_bytes = float(size_bytes)
        if self._layerwise:
            layers = self.scenario.cluster.model.layers
            iteration_duration_s = start_s - self._prompt_start_s[request]
            hidden_bytes = bytes_per_s * iteration_duration_s * (layers - 1) / layers
            visible_bytes = max(size_bytes / layers, size_bytes - hidden_bytes)
        end_s = start_s + (self.scenario.cluster.transfer.overhead_s + visible_bytes / bytes_per_s)
        self._log("transfer_start", source.index, request)
        self._clock.call(
            lambda: self._end_transfer(request, source, destination, start_s),
            end_s,
            TRANSFER_END,
            destination.index,
            request,
        )

    def _end_transfer(self, request: int, source: _Machine, destination: _Machine, start_s: float) -> None:
        now_s = self._clock.now
        self._transfer_end_s[request] = now_s
        self._log("transfer_end", destination.index, request)
        if self.recorder is not None:
            self.recorder.transfer(request, source.index, destination.index, start_s, now_s)
        held = self._prompt[request] + 1
        source.outgoing -= 1
        source.row[b.KV_HELD] -= held
        source.row[b.BOOKED_KV] -= held
        destination.row[b.KV_HELD] += held
        self._join(request, destination)
        self._free(source, held)
        self._settle_roles()

    # --- roles --------------------------------------------------------------------------------------------------

    def _change_role(self, machine: _Machine, role: int) -> None:
        """Becoming mixed only permits more and is done at once; giving up a phase drains, then takes ``switch_s``."""
        old = int(machine.row[b.ROLE])
        machine.row[b.ROLE] = role
        self._log(f"role_{ROLES[role]}", machine.index, -1)
        if role == MIXED:
            return
        machine.row[b.LIFECYCLE] = DRAINING
        machine.lost_phases = tuple(phase for phase in (PROMPT, TOKEN) if old in (phase, MIXED) and phase != role)
        self._draining[machine.index] = machine
        self._settle_roles()

    def _admits(self, machine: _Machine) -> bool:
        """Whether it takes in new work. A machine about to restart, its old phase over, only finishes what it holds."""
        lifecycle = machine.row[b.LIFECYCLE]
        if lifecycle == DRAINING:
            return self.scenario.cluster.switch_s == 0 or not machine.lost_work_is_done()
        return bool(lifecycle == READY)

    def _settle_roles(self) -> None:
        """Let machines go on whose draining is over."""
        if not self._draining:
            return
        switch_s = self.scenario.cluster.switch_s
        for machine in list(self._draining.values()):
            if not machine.lost_work_is_done():
                continue
            if switch_s == 0:
                del self._draining[machine.index]
                self._become_ready(machine)
            elif machine.kv_used_tokens == 0 and not machine.busy:
                del self._draining[machine.index]
                machine.row[b.LIFECYCLE] = SWITCHING
                start_s = self._clock.now
                self._log("switching", machine.index, -1)
                self._clock.call(
                    lambda machine=machine, start_s=start_s: self._end_switch(machine, start_s),  # type: ignore[misc]
                    start_s + switch_s,
                    ROLE_READY,
                    machine.index,
                )

    def _end_switch(self, machine: _Machine, start_s: float) -> None:
        if self.recorder is not None:
            self.recorder.switch(machine.index, start_s, self._clock.now)
        self._become_ready(machine)

    def _become_ready(self, machine: _Machine) -> None:
        machine.row[b.LIFECYCLE] = READY
        machine.lost_phases = ()
        self._log("ready", machine.index, -1)
        self._offer_room(machine)

    def _log(self, kind: str, machine: int, request: int) -> None:
        if self.recorder is not None:
            self.recorder.event(self._clock.now, kind, machine, request)

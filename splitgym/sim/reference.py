"""The reference engine: the contract of docs/simulator.md in SimPy, written to be read.

One process brings the arrivals, one ticks, and one runs each machine (`iterations`); caches travel in `transfers`,
roles change in `roles`, and `world` holds the state they share. The engine stops wherever a decision is due:
`advance` runs to it and `decide` answers it.
"""

from __future__ import annotations

from collections.abc import Generator
from functools import partial
from operator import index

import simpy

from splitgym.sim.assignment import book_token_phase, enter_queue
from splitgym.sim.books import Books
from splitgym.sim.clock import ARRIVAL, CONTROL_TICK, FAULT
from splitgym.sim.cluster import Scenario
from splitgym.sim.faults import NOBODY
from splitgym.sim.iterations import SPLITWISE, run_machine
from splitgym.sim.late_choice import choose_token_machine, default_token_machine, go_without
from splitgym.sim.ledger import Meters
from splitgym.sim.outages import change_machine, give_up, may_wait, place_waiting
from splitgym.sim.outside import InvalidDecision as InvalidDecision
from splitgym.sim.outside import MachineState as MachineState
from splitgym.sim.outside import describe_extrapolations, explain_admission, explain_refusal, explain_role
from splitgym.sim.recorder import Recorder
from splitgym.sim.roles import change_role, settle
from splitgym.sim.rows import IN_FLIGHT, RequestRows
from splitgym.sim.vllm import VLLM
from splitgym.sim.world import SimMachine, World
from splitgym.view import ADMIT, PROMPT_END, REFUSE, ROLES, TICK, ClusterView, Decision
from splitgym.view import ARRIVAL as ARRIVAL_DECISION

NEVER_S = float("inf")


Process = Generator[simpy.Event, None, None]


class ReferenceEngine:
    """One run of a scenario.

    Args:
        scenario: what is simulated.
        record: keep the event log and the machines' activity (`recorder`).
    """

    def __init__(self, scenario: Scenario, *, record: bool = False) -> None:
        self.scenario = scenario
        self.pending_request = -1  # whose arrival or prompt end asks for a decision; -1 at a tick
        self._world = World(scenario, record=record)
        self._pending: int | None = None  # kind of the decision that is due
        self._follow_up = False  # after the horizon
        self._tick: simpy.Event | None = None  # the latest
        self._some_held = False  # back, since then
        self._arrivals_over = False
        self._closed_s: float | None = None

        clock = self._world.clock
        clock.process(self._arrivals())
        if scenario.tick_s is not None:
            clock.process(self._ticks(scenario.tick_s))
        for machine in self._world.machines:
            clock.process(run_machine(self._world, machine, VLLM if scenario.cluster.vllm else SPLITWISE))
        self._world.ask = self._ask
        for number, change in enumerate(scenario.faults.changes):
            clock.call(partial(change_machine, self._world, change), change.time_s, FAULT, change.machine, number)

    @property
    def books(self) -> Books:
        """The router's books."""
        return self._world.books

    @property
    def recorder(self) -> Recorder | None:
        """Event log and activity, where they are kept."""
        return self._world.recorder

    @property
    def preemptions(self) -> int:
        """How often a running request lost its cache (discipline `vllm`)."""
        return self._world.preemptions

    @property
    def recomputations(self) -> int:
        """How often a cache's lease ended and its prompt was computed again."""
        return self._world.recomputations

    @property
    def migrations(self) -> int:
        """How often a role change gave a request to another machine."""
        return self._world.migrations

    @property
    def prefix_hit_tokens(self) -> int:
        """Prompt tokens that were in a machine's memory when they were to be computed (prefix caching)."""
        return self._world.prefix_hit_tokens

    @property
    def restarts(self) -> int:
        """How often a request began again because a machine went down."""
        return self._world.restarts

    @property
    def now_s(self) -> float:
        """The present."""
        return self._closed_s if self._closed_s is not None else float(self._world.clock.now)

    # --- driving ------------------------------------------------------------------------------------------------

    def advance(self) -> ClusterView | None:
        """Run to the next decision; ``None`` when the horizon is reached or everything is done."""
        world, horizon_s = self._world, self.scenario.horizon_s
        while self._pending is None:
            if world.awaiting:
                self._ask_for_token_machine()
                continue
            done = self._arrivals_over and world.all_done
            if done or world.clock.peek() > horizon_s or world.clock.peek() == NEVER_S:
                if horizon_s != NEVER_S:
                    self._closed_s = horizon_s
                return None
            self._step()
        return self.view()

    def view(self) -> ClusterView:
        """What may be known for the decision that is due.

        Raises:
            RuntimeError: if none is.
        """
        self._need_pending()
        world, request = self._world, self.pending_request
        if request < 0:
            return world.books.view(TICK, self.now_s, 0, 0.0)
        lengths = world.prompt_tokens[request], world.predicted[request]
        kind = PROMPT_END if self._pending == PROMPT_END else ARRIVAL_DECISION
        view = world.books.view(kind, self.now_s, *lengths, world.slo_class[request])
        if world.cluster.chooses_late:
            world.books.narrow(view.kind, world.outcome.prompt_machine[request])
        return view

    def decide(self, decision: Decision) -> None:
        """Carry out the decision that is due.

        Raises:
            InvalidDecision: if it names what does not exist or is not permitted.
            RuntimeError: if no decision is due.
        """
        self._need_pending()
        if decision.role_changes:
            self.change_roles(decision.role_changes)
        world, request = self._world, self.pending_request
        if decision.admission != ADMIT:
            if refusal := explain_admission(decision.admission, self._pending, self.scenario):
                raise InvalidDecision(refusal)
            self._withhold(request, decision.admission)
        elif request >= 0:
            named = {"prompt": index(decision.prompt_machine), "token": index(decision.token_machine)}
            if world.cluster.chooses_late:
                del named["token" if self._pending == ARRIVAL_DECISION else "prompt"]
            prompt_mask, token_mask, _ = world.books.masks(world.prompt_tokens[request])
            if refusal := explain_refusal(named, prompt_mask, token_mask, world.books.rows):
                raise InvalidDecision(refusal)
            machines = {phase: world.machines[machine] for phase, machine in named.items()}
            if self._pending == PROMPT_END:
                world.awaiting.popleft()
                choose_token_machine(world, request, machines["token"])
            else:
                self._assign(request, machines["prompt"], machines.get("token"))
        self._pending = None
        self.pending_request = -1

    def _withhold(self, request: int, admission: int) -> None:
        """Refuse a request, or hold it back: but not where nothing else is under way or to come."""
        world = self._world
        if admission == REFUSE or not world.clock.holds_besides(self._tick):
            world.fail(request)
            return
        world.log("held", -1, request)
        world.unplaced.append(request)
        self._some_held = True

    def change_roles(self, changes: tuple[tuple[int, int], ...]) -> None:
        """Change roles while a decision is due, without deciding it.

        Raises:
            InvalidDecision: if a machine or role does not exist or the change is not permitted.
            RuntimeError: if no decision is due.
        """
        self._need_pending()
        machines = self._world.machines
        for machine, role in changes:
            exists = 0 <= index(machine) < len(machines) and 0 <= index(role) < len(ROLES)
            if not exists or not self._world.books.masks(0)[2][machine, role]:
                raise InvalidDecision(explain_role(machine, role, self._world.books.rows))
            change_role(self._world, machines[machine], role)

    def finish(self) -> None:
        """After the horizon: nothing more arrives or is decided; what is unfinished is followed for ``drain_s``."""
        self._follow_up = True
        self._pending = None
        world, horizon_s = self._world, self.scenario.horizon_s
        last_s = horizon_s + self.scenario.drain_s
        self._settle_choices()
        while not world.all_done and world.clock.peek() <= last_s and world.clock.peek() != NEVER_S:
            self._step()
        ended_s = float(world.clock.now)
        if horizon_s != NEVER_S:
            unfinished_at_last = world.ledger.unfinished and last_s != NEVER_S
            ended_s = last_s if unfinished_at_last else max(ended_s, horizon_s)
        self._closed_s = ended_s

    def _need_pending(self) -> None:
        if self._pending is None:
            raise RuntimeError("no decision is due: call advance() first")

    def _step(self) -> None:
        if self.scenario.cluster.telemetry is not None:
            self._world.books.scrape(self._world.clock.peek())
        self._world.clock.step()
        if self._world.draining:
            settle(self._world)
        if self._follow_up:
            self._settle_choices()

    # --- what is left behind ------------------------------------------------------------------------------------

    def meters(self) -> Meters:
        """Running totals up to now."""
        return self._world.ledger.meters(self.now_s)

    def state(self) -> list[MachineState]:
        """The machines as they are."""
        return [
            MachineState(
                machine.role_name,
                machine.lifecycle_name,
                len(machine.queue),
                machine.running_prompts,
                len(machine.decodes) + len(machine.joining),
                machine.kv_used_tokens,
                machine.kv_capacity_tokens,
            )
            for machine in self._world.machines
        ]

    def extrapolations(self) -> tuple[str, ...]:
        """Where iterations left the range in which their latency law was measured, a line for each profile."""
        largest = [machine.largest for machine in self._world.machines]
        return describe_extrapolations(self.scenario.cluster, largest)

    def rows(self) -> RequestRows:
        """One row for each request that has arrived."""
        return self._world.rows(self.now_s)

    # --- arrivals and ticks -------------------------------------------------------------------------------------

    def _arrivals(self) -> Process:
        world = self._world
        for request, arrival_s in enumerate(world.arrival_s):
            if arrival_s > self.scenario.horizon_s:
                break
            yield world.clock.at(arrival_s, ARRIVAL, request=request)
            if self._follow_up:
                break
            world.books.arrived(arrival_s, world.prompt_tokens[request], world.predicted[request])
            world.ledger.on_arrival(request, arrival_s)
            world.log("arrival", -1, request)
            deadline_s = world.deadline_s[request]
            if deadline_s != NEVER_S:
                world.clock.call(partial(give_up, world, request), arrival_s + deadline_s, FAULT, NOBODY, request)
            self._ask(request)
        self._arrivals_over = True

    def _ask(self, request: int) -> None:
        world = self._world
        if world.outcome.status[request] != IN_FLIGHT:
            return
        if self._fits_somewhere(request) and not self._follow_up:
            self._pending = ARRIVAL_DECISION
            self.pending_request = request
            world.note_hits(request)
        elif self._follow_up or may_wait(world):
            world.unplaced.append(request)
        else:
            world.fail(request)

    def _ticks(self, tick_s: float) -> Process:
        tick = 1
        while not self._follow_up:
            self._tick = self._world.clock.at(tick * tick_s, CONTROL_TICK)
            yield self._tick
            stuck = self._world.clock.peek() == NEVER_S and not self._some_held  # nothing but this process is left
            if self._follow_up or stuck:
                return
            if self._some_held:
                self._some_held = False
                place_waiting(self._world)
            self._pending = TICK
            self._world.note_hits(-1)
            tick += 1

    def _ask_for_token_machine(self) -> None:
        world = self._world
        request = world.awaiting[0]
        if default_token_machine(world, request) is None:
            world.awaiting.popleft()
            go_without(world, request)
        else:
            self._pending = PROMPT_END
            self.pending_request = request
            world.note_hits(-1)

    def _settle_choices(self) -> None:
        """After the horizon nobody is asked."""
        world = self._world
        while world.awaiting:
            request = world.awaiting.popleft()
            machine = default_token_machine(world, request)
            if machine is None:
                go_without(world, request)
            else:
                choose_token_machine(world, request, machine)

    def _fits_somewhere(self, request: int) -> bool:
        world, need = self._world, self._world.whole_tokens[request]
        prompt_mask, token_mask, _ = world.books.masks(world.prompt_tokens[request])
        return bool(prompt_mask.any()) and any(
            machine.kv_capacity_tokens >= need for machine in world.machines if token_mask[machine.index]
        )

    def _assign(self, request: int, prompt: SimMachine, token: SimMachine | None) -> None:
        world = self._world
        world.outcome.prompt_machine[request] = prompt.index
        if token is not None:
            world.outcome.token_machine[request] = token.index
        world.log("assigned", prompt.index, request)
        if world.need_here(prompt, request) > prompt.kv_capacity_tokens or (
            token is not None and world.whole_tokens[request] > token.kv_capacity_tokens
        ):
            world.fail(request)
            return
        enter_queue(world, request, prompt, int(world.books.arrays.hits[prompt.index]))
        if token is not None:
            book_token_phase(world, request, token)

"""The compiled engine: the contract of docs/simulator.md in Numba, equal to the reference engine to the last bit."""

from __future__ import annotations

import copy
from operator import index
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from splitgym.jit import announce
from splitgym.sim.books import Books
from splitgym.sim.cluster import Scenario
from splitgym.sim.compiled import entries
from splitgym.sim.compiled.arena import Arena
from splitgym.sim.compiled.kernel import Kernel
from splitgym.sim.compiled.late_choice import choices_at
from splitgym.sim.compiled.leases import leases_at
from splitgym.sim.compiled.log import hand_over
from splitgym.sim.compiled.loop import DUE, INVALID, LOG_IS_FULL, OVER, advance_at
from splitgym.sim.compiled.machine import chunked_at
from splitgym.sim.compiled.memory import receiving_at
from splitgym.sim.compiled.migration import migration_at
from splitgym.sim.compiled.network import links_at
from splitgym.sim.compiled.notes import scrapes_at
from splitgym.sim.compiled.outages import outages_at
from splitgym.sim.compiled.pointers import address_of
from splitgym.sim.compiled.prefix import prefixes_at
from splitgym.sim.compiled.roles import roles_at
from splitgym.sim.compiled.slots import ADVANCE_SIGNATURE, PART_SIGNATURE, run_rows
from splitgym.sim.compiled.state import NO_DECISION, State, new_state, rows_of, size_of
from splitgym.sim.ledger import Meters
from splitgym.sim.outside import (
    InvalidDecision,
    MachineState,
    describe_extrapolations,
    explain_admission,
    explain_refusal,
    explain_role,
)
from splitgym.sim.recorder import Recorder
from splitgym.sim.rows import RequestRows
from splitgym.sim.telemetry import new_reports
from splitgym.view import ADMIT, LIFECYCLES, PROMPT_END, REFUSE, ROLES, ClusterView, Decision


class Snapshot(NamedTuple):
    """A state to go back to."""

    arrays: tuple[npt.NDArray[Any], ...]
    recorder: Recorder | None


class CompiledEngine:
    """One run of a scenario.

    Args:
        scenario: what is simulated.
        record: keep the event log and the machines' activity (`recorder`).

    Attributes:
        addresses: where the run lies, for compiled code (`splitgym.sim.compiled.slots`).
    """

    def __init__(self, scenario: Scenario, *, record: bool = False) -> None:
        self.scenario = scenario
        zeros = Arena(size_of(scenario)).zeros
        self.books = Books(scenario.cluster, zeros, new_reports(scenario.cluster, scenario.seed, zeros))
        self.recorder = Recorder() if record else None
        self._desk = self.books.arrays
        self._state: State = new_state(scenario, self.books, record=record, zeros=zeros)
        self._run = self._state.run[0]
        announce("loop.advance_at")
        self.addresses = run_rows(self._state, self._desk, self._code())
        self._unchanged = np.full(scenario.cluster.num_machines, -1, np.int64)

    @property
    def now_s(self) -> float:
        """The present."""
        closed_s = float(self._run["closed_s"])
        return closed_s if closed_s == closed_s else float(self._run["now_s"])

    @property
    def pending_request(self) -> int:
        """Whose arrival or prompt end asks for a decision; -1 at a tick."""
        return int(self._run["pending_request"])

    @property
    def preemptions(self) -> int:
        """How often a running request lost its cache (discipline `vllm`)."""
        return int(self._run["preemptions"])

    @property
    def recomputations(self) -> int:
        """How often a cache's lease ended and its prompt was computed again."""
        return int(self._run["recomputations"])

    @property
    def migrations(self) -> int:
        """How often a role change gave a request to another machine."""
        return int(self._run["migrations"])

    @property
    def prefix_hit_tokens(self) -> int:
        """Prompt tokens that were in a machine's memory when they were to be computed (prefix caching)."""
        return int(self._run["prefix_hit_tokens"])

    @property
    def restarts(self) -> int:
        """How often a request began again because a machine went down."""
        return int(self._run["restarts"])

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Copied or loaded: its arrays lie elsewhere now."""
        self.__dict__.update(state)
        self._run = self._state.run[0]
        self.addresses = run_rows(self._state, self._desk, self._code())

    def _code(self) -> list[int]:
        """Where the parts of the code lie, 0 for those that this run does not need."""
        cluster = self.scenario.cluster
        others = (
            (roles_at, True),
            (receiving_at, True),
            (chunked_at, bool(cluster.vllm)),
            (links_at, cluster.transfer.is_shared),
            (prefixes_at, self.scenario.caches_prefixes),
            (scrapes_at, cluster.telemetry is not None),
            (leases_at, cluster.transfer.kv_lease_s is not None),
            (migration_at, cluster.migrate),
            (outages_at, self.scenario.is_disturbed),
            (choices_at, cluster.chooses_late),
        )
        return [
            address_of(advance_at, ADVANCE_SIGNATURE),
            *(address_of(part, PART_SIGNATURE) if is_needed else 0 for part, is_needed in others),
        ]

    # --- driving ------------------------------------------------------------------------------------------------

    def advance(self) -> ClusterView | None:
        """Run to the next decision; ``None`` when the horizon is reached or everything is done."""
        status = LOG_IS_FULL
        while status == LOG_IS_FULL:
            status = entries.advance_to_view(self.addresses)
            self._hand_over()
        return self._shown() if status == DUE else None

    def view(self) -> ClusterView:
        """What may be known for the decision that is due.

        Raises:
            RuntimeError: if none is.
        """
        self._need_pending()
        entries.show(self.addresses)
        return self._shown()

    def decide(self, decision: Decision) -> None:
        """Carry out the decision that is due.

        Raises:
            InvalidDecision: if it names what does not exist or is not permitted.
            RuntimeError: if no decision is due.
        """
        self._need_pending()
        if decision.role_changes:
            self.change_roles(decision.role_changes)
        if decision.admission != ADMIT:
            if refusal := explain_admission(decision.admission, int(self._run["pending"]), self.scenario):
                raise InvalidDecision(refusal)
            entries.withhold(self.addresses, decision.admission == REFUSE)
            self._hand_over()
            return
        prompt, token = index(decision.prompt_machine), index(decision.token_machine)
        if not entries.decide(self.addresses, prompt, token, self._unchanged):
            named = {"prompt": prompt, "token": token}
            if self.scenario.cluster.chooses_late:
                del named["prompt" if self._run["pending"] == PROMPT_END else "token"]
            masks = self._desk.prompt_mask, self._desk.token_mask
            raise InvalidDecision(explain_refusal(named, *masks, self._desk.rows))
        self._hand_over()

    def change_roles(self, changes: tuple[tuple[int, int], ...]) -> None:
        """Change roles while a decision is due, without deciding it.

        Raises:
            InvalidDecision: if a machine or role does not exist or the change is not permitted.
            RuntimeError: if no decision is due.
        """
        self._need_pending()
        for machine, role in changes:
            if not entries.change(self.addresses, index(machine), index(role)):
                raise InvalidDecision(explain_role(machine, role, self._desk.rows))
            self._hand_over()

    def run_kernels(
        self, decider: tuple[Kernel, Kernel], warmup_decider: tuple[Kernel, Kernel]
    ) -> tuple[ClusterView, Decision] | None:
        """Let compiled heuristics decide to the end, without Python in between.

        Args:
            decider: decides from ``scenario.warmup_s`` on, at arrivals and at ticks.
            warmup_decider: decides before.

        Returns:
            ``None``; or a view and the decision made there, if that is not permitted. It is still due.
        """
        chosen, new_roles = np.zeros(2, np.int64), np.zeros_like(self._unchanged)
        warmup_s = float(self.scenario.warmup_s)
        status = LOG_IS_FULL
        while status == LOG_IS_FULL:
            status = entries.run_kernels(self.addresses, *decider, *warmup_decider, warmup_s, chosen, new_roles)
            self._hand_over()
        if status != INVALID:
            return None
        left = tuple((int(m), int(new_roles[m])) for m in np.flatnonzero(new_roles >= 0))
        return self.view(), Decision(int(chosen[0]), int(chosen[1]), left)

    def finish(self) -> None:
        """After the horizon: nothing more arrives or is decided; what is unfinished is followed for ``drain_s``."""
        last_s = float(self.scenario.horizon_s + self.scenario.drain_s)
        while entries.follow_up(self.addresses, last_s) != OVER:
            self._hand_over()
        self._hand_over()

    def clone_state(self) -> Snapshot:
        """A copy of the state, to come back to with `restore_state`."""
        arrays = tuple(array.copy() for array in self._arrays())
        return Snapshot(arrays, copy.deepcopy(self.recorder))

    def restore_state(self, snapshot: Snapshot) -> None:
        """Go back to a state of this engine, or of another of the same scenario."""
        for array, saved in zip(self._arrays(), snapshot.arrays, strict=True):
            np.copyto(array, saved)
        self.recorder = copy.deepcopy(snapshot.recorder)

    def _arrays(self) -> list[npt.NDArray[Any]]:
        """Each array that changes, once: state and books share some; laws and the like are the scenario's."""
        desk = self._desk
        given = {id(array) for array in (desk.laws, desk.facts, desk.baseline_law, desk.costs, desk.promises)}
        return list({id(array): array for array in (*self._state, *desk) if id(array) not in given}.values())

    def _need_pending(self) -> None:
        if self._run["pending"] == NO_DECISION:
            raise RuntimeError("no decision is due: call advance() first")

    def _shown(self) -> ClusterView:
        return self.books.filled_view(int(self._run["pending"]), self.now_s)

    def _hand_over(self) -> None:
        if self.recorder is not None:
            hand_over(self._state, self.recorder)

    # --- what is left behind ------------------------------------------------------------------------------------

    def meters(self) -> Meters:
        """Running totals up to now."""
        return entries.meters(self.addresses, self.now_s)

    def state(self) -> list[MachineState]:
        """The machines as they are."""
        names = ("queued", "batch_prompts", "decodes", "joining", "kv_used_tokens", "kv_capacity_tokens")
        numbers = zip(*(self._state.machines[name].tolist() for name in names), strict=True)
        roles, lifecycles = self._desk.rows[:, :2].astype(np.int64).T.tolist()
        return [
            MachineState(ROLES[role], LIFECYCLES[lifecycle], queued, prompts, decodes + joining, used, capacity)
            for role, lifecycle, (queued, prompts, decodes, joining, used, capacity) in zip(
                roles, lifecycles, numbers, strict=True
            )
        ]

    def extrapolations(self) -> tuple[str, ...]:
        """Where iterations left the range in which their latency law was measured, a line for each profile."""
        names = ("most_batch_tokens", "most_decodes", "most_context")
        largest = zip(*(self._state.machines[name].tolist() for name in names), strict=True)
        return describe_extrapolations(self.scenario.cluster, list(largest))

    def rows(self) -> RequestRows:
        """One row for each request that has arrived."""
        return rows_of(self._state, self.scenario, self.now_s)

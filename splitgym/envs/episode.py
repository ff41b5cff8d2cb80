"""An episode: a run of a scenario that stops at the learner's decisions and lets others take the rest."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

import numpy as np

from splitgym.errors import SplitgymError
from splitgym.metrics import scorecard
from splitgym.sim.cluster import Scenario
from splitgym.sim.compiled.kernel import Kernel, kernels_of
from splitgym.sim.outside import InvalidDecision
from splitgym.sim.run import DEFAULT_ENGINE, ENGINES, Decider, carry_out, start
from splitgym.view import ARRIVAL, PROMPT_END, TICK, ClusterView, Decision


@dataclass(frozen=True)
class Roster:
    """Who decides what.

    Attributes:
        kind: ``routing`` (the learner names machines), ``repurposing`` (it changes roles) or ``joint`` (both).
        other: decides the rest; ``None`` where there is no rest.
        warmup: decides everything during the scenario's warm-up; ``None``: the other.
        decides: for each of `splitgym.view.DECISION_KINDS`, whether the learner does.
    """

    kind: str
    other: Decider | None = None
    warmup: Decider | None = None
    decides: tuple[bool, bool, bool] = (True, True, True)

    @property
    def first(self) -> Decider | None:
        """Who decides during a warm-up."""
        return self.warmup or self.other

    def kernels(self) -> tuple[Kernel, Kernel, Kernel, Kernel] | None:
        """The other policy at arrivals and ticks, then the warm-up's, where compiled code can ask them all.

        They hold the memory that the policies have had since they were last reset.
        """
        found = [kernels_of(decider) for decider in (self.other or self.first, self.first)]
        return None if found[0] is None or found[1] is None else (*found[0], *found[1])


@dataclass
class Episode:
    """A run of ``scenario``, from one of the learner's decisions to the next.

    Attributes:
        view: what may be known for the learner's decision that is due; ``None`` when the run is over.
        suggested: what the other policy would do about this request (kind ``routing``).
        decisions: the learner's so far. A run is a function of scenario, roster and these.
        waits: do not run to the first decision: somebody else drives the engine.
    """

    scenario: Scenario
    roster: Roster
    record: bool = False
    engine_name: str = DEFAULT_ENGINE  # one of `splitgym.sim.run.ENGINES`
    waits: bool = False
    decisions: list[Decision] = field(default_factory=list)
    suggested: Decision = Decision()  # noqa: RUF009  (frozen)

    def __post_init__(self) -> None:
        self.engine = ENGINES[self.engine_name](self.scenario, record=self.record)
        self._warmup = self.roster.first if self.scenario.warmup_s > 0 else None
        for decider in (self.roster.other, self._warmup):
            if decider is not None:
                start(decider, self.scenario)
        self._no_roles = np.zeros((self.scenario.cluster.num_machines, 3), np.bool_)
        self.view = None if self.waits else self._to_next()

    @property
    def ends_at_horizon(self) -> bool:
        """Whether the end truncates; else the run ends when every request is done."""
        return self.scenario.horizon_s != float("inf")

    @property
    def shown_at_the_end(self) -> tuple[int, int, float]:
        """The kind of decision, the prompt's and the predicted output's length that the last view shows.

        Nothing is due there, so where the learner decides arrivals it is shown one of the scenario's median lengths:
        a value function is asked about truncated states, and learns nothing of states without a request.
        """
        requests = self.scenario.requests
        if self.roster.kind == "repurposing" or len(requests) == 0:
            return TICK, 0, 0.0
        prompt_tokens = int(np.median(requests.prompt_tokens))
        kind = ARRIVAL if self.roster.decides[ARRIVAL] else PROMPT_END
        return kind, prompt_tokens, float(np.median(requests.predicted_output_tokens))

    def decide(self, decision: Decision) -> None:
        """Carry out the learner's decision and run to the next."""
        view, other = self.view, self.roster.other
        assert view is not None
        self.decisions.append(decision)
        if other is None:
            self.engine.decide(decision)
        else:
            carry_out(self.engine, other, view, decision)  # the mistake can only be in the other's head
        self.view = self._to_next()

    def refuse(self, decision: Decision) -> None:
        """Say who decided what is not permitted now.

        Raises:
            SplitgymError: always.
        """
        view = self.engine.view()
        is_warm = self._warmup is None or view.time_s >= self.scenario.warmup_s
        decider = (self.roster.other if is_warm else None) or self.roster.first
        assert decider is not None
        carry_out(self.engine, decider, view, decision)
        raise AssertionError("compiled code refused what Python permits")

    def scorecard(self) -> dict[str, float]:
        """Follow what is unfinished to its end and say what the run was like."""
        self.engine.finish()
        return scorecard(self.engine.rows(), self.scenario, self.engine.meters())

    def _to_next(self) -> ClusterView | None:
        engine, kind, other = self.engine, self.roster.kind, self.roster.other
        while (view := engine.advance()) is not None:
            if self._warmup is not None and view.time_s < self.scenario.warmup_s:
                carry_out(engine, self._warmup, view, self._warmup.decide(view))
            elif self.roster.decides[view.kind] and kind != "routing":
                return view
            else:
                assert other is not None
                if self.roster.decides[view.kind]:
                    return self._ask_first(other, view)
                if kind == "repurposing":  # roles are the learner's
                    decision = other.decide(dataclasses.replace(view, role_mask=self._no_roles))
                    decision = dataclasses.replace(decision, role_changes=())
                else:
                    decision = other.decide(view)
                carry_out(engine, other, view, decision)
        return None

    def _ask_first(self, other: Decider, view: ClusterView) -> ClusterView:
        """``routing``: roles are the other's, machines the learner's."""
        self.suggested = other.decide(view)
        if not self.suggested.role_changes:
            return view
        try:
            self.engine.change_roles(self.suggested.role_changes)
        except InvalidDecision as error:
            raise SplitgymError(
                f"policy {other.name!r} at {view.time_s:.6g} s: {error}; "
                "decide(view) must return a Decision within the view's masks"
            ) from error
        return self.engine.view()

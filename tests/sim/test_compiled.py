"""The compiled engine against the reference engine: equal to the last bit."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Protocol

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from splitgym.errors import SplitgymError
from splitgym.policies.registry import BUILTINS, make_policy
from splitgym.sim.cluster import Cluster, Scenario
from splitgym.sim.compiled import CompiledEngine
from splitgym.sim.outside import InvalidDecision
from splitgym.sim.reference import ReferenceEngine
from splitgym.sim.rows import RequestRows
from splitgym.sim.run import run, start
from splitgym.view import MIXED, PROMPT, TOKEN, ClusterView, Decision
from tests.sim.build import Fixed, Shortest, cluster, requests
from tests.sim.drawn import Random, calibrated_scenarios, scenarios


class Decider(Protocol):
    name: str

    def reset(self, cluster: Cluster, seed: int) -> None: ...

    def decide(self, view: ClusterView) -> Decision: ...


def copied(view: ClusterView) -> list[object]:
    fields = (getattr(view, field.name) for field in dataclasses.fields(view))
    return [value.copy() if isinstance(value, np.ndarray) else value for value in fields]


def assert_same_rows(one: RequestRows, other: RequestRows) -> None:
    for field in dataclasses.fields(one):
        a, b = getattr(one, field.name), getattr(other, field.name)
        np.testing.assert_array_equal(a, b, strict=True, err_msg=field.name)


def assert_same_state(reference: ReferenceEngine, compiled: CompiledEngine) -> None:
    assert compiled.now_s == reference.now_s
    assert compiled.meters() == reference.meters()
    assert compiled.state() == reference.state()
    assert compiled.preemptions == reference.preemptions
    assert compiled.recomputations == reference.recomputations
    assert compiled.migrations == reference.migrations
    assert compiled.prefix_hit_tokens == reference.prefix_hit_tokens
    assert compiled.restarts == reference.restarts
    np.testing.assert_array_equal(compiled.books.rows, reference.books.rows)
    for number, machine in enumerate(reference._world.machines):
        if machine.paging is not None and (cache := machine.paging.cache) is not None:
            used, kept = prefixes_on(compiled, number)
            assert used == sorted((there.users, there.tokens) for there in cache.used.values())
            assert kept == list(cache.kept.values())
    assert compiled.books.potential(compiled.now_s) == reference.books.potential(reference.now_s)


def prefixes_on(engine: CompiledEngine, machine: int) -> tuple[list[tuple[int, int]], list[int]]:
    """Of a machine's copies of prefixes: users and tokens of those in use, and the tokens of those kept, in order."""
    state = engine._state
    used, c = [], int(state.machines["kept_first"][machine])
    for first in state.first_copies - 1:
        while first >= 0:
            copy = state.copies[first]
            if copy["machine"] == machine and copy["users"] > 0:
                used.append((int(copy["users"]), int(copy["tokens"])))
            first = int(copy["next"])
    kept = []
    while c >= 0:
        kept.append(int(state.copies["tokens"][c]))
        c = int(state.copies["after"][c])
    return sorted(used), kept


def assert_same_run(scenario: Scenario, make: Callable[[], Decider], look_every: int = 3) -> None:
    """Both engines side by side, compared at each decision."""
    reference, compiled = ReferenceEngine(scenario, record=True), CompiledEngine(scenario, record=True)
    deciders = make(), make()
    for decider in deciders:
        start(decider, scenario)
    count = 0
    while (expected := reference.advance()) is not None:
        view = compiled.advance()
        assert view is not None
        for a, b in zip(copied(view), copied(expected), strict=True):
            np.testing.assert_array_equal(a, b)
        assert compiled.pending_request == reference.pending_request
        if count % look_every == 0:
            assert_same_state(reference, compiled)
        decision = deciders[0].decide(expected)
        assert deciders[1].decide(view) == decision
        reference.decide(decision)
        compiled.decide(decision)
        count += 1
    assert compiled.advance() is None
    assert_same_state(reference, compiled)
    assert_same_rows(compiled.rows(), reference.rows())
    reference.finish()
    compiled.finish()
    assert_same_state(reference, compiled)
    assert_same_rows(compiled.rows(), reference.rows())
    assert compiled.extrapolations() == reference.extrapolations()
    assert reference.recorder is not None
    assert compiled.recorder is not None
    assert compiled.recorder.digest() == reference.recorder.digest()
    assert compiled.recorder.slices() == reference.recorder.slices()
    assert compiled.recorder.sends == reference.recorder.sends


def assert_same_results(scenario: Scenario, policy: str, warmup: str | None) -> None:
    """Whole runs, heuristics within compiled code."""
    results = [
        run(
            scenario,
            make_policy(policy),
            warmup_policy=make_policy(warmup) if warmup else None,
            engine=engine,
            record=True,
        )
        for engine in ("reference", "compiled")
    ]
    assert_same_rows(results[0].rows, results[1].rows)
    assert results[0].meters == results[1].meters
    assert results[0].extrapolations == results[1].extrapolations
    assert results[0].preemptions == results[1].preemptions
    assert results[0].recomputations == results[1].recomputations
    assert results[0].migrations == results[1].migrations
    assert results[0].restarts == results[1].restarts
    logs = [result.recorder.digest() for result in results if result.recorder is not None]
    assert len(logs) == 2
    assert logs[0] == logs[1]


any_scenario = st.one_of(scenarios(), scenarios(all_at_once=True), calibrated_scenarios())
routing = st.sampled_from([name for name, builtin in BUILTINS.items() if builtin.kind != "pool"])
pooled = st.builds(
    "{}+{}".format, routing, st.sampled_from([name for name, builtin in BUILTINS.items() if builtin.kind == "pool"])
)
any_policy = st.one_of(routing, pooled)


@settings(max_examples=60, deadline=None)
@given(any_scenario, st.integers(0, 2**60), st.sampled_from([0.0, 0.1, 0.6]))
def test_random_decisions(scenario: Scenario, key: int, change: float) -> None:
    assert_same_run(scenario, lambda: Random(key, change))


@settings(max_examples=40, deadline=None)
@given(any_scenario, any_policy)
def test_heuristics_called_from_python(scenario: Scenario, policy: str) -> None:
    assert_same_run(scenario, lambda: make_policy(policy), look_every=50)


@settings(max_examples=60, deadline=None)
@given(any_scenario, any_policy, st.one_of(st.none(), routing))
def test_heuristics_within_the_loop(scenario: Scenario, policy: str, warmup: str | None) -> None:
    assert_same_results(scenario, policy, warmup)


@pytest.mark.thousand
@pytest.mark.timeout(3600)
@settings(max_examples=1000, deadline=None)
@given(any_scenario, any_policy, st.one_of(st.none(), routing), st.integers(0, 2**60), st.sampled_from([0.0, 0.1, 0.6]))
def test_a_thousand_scenarios(scenario: Scenario, policy: str, warmup: str | None, key: int, change: float) -> None:
    assert_same_results(scenario, policy, warmup)
    assert_same_run(scenario, lambda: Random(key, change))


@pytest.mark.parametrize("policy", sorted(BUILTINS))
def test_every_heuristic(policy: str) -> None:
    scenario = busy_scenario()
    assert_same_results(scenario, policy, None)


def busy_scenario() -> Scenario:
    rng = np.random.default_rng(5)
    rows = zip(rng.exponential(0.03, 300).cumsum(), rng.integers(1, 3000, 300), rng.integers(1, 200, 300), strict=True)
    from splitgym.hardware import load_profile

    tested = cluster("pppttm", latency=load_profile("llama2-70b", "h100-80gb").law, kv_capacity_tokens=60_000)
    return Scenario(tested, requests(*rows), horizon_s=8.0, tick_s=0.5)


@pytest.mark.parametrize("policy", ["jsq-requests", "jsq-tokens", "least-kv", "freeness", "lmetric", "splitwise"])
def test_a_mask_that_changes_while_the_machine_does_not(policy: str) -> None:
    """A long prompt fits in the busier machines alone; nothing has happened to the others since the first prompt."""
    tested = cluster("pptt")
    small = dataclasses.replace(tested.machines[0].profile, kv_capacity_override_tokens=1000)
    machines = [
        dataclasses.replace(machine, profile=small if index % 2 else machine.profile)
        for index, machine in enumerate(tested.machines)
    ]
    tested = dataclasses.replace(tested, machines=tuple(machines))
    arrivals = requests((0.0, 10, 20), (0.0, 5000, 20), (0.0, 10, 20), (0.1, 5000, 20), (0.1, 10, 20))
    assert_same_results(Scenario(tested, arrivals), policy, None)


def test_a_log_longer_than_its_buffer() -> None:
    arrivals = requests(*[(0.01 * i, 10, 40) for i in range(300)])
    scenario = Scenario(cluster("pmt"), arrivals, tick_s=None)
    assert_same_run(scenario, Shortest)
    assert_same_results(scenario, "jsq-tokens", None)


def test_a_state_can_be_cloned_and_restored() -> None:
    scenario = busy_scenario()
    engine, policy = CompiledEngine(scenario, record=True), Shortest()
    for _ in range(100):
        view = engine.advance()
        assert view is not None
        engine.decide(policy.decide(view))
    engine.advance()
    snapshot = engine.clone_state()
    outcomes = []
    for engine_again in (engine, engine, CompiledEngine(scenario, record=True)):
        engine_again.restore_state(snapshot)
        view = engine_again.view()
        while view is not None:
            engine_again.decide(policy.decide(view))
            view = engine_again.advance()
        engine_again.finish()
        assert engine_again.recorder is not None
        outcomes.append((engine_again.meters(), engine_again.recorder.digest()))
        assert_same_rows(engine_again.rows(), engine.rows())
    assert outcomes[0] == outcomes[1] == outcomes[2]
    result = run(scenario, policy, engine="reference", record=True)
    assert result.recorder is not None
    assert outcomes[0] == (result.meters, result.recorder.digest())


@pytest.mark.parametrize(
    "decision",
    [
        Decision(7, 1),
        Decision(-1, 1),
        Decision(1, 1),
        Decision(0, 0),
        Decision(0, 9),
        Decision(0, 1, ((0, TOKEN),)),
        Decision(0, 1, ((0, 9),)),
        Decision(0, 1, ((5, TOKEN),)),
        Decision(2, 1, ((2, MIXED), (2, PROMPT), (2, TOKEN))),
    ],
)
def test_both_engines_refuse_alike(decision: Decision) -> None:
    messages = []
    for kind in (ReferenceEngine, CompiledEngine):
        engine = kind(Scenario(cluster("ptt"), requests((0.0, 10, 2))))
        with pytest.raises(RuntimeError, match="advance"):
            engine.decide(decision)
        engine.advance()
        with pytest.raises(InvalidDecision) as caught:
            engine.decide(decision)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]


def test_a_policy_that_errs_is_named() -> None:
    with pytest.raises(SplitgymError, match=r"policy 'fixed', request 0 at 0.5 s: token machine 9 does not exist"):
        run(Scenario(cluster("pt"), requests((0.5, 10, 2))), Fixed([(0, 9)]), engine="compiled")

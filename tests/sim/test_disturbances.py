"""Outages, slow machines and clients that give up: by hand, and what must hold always."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from splitgym.errors import SplitgymError
from splitgym.randomness import Streams
from splitgym.sim import books as b
from splitgym.sim.cluster import Batching, Scenario, Transfer, VllmBatching
from splitgym.sim.faults import Faults, Outage, Straggler, drawn_spans
from splitgym.sim.reference import NEVER_S, ReferenceEngine
from splitgym.sim.rows import ABANDONED, COMPLETED, FAILED, IN_FLIGHT
from splitgym.sim.run import RunResult, run
from splitgym.view import ADMIT, HOLD, REFUSE, TICK, ClusterView, Decision
from tests.sim.build import Fixed, Shortest, cluster, requests
from tests.sim.drawn import Random, calibrated_scenarios, scenarios


def followed(scenario: Scenario, key: int) -> ReferenceEngine:
    """A run of random decisions that goes on until nothing happens any more."""
    engine, policy = ReferenceEngine(scenario, record=True), Random(key)
    policy.reset(scenario.cluster, scenario.seed)
    while (view := engine.advance()) is not None:
        for machine in engine.state():
            assert 0 <= machine.kv_used_tokens <= machine.kv_capacity_tokens
        prefixes_are_counted(engine, view)
        engine.decide(policy.decide(view))
    engine.finish()
    while engine._world.clock.peek() != NEVER_S:
        engine._step()
    return engine


def prefixes_are_counted(engine: ReferenceEngine, view: ClusterView | None = None) -> None:
    """What is kept fits into what is free; a machine that is down has nothing."""
    for number, machine in enumerate(engine._world.machines):
        if machine.paging is None or (cache := machine.paging.cache) is None:
            continue
        assert cache.kept_tokens == sum(cache.kept.values()) <= machine.free_tokens
        assert all(used.users > 0 for used in cache.used.values())
        if machine.lifecycle_name == "down":
            assert not cache.kept
            assert not cache.used
            assert view is None or view["prefix_hit_tokens"][number] == 0


@settings(max_examples=150, deadline=None)
@given(st.one_of(scenarios(), scenarios(all_at_once=True), calibrated_scenarios()), st.integers(0, 2**60))
def test_nothing_is_left_behind(scenario: Scenario, key: int) -> None:
    engine = followed(scenario, key)
    rows, meters = engine.rows(), engine.meters()
    counts = [int((rows.status == code).sum()) for code in (COMPLETED, FAILED, ABANDONED, IN_FLIGHT)]
    assert sum(counts) == len(rows) == meters.arrived
    assert counts[0] == meters.finished
    holds_nothing = (rows.status != IN_FLIGHT) | (rows.prompt_machine < 0)
    assert meters.tokens_out >= rows.output_tokens[rows.status == COMPLETED].sum()
    assert meters.tokens_out <= rows.output_tokens.sum()
    prefixes_are_counted(engine)
    if holds_nothing.all():
        assert not (engine._world.moved or engine._world.on_the_way or engine._world.leases)
        assert all(machine.kv_used_tokens == 0 for machine in engine.state())
        kept = (b.ROLE, b.LIFECYCLE, b.PROMPT_SINCE_S, b.LAW)  # what is no count of work
        assert np.allclose(np.delete(engine.books.rows, kept, axis=1), 0.0, atol=1e-6)  # sums of floats
        assert engine._world.network._sent == engine._world.network._received == [0] * scenario.cluster.num_machines
        for machine in engine._world.machines:
            assert not (machine.queue or machine.joining or machine.inbox or machine.prompts or machine.leaving)
            assert not machine.starting
            assert machine.paging is None or machine.paging.cache is None or not machine.paging.cache.used
            assert len(machine.decodes) == machine.outgoing == machine.put_back == 0


# --- by hand: a prompt takes 1 s, a decode iteration 0.1 s, a transfer nothing ---------------------------------------


ENGINES = pytest.mark.parametrize("engine", ["reference", "compiled"])


def result(scenario: Scenario, policy: Fixed | Shortest, engine: str) -> RunResult:
    return run(scenario, policy, engine=engine, record=True)


def down(*outages: tuple[int, float, float]) -> Faults:
    return Faults(outages=tuple(Outage(*outage) for outage in outages))


def kinds(ran: RunResult, *names: str) -> list[tuple[float, str, int]]:
    assert ran.recorder is not None
    return [(round(e.time_s, 9), e.kind, max(e.machine, e.request)) for e in ran.recorder.events if e.kind in names]


@ENGINES
def test_a_prompt_machine_goes_down_in_its_iteration(engine: str) -> None:
    """The prompt of 1 s begins again elsewhere at 0.4 s, with its first token at 1.4 s."""
    scenario = Scenario(cluster("ppt"), requests((0.0, 10, 3)), tick_s=None, faults=down((0, 0.4, 5.0)))
    ran = result(scenario, Fixed([(0, 2), (1, 2)]), engine)
    assert ran.restarts == 1
    assert ran.rows.prompt_machine[0] == 1
    assert ran.rows.first_token_s[0] == pytest.approx(1.4)
    assert ran.rows.finish_s[0] == pytest.approx(1.6)
    assert kinds(ran, "down", "restart", "up") == [(0.4, "down", 0), (0.4, "restart", 0)]  # over before it is up


@ENGINES
def test_a_token_machine_goes_down_while_it_decodes(engine: str) -> None:
    """First token at 1 s, three more to 1.3 s; then prompt and 4 tokens are computed anew: the 5th is out at 2.35 s."""
    scenario = Scenario(cluster("ptt"), requests((0.0, 10, 8)), tick_s=None, faults=down((1, 1.35, 1.5)))
    ran = result(scenario, Fixed([(0, 1), (0, 2)]), engine)
    rows = ran.rows
    assert rows.first_token_s[0] == pytest.approx(1.0)
    assert rows.tbt_max_s[0] == pytest.approx(2.35 - 1.3)  # the gap across the restart counts
    assert rows.finish_s[0] == pytest.approx(2.35 + 3 * 0.1)
    assert ran.meters.tokens_out == 8
    assert rows.prompt_tokens[0] == 10
    assert rows.output_tokens[0] == 8
    assert kinds(ran, "first_token", "resumed") == [(1.0, "first_token", 0), (2.35, "resumed", 0)]


@ENGINES
def test_the_last_token_comes_from_the_second_prompt_phase(engine: str) -> None:
    scenario = Scenario(cluster("ptt"), requests((0.0, 10, 3)), tick_s=None, faults=down((1, 1.15, 9.0)))
    ran = result(scenario, Fixed([(0, 1), (0, 2)]), engine)
    assert ran.rows.finish_s[0] == pytest.approx(2.15)
    assert ran.rows.tbt_max_s[0] == pytest.approx(2.15 - 1.1)
    assert ran.meters.tokens_out == 3
    assert ran.meters.time_in_system_s == pytest.approx(2.15)
    assert ran.meters.slowdown == pytest.approx(0.5 * 1.0 / 1.0 + 0.5 * 1.15 / 0.2)  # charged as a token phase


@ENGINES
def test_a_token_machine_goes_down_while_the_prompt_runs(engine: str) -> None:
    """The iteration goes on to 1 s, its token is not delivered; then the request begins again."""
    scenario = Scenario(cluster("ptt"), requests((0.0, 10, 2)), tick_s=None, faults=down((1, 0.5, 9.0)))
    ran = result(scenario, Fixed([(0, 1), (0, 2)]), engine)
    assert kinds(ran, "restart", "first_token") == [(1.0, "restart", 0), (2.0, "first_token", 0)]
    assert ran.rows.finish_s[0] == pytest.approx(2.1)
    assert ran.rows.e2e_s[0] == pytest.approx(2.1)  # its arrival is the old one


@ENGINES
@pytest.mark.parametrize("network", ["ideal", "shared"])
@pytest.mark.parametrize("machine", [0, 1])
def test_either_end_of_a_transfer_goes_down(engine: str, network: str, machine: int) -> None:
    """A cache of 100 tokens takes 2 s; at 1.5 s one end goes down. Its one token goes to the second prompt phase."""
    kv_bytes = cluster().model.kv_bytes_per_token
    tested = cluster("pptt", transfer=Transfer(network=network), link_bytes_per_s=kv_bytes * 50.0)
    fault = (0, 1.5, 9.0) if machine == 0 else (2, 1.5, 9.0)
    scenario = Scenario(tested, requests((0.0, 100, 3)), tick_s=None, faults=down(fault))
    ran = result(scenario, Fixed([(0, 2), (1, 3)]), engine)
    assert ran.rows.first_token_s[0] == pytest.approx(1.0)
    assert ran.rows.transfer_end_s[0] == pytest.approx(2.5 + 101 / 50)
    assert ran.rows.finish_s[0] == pytest.approx(2.5 + 101 / 50 + 0.1)
    assert ran.restarts == 1


@ENGINES
def test_a_transfer_given_up_leaves_the_link_to_the_others(engine: str) -> None:
    """Two caches of 100 tokens share a link of 100 tokens/s from 1 s; at 2 s, half way, one client gives up."""
    kv_bytes = cluster().model.kv_bytes_per_token
    tested = cluster("pt", transfer=Transfer(network="shared"), link_bytes_per_s=kv_bytes * 100.0)
    arrivals = dataclasses.replace(requests((0.0, 100, 3), (0.0, 100, 3)), deadline_s=np.array([2.0, np.inf]))
    ran = result(Scenario(tested, arrivals, tick_s=None), Fixed([(0, 1)]), engine)
    assert ran.rows.status.tolist() == [ABANDONED, COMPLETED]
    assert ran.rows.transfer_end_s[1] == pytest.approx(2.0 + 50 / 100)


@ENGINES
def test_no_machine_is_left(engine: str) -> None:
    """Requests wait for the prompt machine: from 0.5 s to 3 s. Each is asked about again, in order."""
    scenario = Scenario(
        cluster("pt"), requests((0.0, 10, 1), (1.0, 10, 1)), tick_s=None, faults=down((0, 0.5, 2.0), (0, 1.5, 3.0))
    )
    ran = result(scenario, Fixed([(0, 1)]), engine)
    assert kinds(ran, "down", "up", "assigned") == [
        (0.0, "assigned", 0),
        (0.5, "down", 0),
        (3.0, "up", 0),
        (3.0, "assigned", 0),
        (3.0, "assigned", 1),
    ]
    assert ran.rows.finish_s.tolist() == [4.0, 4.0]


@ENGINES
def test_a_machine_that_never_comes_back(engine: str) -> None:
    scenario = Scenario(cluster("pt"), requests((0.0, 10, 5)), tick_s=1.0, faults=down((1, 1.05, np.inf)))
    ran = result(dataclasses.replace(scenario, horizon_s=4.0, drain_s=2.0), Fixed([(0, 1)]), engine)
    assert ran.rows.status[0] == IN_FLIGHT
    assert ran.meters.time_in_system_s == pytest.approx(6.0)


@ENGINES
def test_a_role_change_makes_room(engine: str) -> None:
    """The only prompt machine is down; at the tick at 1 s the token machine becomes mixed."""
    scenario = Scenario(cluster("pt"), requests((0.0, 10, 1)), tick_s=1.0, faults=down((0, 0.5, 50.0)))
    ran = result(scenario, Fixed([(0, 1), (1, 1)], {1.0: ((1, 2),)}), engine)
    assert ran.rows.finish_s[0] == pytest.approx(2.0)


@ENGINES
def test_a_switch_is_broken_off(engine: str) -> None:
    """A restart of 3 s from 1 s on is broken off at 2 s; at 5 s the machine is ready in its new role."""
    scenario = Scenario(
        cluster("ppt", switch_s=3.0), requests((0.0, 10, 1), (6.0, 10, 2)), tick_s=1.0, faults=down((1, 2.0, 5.0))
    )
    ran = result(scenario, Fixed([(0, 2), (0, 1)], {1.0: ((1, 1),)}), engine)
    assert kinds(ran, "switching", "ready", "down", "up") == [(1.0, "switching", 1), (2.0, "down", 1), (5.0, "up", 1)]
    assert ran.rows.finish_s[1] == pytest.approx(7.1)


@ENGINES
def test_a_straggler(engine: str) -> None:
    """From 1.05 s to 1.55 s iterations that start take three times as long: 1.1, 1.4, 1.7; then 1.8."""
    faults = Faults(stragglers=(Straggler(1, 1.05, 1.55, 3.0),))
    scenario = Scenario(cluster("pt"), requests((0.0, 10, 5)), tick_s=None, faults=faults)
    ran = result(scenario, Fixed([(0, 1)]), engine)
    assert ran.rows.finish_s[0] == pytest.approx(1.8)
    assert ran.rows.tbt_max_s[0] == pytest.approx(0.3)


@ENGINES
@pytest.mark.parametrize(
    ("deadline_s", "tokens_out"),
    [(0.5, 0), (1.0, 1), (1.15, 2), (9.0, 6)],  # in the prompt, at its end, in a decode, never
)
def test_a_client_gives_up(engine: str, deadline_s: float, tokens_out: int) -> None:
    """An iteration under way goes on; what it makes is not delivered. Of one instant its end comes first."""
    arrivals = dataclasses.replace(requests((0.0, 10, 6)), deadline_s=np.array([deadline_s]))
    ran = result(Scenario(cluster("pt"), arrivals, horizon_s=3.0, drain_s=1.0), Fixed([(0, 1)]), engine)
    assert ran.meters.tokens_out == tokens_out
    assert ran.rows.status[0] == (COMPLETED if deadline_s > 2 else ABANDONED)
    if deadline_s <= 2:  # charged to the end: serving it would have taken 1.5 s
        assert ran.rows.end_s == 4.0
        assert ran.meters.time_in_system_s == pytest.approx(4.0)


@ENGINES
def test_who_gives_up_in_the_queue_lets_others_go_first(engine: str) -> None:
    arrivals = dataclasses.replace(
        requests((0.0, 10, 1), (0.1, 10, 1), (0.2, 10, 1)), deadline_s=np.array([np.inf, 0.5, np.inf])
    )
    tested = cluster("pt", batching=Batching(2048, 1, 4))
    ran = result(Scenario(tested, arrivals, tick_s=None), Fixed([(0, 1)]), engine)
    assert ran.rows.status.tolist() == [COMPLETED, ABANDONED, COMPLETED]
    assert ran.rows.finish_s[2] == pytest.approx(2.0)


@ENGINES
def test_vllm_frees_blocks_at_the_end_of_the_iteration(engine: str) -> None:
    """Two prompts of 64 tokens fill 8 blocks of 16 and one more each; who waits gets in when one client is gone."""
    tested = cluster("m", kv_capacity_tokens=160, batching=VllmBatching(8, 256, 16))
    arrivals = dataclasses.replace(
        requests((0.0, 64, 9), (0.0, 64, 9), (0.0, 64, 9)), deadline_s=np.array([np.inf, 1.25, np.inf])
    )
    ran = result(Scenario(tested, arrivals, tick_s=None), Fixed([(0, 0)]), engine)
    assert ran.rows.status.tolist() == [COMPLETED, ABANDONED, COMPLETED]
    assert ran.rows.prompt_start_s[2] == pytest.approx(1.3)  # decodes at 1.1, 1.2 and, under way at 1.25, 1.3


@ENGINES
def test_nobody_waits_for_what_will_not_finish(engine: str) -> None:
    """The run without a horizon ends with the last request that can finish, whatever faults are still to come."""
    arrivals = dataclasses.replace(requests((0.0, 10, 1), (5.0, 10, 1)), deadline_s=np.array([0.5, 100.0]))
    scenario = Scenario(cluster("pt"), arrivals, faults=down((0, 500.0, 600.0)))
    assert result(scenario, Fixed([(0, 1)]), engine).rows.end_s == pytest.approx(6.0)


@ENGINES
def test_many_restarts_need_no_more_memory(engine: str) -> None:
    """Sixty decodes move from machine to machine: their stretches in the compiled engine are gathered anew."""

    class First(Shortest):
        def decide(self, view):  # type: ignore[no-untyped-def]
            return type(super().decide(view))(int(view.prompt_mask.argmax()), int(view.prompt_mask.argmax()))

    outages = [(m, 20.0 * (m + 1), np.inf) for m in range(9)]
    arrivals = requests(*[(0.01 * i, 10, 3000 + i) for i in range(60)])
    scenario = Scenario(cluster("m" * 10), arrivals, tick_s=None, faults=down(*outages))
    ran = result(scenario, First(), engine)
    assert ran.restarts == 9 * 60
    assert (ran.rows.status == COMPLETED).all()


class Admits(Fixed):
    """Holds back or refuses as told, request by request."""

    def __init__(self, *admissions: int) -> None:
        super().__init__([(0, 1)])
        self.admissions = list(admissions)

    def decide(self, view: ClusterView) -> Decision:
        if view.kind == TICK or (admission := self.admissions.pop(0)) == ADMIT:
            return super().decide(view)
        return Decision(admission=admission)


@ENGINES
def test_a_request_is_held_back(engine: str) -> None:
    """Held back at 0.2 s and again at 1 s, it begins at the tick at 2 s, with the one that comes then."""
    tested = dataclasses.replace(cluster("pt"), admission=True)
    scenario = Scenario(tested, requests((0.2, 10, 1), (2.0, 10, 1)), tick_s=1.0)
    ran = result(scenario, Admits(HOLD, HOLD, ADMIT, ADMIT), engine)
    assert kinds(ran, "held", "assigned") == [
        (0.2, "held", 0),
        (1.0, "held", 0),
        (2.0, "assigned", 1),
        (2.0, "assigned", 0),
    ]
    assert ran.rows.finish_s.tolist() == [3.0, 3.0]
    assert ran.meters.time_in_system_s == pytest.approx(2.8 + 1.0)


@ENGINES
def test_who_refuses_is_charged_to_the_end(engine: str) -> None:
    tested = dataclasses.replace(cluster("pt"), admission=True)
    scenario = Scenario(tested, requests((0.0, 10, 1), (0.5, 10, 1)), horizon_s=3.0, drain_s=1.0)
    ran = result(scenario, Admits(REFUSE, ADMIT), engine)
    assert ran.rows.status.tolist() == [FAILED, COMPLETED]
    assert ran.meters.time_in_system_s == pytest.approx(4.0 + 1.0)


@ENGINES
def test_nobody_holds_back_for_ever(engine: str) -> None:
    """Where nothing else is under way or to come, to hold back is to refuse."""
    tested = dataclasses.replace(cluster("pt"), admission=True)
    scenario = Scenario(tested, requests((0.0, 10, 1), (0.5, 10, 1)), tick_s=1.0)
    ran = result(scenario, Admits(*[HOLD] * 4), engine)
    assert ran.rows.status.tolist() == [FAILED, FAILED]
    assert kinds(ran, "held", "failed") == [(0.0, "held", 0), (0.5, "failed", 1), (1.0, "failed", 0)]


@ENGINES
@pytest.mark.parametrize(
    ("admission", "permitted", "tick_s", "message"),
    [
        (REFUSE, False, 1.0, "may not be refused here"),
        (HOLD, False, 1.0, "may not be held back here"),
        (HOLD, True, None, "at the next control tick, and there are none"),
        (7, True, 1.0, "admission 7 does not exist"),
    ],
)
def test_what_a_card_does_not_permit(
    engine: str, admission: int, permitted: bool, tick_s: float | None, message: str
) -> None:
    tested = dataclasses.replace(cluster("pt"), admission=permitted)
    scenario = Scenario(tested, requests((0.0, 10, 1)), tick_s=tick_s)
    with pytest.raises(SplitgymError, match=message):
        result(scenario, Admits(admission), engine)


def test_outages_of_a_machine_are_one_where_they_overlap() -> None:
    plan = down((0, 1.0, 3.0), (0, 2.0, 2.5), (0, 3.0, 4.0), (0, 6.0, np.inf), (1, 2.0, 5.0))
    assert [(c.time_s, c.machine, c.kind) for c in plan.changes] == [
        (1.0, 0, 0),
        (2.0, 1, 0),
        (4.0, 0, 1),
        (5.0, 1, 1),
        (6.0, 0, 0),
    ]
    slow = Faults(stragglers=(Straggler(0, 1.0, 5.0, 2.0), Straggler(0, 2.0, 3.0, 4.0)))
    assert [(c.time_s, c.factor) for c in slow.changes] == [(1.0, 2.0), (2.0, 4.0), (3.0, 2.0), (5.0, 1.0)]


def test_drawn_outages_have_their_means() -> None:
    """Availability mtbf/(mtbf + mttr) within 3 %: some 9,000 outages of which each length has a spread of its mean."""
    streams = Streams(3)
    spans = list(drawn_spans(streams, "outages", 0, 100.0, 10.0, "exponential", 1e6))
    assert sum(to_s - from_s for from_s, to_s in spans) / 1e6 == pytest.approx(10 / 110, rel=0.03)
    shorter = list(drawn_spans(streams, "outages", 0, 100.0, 10.0, "exponential", 1e5))
    assert spans[: len(shorter)] == shorter
    fixed = list(drawn_spans(streams, "outages", 0, 100.0, 10.0, "fixed", 1e3))
    assert all(to_s - from_s == pytest.approx(10.0) for from_s, to_s in fixed)
    assert fixed[1][0] - fixed[0][1] == pytest.approx(100.0)


def test_a_machine_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match="machine 2 does not exist"):
        Scenario(cluster("pt"), requests((0.0, 10, 1)), faults=down((2, 0.0, 1.0)))

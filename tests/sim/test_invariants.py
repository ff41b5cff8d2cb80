"""What must hold always: conservation, memory, Little's law; and closed-form queues."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from splitgym.hardware import LatencyLaw
from splitgym.randomness import Streams
from splitgym.sim import books as b
from splitgym.sim.cluster import Batching, Scenario
from splitgym.sim.reference import ReferenceEngine
from splitgym.sim.rows import ABANDONED, COMPLETED, FAILED
from splitgym.sim.run import run
from splitgym.view import ARRIVAL, TICK, Decision
from splitgym.workload import Requests
from tests.sim.build import Fixed, cluster, law, requests
from tests.sim.drawn import Random, scenarios


@settings(max_examples=150, deadline=None)
@given(scenarios(), st.integers(0, 2**60))
def test_conservation(scenario: Scenario, key: int) -> None:
    engine, policy = ReferenceEngine(scenario, record=True), Random(key)
    while (view := engine.advance()) is not None:
        for machine in engine.state():
            assert 0 <= machine.kv_used_tokens <= machine.kv_capacity_tokens
        is_early = scenario.cluster.chooses_late and view.kind == ARRIVAL
        assert view.kind == TICK or (view.prompt_mask.any() and view.token_mask.any() != is_early)
        assert scenario.faults.outages or (view.prompt_mask.any() and view.token_mask.any() != is_early)
        engine.decide(policy.decide(view))
    engine.finish()
    rows = engine.rows()
    assert len(rows) == len(scenario.requests)
    done = rows.status == COMPLETED
    over = done | (rows.status == FAILED) | (rows.status == ABANDONED)
    assert (done <= (rows.e2e_s <= scenario.requests.deadline_s)).all()
    # Tokens out equal tokens asked, and every time is in order.
    assert engine.meters().finished == done.sum()
    assert engine.meters().tokens_out >= rows.output_tokens[done].sum()
    if done.all():
        assert engine.meters().tokens_out == rows.output_tokens.sum()
    if over.all() and not any(machine.running_prompts + machine.decodes for machine in engine.state()):
        assert all(machine.kv_used_tokens == 0 for machine in engine.state())
        books = engine.books.rows
        kept = (b.ROLE, b.LIFECYCLE, b.PROMPT_SINCE_S, b.LAW)  # what is no count of work
        assert np.allclose(np.delete(books, kept, axis=1), 0.0, atol=1e-6)  # sums of floats, taken apart again
    r = rows.take(done)
    assert (r.prompt_start_s >= r.arrival_s).all()
    assert engine.restarts or (r.first_token_s > r.prompt_start_s).all()
    assert (r.finish_s >= r.first_token_s).all()
    sent = ~np.isnan(r.transfer_end_s)
    is_late = scenario.cluster.first_token == "token_machine"
    needs_sending = (r.prompt_machine != r.token_machine) & ((r.output_tokens > 1) | is_late)
    if not engine.migrations and not engine.restarts:
        if done.all() and not scenario.cluster.chooses_late:  # there a cache may be dropped that stayed in place
            assert engine.recomputations == (needs_sending & ~sent).sum()
        assert (needs_sending[sent]).all()
    if not engine.restarts:
        assert ((r.transfer_end_s[sent] > r.first_token_s[sent]) != is_late).all()
    several = r.output_tokens > 1
    assert (r.tbt_max_s[several] >= r.tbt_mean_s[several] - 1e-9).all()
    # Little's law on the whole run: ∫N dt is the sum of times in the system.
    until = np.where(done, rows.finish_s, rows.end_s)
    assert engine.meters().time_in_system_s == pytest.approx((until - rows.arrival_s).sum(), rel=1e-9, abs=1e-9)
    # Energy is that of both phases and, between iterations, of idling.
    assert engine.recorder is not None
    meters, idle_j = engine.meters(), 0.0
    assert min(meters.prompt_energy_j, meters.token_energy_j) >= 0
    for number, machine in enumerate(scenario.cluster.machines):
        signs = {"iteration_start": -1.0, "iteration_end": 1.0}
        own = (e for e in engine.recorder.events if e.machine == number)
        idle_j += machine.profile.power.idle_w * (rows.end_s - sum(signs.get(e.kind, 0.0) * e.time_s for e in own))
    if done.all():
        summed_j = meters.prompt_energy_j + meters.token_energy_j + idle_j
        broken_j = summed_j - meters.energy_j  # iterations that broke off are charged whole, and not in the log
        assert broken_j > -1e-3 - 1e-9 * summed_j  # what rounding leaves
        if not scenario.faults.outages:
            assert meters.energy_j == pytest.approx(summed_j, rel=1e-9, abs=1e-3)
            assert meters.idle_energy_j == pytest.approx(idle_j, rel=1e-6, abs=1e-2)  # a difference of large sums
    # No machine runs two iterations at once.
    for machine in range(scenario.cluster.num_machines):
        starts = [e.time_s for e in engine.recorder.events if e.kind == "iteration_start" and e.machine == machine]
        ends = [e.time_s for e in engine.recorder.events if e.kind == "iteration_end" and e.machine == machine]
        assert all(end <= start for end, start in zip(ends, starts[1:], strict=False))


@settings(max_examples=20, deadline=None)
@given(scenarios(), st.integers(0, 2**60))
def test_same_scenario_same_log(scenario: Scenario, key: int) -> None:
    digests = set()
    for _ in range(2):
        result = run(scenario, Random(key), record=True)
        assert result.recorder is not None
        digests.add(result.recorder.digest())
        run(scenario, Random(key + 1))  # another in between
    assert len(digests) == 1


def test_books_predict_the_potential_of_a_lone_request() -> None:
    scenario = Scenario(cluster("pt"), requests((0.0, 10, 11)), tick_s=0.4)
    engine = ReferenceEngine(scenario)
    view = engine.advance()
    assert view is not None
    engine.decide(Decision(0, 1))
    # alone on the baseline machine: ½ for each phase, so 1 is to come; after 0.4 of 1 s, half of that share less
    assert engine.books.potential(0.0) == pytest.approx(1.0)
    engine.advance()
    assert engine.books.potential(engine.now_s) == pytest.approx(1.0 - 0.5 * 0.4)


def _queue(rate: float, prompt_tokens: np.ndarray, seed: int) -> Requests:
    count = len(prompt_tokens)
    gaps_s = Streams(seed).generator("arrivals").exponential(1 / rate, count)
    return Requests(np.cumsum(gaps_s), prompt_tokens, np.ones(count, np.int64), np.ones(count))


@pytest.mark.parametrize("load", [0.3, 0.7])
def test_mean_wait_of_m_d_1(load: float) -> None:
    """ρ s / (2 (1 − ρ)); within 4 % with 100,000 requests (the estimator's own spread at ρ = 0.7 is about 1.3 %)."""
    service_s = 0.01
    arrivals = _queue(load / service_s, np.full(100_000, 10), 1)
    tested = cluster("pt", latency=law(service_s, 1.0), batching=Batching(2048, 1, 4))
    rows = run(Scenario(tested, arrivals, tick_s=None), Fixed([(0, 1)])).rows
    wait_s = (rows.prompt_start_s - rows.arrival_s).mean()
    assert wait_s == pytest.approx(load * service_s / (2 * (1 - load)), rel=0.04)


def test_mean_wait_of_m_g_1() -> None:
    """Pollaczek-Khinchine, λ E[S²] / (2 (1 − ρ)), for exponential lengths with batching off; within 5 %."""
    rng = Streams(2).generator("lengths")
    prompt_tokens = np.ceil(rng.exponential(1000, 100_000)).astype(np.int64)
    linear = LatencyLaw(
        decode_points=((1, 0.0),),
        batch_points=((0, 0.0), (1_000_000, 100.0)),
        decode_context_s=0.0,
        mixed_context_s=0.0,
        mixed_decode_s=0.0,
        attention_s=0.0,
    )
    rate = 6.0  # ρ = 0.6
    tested = cluster("pt", latency=linear, batching=Batching(2048, 1, 4), kv_capacity_tokens=10**9)
    rows = run(Scenario(tested, _queue(rate, prompt_tokens, 2), tick_s=None), Fixed([(0, 1)])).rows
    service_s = prompt_tokens * 1e-4
    expected_s = rate * (service_s**2).mean() / (2 * (1 - rate * service_s.mean()))
    assert (rows.prompt_start_s - rows.arrival_s).mean() == pytest.approx(expected_s, rel=0.05)

"""Discipline `vllm`: cases computed by hand, a plain scheduler beside it, and what must always hold."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from splitgym.hardware import load_profile
from splitgym.sim.cluster import Cluster, Scenario, Transfer, VllmBatching
from splitgym.sim.compiled import CompiledEngine
from splitgym.sim.reference import ReferenceEngine
from splitgym.sim.rows import COMPLETED
from splitgym.sim.run import run
from splitgym.view import ClusterView
from splitgym.workload import Requests
from tests.sim.build import Fixed, Shortest, cluster, law, requests
from tests.sim.drawn import Random, scenarios, vllm_settings, with_prefixes
from tests.sim.plain_vllm import PlainVllm

engines = pytest.mark.parametrize("engine", ["reference", "compiled"])


def small(roles: str, batching: VllmBatching, capacity: int = 100_000) -> Cluster:
    return cluster(roles, batching=batching, kv_capacity_tokens=capacity)


@engines
def test_a_prompt_in_chunks_beside_a_decode(engine: str) -> None:
    """Prompts 6 and 12, 10 tokens an iteration: 6 + 4 until 1 s, decode + 8 until 2 s, two decodes until 2.1 s."""
    arrivals = requests((0.0, 6, 3), (0.0, 12, 2))
    rows = run(Scenario(small("m", VllmBatching(4, 10, 4)), arrivals), Fixed([(0, 0)]), engine=engine).rows
    assert rows.prompt_start_s.tolist() == [0.0, 0.0]
    assert rows.first_token_s.tolist() == [1.0, 2.0]
    assert rows.finish_s.tolist() == pytest.approx([2.1, 2.1])


@engines
def test_the_last_admitted_makes_room_and_is_recomputed(engine: str) -> None:
    """Four blocks of 4 tokens. Both prompts of 7 take two blocks; with 9 tokens both need a third at 1.1 s.

    The second loses its cache. The first has its third token at 1.2 s, is done at 1.3 s; the second computes its 9
    tokens anew and has the third token at 2.3 s, the fourth at 2.4 s.
    """
    arrivals = requests((0.0, 7, 4), (0.0, 7, 4))
    result = run(
        Scenario(small("m", VllmBatching(4, 16, 4), 16), arrivals), Fixed([(0, 0)]), engine=engine, record=True
    )
    assert result.rows.first_token_s.tolist() == [1.0, 1.0]
    assert result.rows.finish_s.tolist() == pytest.approx([1.3, 2.4])
    assert result.rows.tbt_max_s.tolist() == pytest.approx([0.1, 1.2])
    assert result.preemptions == 1
    assert result.meters.tokens_out == 8
    assert result.recorder is not None
    lost = [event for event in result.recorder.events if event.kind == "preempted"]
    assert [event[2:] for event in lost] == [(0, 1)]
    assert lost[0].time_s == pytest.approx(1.1)


@engines
def test_a_prompt_waits_until_the_whole_of_it_fits(engine: str) -> None:
    """The first takes 3 of 4 blocks until 1.1 s; the second's 8 tokens need two, though a chunk of 4 would fit."""
    arrivals = requests((0.0, 11, 2), (0.0, 8, 1))
    rows = run(Scenario(small("m", VllmBatching(4, 15, 4), 16), arrivals), Fixed([(0, 0)]), engine=engine).rows
    assert rows.prompt_start_s.tolist() == pytest.approx([0.0, 1.1])


@engines
@pytest.mark.parametrize(("watermark", "start_s"), [(0.0, 0.0), (0.3, 1.3)])
def test_the_watermark_keeps_blocks_free(engine: str, watermark: float, start_s: float) -> None:
    """10 blocks: after the first prompt's 5, the second's 3 leave 2 free, and a watermark of 3 forbids it.

    The first, which is above the watermark itself once it is the only one, is done at 1.3 s.
    """
    arrivals = requests((0.0, 20, 4), (0.0, 12, 1))
    batching = VllmBatching(4, 64, 4, watermark)
    rows = run(Scenario(small("m", batching, 40), arrivals), Fixed([(0, 0)]), engine=engine).rows
    assert rows.prompt_start_s.tolist() == pytest.approx([0.0, start_s])


@engines
def test_a_cache_comes_when_the_blocks_of_its_prompt_are_free(engine: str) -> None:
    """Prompts of 8 reserve 3 of 4 blocks, so the second comes when the first is done: five tokens, four gaps."""
    arrivals = requests((0.0, 8, 5), (0.0, 8, 5))
    rows = run(Scenario(small("pt", VllmBatching(4, 16, 4), 16), arrivals), Fixed([(0, 1)]), engine=engine).rows
    assert rows.first_token_s.tolist() == [1.0, 1.0]
    assert rows.finish_s.tolist() == pytest.approx([1.4, 1.8])
    assert rows.transfer_end_s.tolist() == pytest.approx([1.0, 1.4])


@engines
def test_places_are_taken_in_order(engine: str) -> None:
    """One sequence at a time on the token machine, though both caches are there; the prompt machine takes two."""
    tested = small("pt", VllmBatching(4, 16, 4))
    machines = tested.machines[0], dataclasses.replace(tested.machines[1], batching=VllmBatching(1, 16, 4))
    tested = dataclasses.replace(tested, machines=machines)
    rows = run(Scenario(tested, requests((0.0, 8, 5), (0.0, 8, 5))), Fixed([(0, 1)]), engine=engine).rows
    assert rows.transfer_end_s.tolist() == pytest.approx([1.0, 1.0])
    assert rows.finish_s.tolist() == pytest.approx([1.4, 1.8])


@engines
def test_a_restart_waits_for_what_was_preempted(engine: str) -> None:
    """At 1.15 s a decode waits in the queue without memory; the machine that becomes a token machine serves it first.

    The first is done at 1.3 s, the second at 2.4 s; then the machine restarts for 5 s.
    """
    tested = dataclasses.replace(small("mmm", VllmBatching(4, 16, 4), 16), switch_s=5.0)
    roles: dict[float, tuple[tuple[int, int], ...]] = {1.15: ((0, 1),)}
    arrivals = requests((0.0, 7, 4), (0.0, 7, 4), (20.0, 7, 1))
    result = run(
        Scenario(tested, arrivals, tick_s=1.15), Fixed([(0, 0), (0, 0), (1, 1)], roles), engine=engine, record=True
    )
    assert result.rows.finish_s[:2].tolist() == pytest.approx([1.3, 2.4])
    assert result.recorder is not None
    times = {event.kind: event.time_s for event in result.recorder.events if event.machine == 0}
    assert times["switching"] == pytest.approx(2.4)
    assert times["ready"] == pytest.approx(7.4)


@st.composite
def one_machine(draw: st.DrawFn) -> tuple[Scenario, VllmBatching, int]:
    count = draw(st.integers(1, 50))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    arrival_s = np.cumsum(rng.exponential(1 / draw(st.sampled_from([1.0, 10.0, 1000.0])), count))
    prompt_tokens, output_tokens = rng.integers(1, 300, count), rng.integers(1, 80, count)
    arrivals = Requests(arrival_s, prompt_tokens, output_tokens, np.full(count, 40.0))
    capacity, batching = draw(st.sampled_from([400, 800, 3000, 100_000])), draw(vllm_settings())
    if batching.prefix_caching:
        arrivals = with_prefixes(arrivals, rng, batching.block_size * draw(st.sampled_from([1, 4])))
    latency = load_profile("llama3.1-8b", "rtxpro6000", 1).law
    tested = cluster("m", latency=latency, kv_capacity_tokens=capacity, batching=batching)
    return Scenario(tested, arrivals, tick_s=None), batching, capacity


@settings(max_examples=40, deadline=None)
@given(one_machine())
def test_against_a_plain_scheduler(drawn: tuple[Scenario, VllmBatching, int]) -> None:
    """Equal to the last bit: batches, and so times, are the same ones."""
    scenario, batching, capacity = drawn
    plain = PlainVllm(scenario.cluster.machines[0].profile.law, batching, capacity)
    first_s, last_s = plain.replay(scenario.requests)
    result = run(scenario, Fixed([(0, 0)]))
    np.testing.assert_array_equal(result.rows.first_token_s, first_s)
    np.testing.assert_array_equal(result.rows.finish_s, last_s)
    assert result.preemptions == plain.preemptions
    assert result.prefix_hit_tokens == plain.hit_tokens


@settings(max_examples=60, deadline=None)
@given(scenarios(discipline="vllm"), st.integers(0, 2**60))
def test_everything_ends_where_caches_go_one_way(scenario: Scenario, key: int) -> None:
    """Nobody waits for ever, blocks are whole, within capacity, and given back."""
    engine, policy = ReferenceEngine(scenario), Random(key, change=0.0)
    while (view := engine.advance()) is not None:
        for machine, own in zip(engine.state(), scenario.cluster.vllm, strict=True):
            assert machine.kv_used_tokens % own.block_size == 0
            assert 0 <= machine.kv_used_tokens <= machine.kv_capacity_tokens
        engine.decide(policy.decide(view))
    engine.finish()
    is_undisturbed = not scenario.is_disturbed
    if is_undisturbed and sum(machine.role_name == "mixed" for machine in scenario.cluster.machines) < 2:
        assert (engine.rows().status == COMPLETED).all()
        assert all(machine.kv_used_tokens == 0 for machine in engine.state())


def short_of_memory() -> Scenario:
    arrivals = requests(*[(0.05 * i, 50, 150) for i in range(60)])
    tested = cluster("ptm", latency=law(0.3, 0.05), kv_capacity_tokens=600, batching=VllmBatching())
    return Scenario(tested, arrivals, tick_s=1.0)


def test_preemption_is_common_where_memory_is_short() -> None:
    results = [run(short_of_memory(), Shortest(), engine=engine) for engine in ("reference", "compiled")]
    assert results[0].preemptions == results[1].preemptions > 50
    assert results[0].meters == results[1].meters
    assert results[0].rows.status.tolist() == [COMPLETED] * 60


def test_a_state_in_the_midst_of_preemptions_can_be_restored() -> None:
    engine, policy = CompiledEngine(short_of_memory()), Shortest()
    while (view := engine.advance()) is not None and view.time_s < 20.0:
        engine.decide(policy.decide(view))
    assert view is not None
    assert engine.preemptions > 10
    snapshot, outcomes = engine.clone_state(), []
    for again in (engine, CompiledEngine(short_of_memory())):
        again.restore_state(snapshot)
        due: ClusterView | None = again.view()
        while due is not None:
            again.decide(policy.decide(due))
            due = again.advance()
        outcomes.append((again.meters(), again.preemptions))
    assert outcomes[0] == outcomes[1]
    assert outcomes[0][1] == run(short_of_memory(), policy, engine="reference").preemptions


@engines
def test_the_overhead_of_a_transfer_counts_the_blocks_of_the_cluster(engine: str) -> None:
    """A prompt of 9 is three blocks of 4: 0.3 s after its first token at 1 s, and a decode of 0.1 s."""
    tested = cluster("pt", batching=VllmBatching(block_size=4), transfer=Transfer(overhead_per_block_s=0.1))
    rows = run(Scenario(tested, requests((0.0, 9, 2))), Fixed([(0, 1)]), engine=engine).rows
    assert rows.transfer_end_s.tolist() == pytest.approx([1.3])
    assert rows.finish_s.tolist() == pytest.approx([1.4])


@pytest.mark.parametrize(
    ("settings_", "words"),
    [
        ({"max_num_seqs": 4096}, "max_num_batched_tokens 2048 is below max_num_seqs 4096"),
        ({"block_size": 0}, "block_size 0; give a whole number from 1"),
        ({"watermark": 1.0}, "watermark 1 is no share of the blocks"),
    ],
)
def test_settings_that_cannot_be(settings_: dict[str, float], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        VllmBatching(**settings_)  # type: ignore[arg-type]


def test_clusters_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="serialized"):
        cluster("m", batching=VllmBatching(), transfer=Transfer("layerwise"))
    with pytest.raises(ValueError, match="smaller than one block"):
        cluster("m", batching=VllmBatching(), kv_capacity_tokens=15)
    plain = cluster("m")
    with pytest.raises(ValueError, match=r"need batching\.discipline vllm"):
        dataclasses.replace(plain, machines=(dataclasses.replace(plain.machines[0], batching=VllmBatching()),))

"""Prefix caching: cases worked out by hand, and a production trace."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from splitgym.errors import SplitgymError
from splitgym.hardware import LatencyLaw, load_profile, model_spec
from splitgym.policies import make_policy
from splitgym.sim.cluster import Cluster, Scenario, Transfer, VllmBatching
from splitgym.sim.compiled import CompiledEngine
from splitgym.sim.prefix import PrefixCache, own_name
from splitgym.sim.reference import ReferenceEngine
from splitgym.sim.run import RunResult, run
from splitgym.workload import Prefixes, Requests, read_trace
from tests.sim.build import Fixed, Shortest, cluster, requests

TRACE = Path(__file__).parents[3] / "shared" / "data" / "mooncake" / "conversation_trace.jsonl"
engines = pytest.mark.parametrize("engine", ["reference", "compiled"])

SECOND_A_TOKEN = LatencyLaw(
    decode_points=((1, 0.1),),
    batch_points=((1, 1.0), (100, 100.0)),
    decode_context_s=0.0,
    mixed_context_s=0.0,
    mixed_decode_s=0.0,
    attention_s=0.0,
)
CACHING = VllmBatching(max_num_seqs=8, max_num_batched_tokens=100, block_size=4, prefix_caching=True)


def named(*rows: tuple[float, int, int, list[int]]) -> Requests:
    """Requests of (arrival, prompt tokens, output tokens, names of its blocks of four tokens)."""
    first = np.cumsum([0] + [len(row[3]) for row in rows])
    names = np.array([name for row in rows for name in row[3]], np.int64)
    return dataclasses.replace(requests(*[row[:3] for row in rows]), prefixes=Prefixes(4, first, names))


def alone(kv_capacity_tokens: int = 1000, roles: str = "m", batching: VllmBatching = CACHING) -> Cluster:
    return cluster(roles, latency=SECOND_A_TOKEN, kv_capacity_tokens=kv_capacity_tokens, batching=batching)


def ttft_s(result: RunResult) -> list[float]:
    return (result.rows.first_token_s - result.rows.arrival_s).tolist()


@engines
def test_what_is_there_is_not_computed(engine: str) -> None:
    """A second a token: ten; then the two that are new; then, of a prompt known whole, its last block; then another."""
    arrivals = named((0.0, 10, 1, [1, 2]), (20.0, 10, 1, [1, 2]), (40.0, 8, 1, [1, 2]), (60.0, 12, 1, [1, 3, 4]))
    result = run(Scenario(alone(), arrivals, tick_s=None), Fixed([(0, 0)]), engine=engine)
    assert ttft_s(result) == pytest.approx([10.0, 2.0, 4.0, 8.0])
    assert result.prefix_hit_tokens == 8 + 4 + 4
    without = dataclasses.replace(CACHING, prefix_caching=False)
    result = run(Scenario(alone(batching=without), arrivals, tick_s=None), Fixed([(0, 0)]), engine=engine)
    assert ttft_s(result) == pytest.approx([10.0, 10.0, 8.0, 12.0])
    assert result.prefix_hit_tokens == 0


@engines
def test_the_last_block_released_first_is_given_up_first(engine: str) -> None:
    """Four blocks. The second request takes three, so that of the first's two the last goes: four tokens are left."""
    arrivals = named((0.0, 8, 1, [1, 2]), (20.0, 12, 1, [5, 6, 7]), (40.0, 9, 1, [1, 2]), (60.0, 9, 1, [5, 6]))
    result = run(Scenario(alone(16), arrivals, tick_s=None), Fixed([(0, 0)]), engine=engine)
    # the third takes two blocks more: the third of the second goes, then its second
    assert ttft_s(result) == pytest.approx([8.0, 12.0, 5.0, 5.0])


@pytest.mark.parametrize("kind", [ReferenceEngine, CompiledEngine])
def test_blocks_in_use_are_shared(kind: type[ReferenceEngine] | type[CompiledEngine]) -> None:
    """Ten tokens each, eight of them the same: the second takes one block more, not three; none is left at the end."""
    arrivals = named((0.0, 10, 90, [1, 2]), (15.0, 10, 2, [1, 2]), (17.05, 4, 1, []))
    engine = kind(Scenario(alone(), arrivals, tick_s=None))
    hits, used = [], []
    while (view := engine.advance()) is not None:
        hits.append(int(view["prefix_hit_tokens"][0]))
        used.append(engine.state()[0].kv_used_tokens)
        engine.decide(Shortest().decide(view))
    assert hits == [0, 8, 0]  # the third has no blocks with names
    assert used[0] == 0
    assert used[2] - used[1] == 4  # the first's one token more is in a block that it has
    engine.finish()
    assert engine.state()[0].kv_used_tokens == 0


@engines
def test_a_cache_that_is_sent_is_sent_whole_and_is_its_requests_own(engine: str) -> None:
    """The prompt machine knows the second prompt; its transfer takes as long as the first's."""
    tested = cluster(
        "pt",
        latency=SECOND_A_TOKEN,
        batching=CACHING,
        transfer=Transfer(),
        link_bytes_per_s=10 * cluster("pt").model.kv_bytes_per_token,
    )
    arrivals = named((0.0, 10, 3, [1, 2]), (20.0, 10, 3, [1, 2]))
    result = run(Scenario(tested, arrivals, tick_s=None), Fixed([(0, 1)]), engine=engine)
    assert ttft_s(result) == pytest.approx([10.0, 2.0])
    assert (result.rows.transfer_end_s - result.rows.first_token_s).tolist() == pytest.approx([1.0, 1.0])


def test_the_view_says_what_a_prompt_would_take() -> None:
    arrivals = named((0.0, 10, 1, [1, 2]), (20.0, 10, 1, [1, 2]))
    scenario, policy = Scenario(alone(roles="mm"), arrivals, tick_s=None), make_policy("least-ttft")
    policy.reset(scenario.cluster, 0)
    engine = CompiledEngine(scenario)
    engine.advance()
    engine.decide(Fixed([(0, 0)]).decide(engine.view()))
    view = engine.advance()
    assert view is not None
    assert view["prefix_hit_tokens"].tolist() == [8.0, 0.0]
    assert view["prompt_s"].tolist() == pytest.approx([2.0, 10.0])
    assert policy.decide(view).prompt_machine == 0


@engines
def test_a_preempted_request_finds_its_own_blocks(engine: str) -> None:
    """Nothing is shared, yet recomputation costs next to nothing where its blocks are still there."""
    arrivals = requests(*[(2.0 * i, 12, 30) for i in range(8)])
    results = [
        run(
            Scenario(alone(100, batching=dataclasses.replace(CACHING, prefix_caching=caching)), arrivals, tick_s=None),
            Fixed([(0, 0)]),
            engine=engine,
        )
        for caching in (False, True)
    ]
    assert min(result.preemptions for result in results) > 3
    assert results[1].prefix_hit_tokens > 0
    assert results[1].rows.e2e_s.mean() < 0.9 * results[0].rows.e2e_s.mean()


def test_what_is_ones_own_is_kept_once() -> None:
    """A decode that a role change moved away and later back leaves its blocks twice: the later ones count."""
    cache = PrefixCache(block_size=4, prefix_tokens=0)
    for tokens in (8, 12):
        assert cache.release([], own_name(0), tokens) == 0
    assert cache.kept_tokens == 12
    assert cache.hit_tokens([], own_name(0), 100) == 12
    cache.give_up(0)
    assert cache.kept == {}


def test_blocks_that_do_not_fit() -> None:
    tested = alone(batching=dataclasses.replace(CACHING, block_size=3))
    with pytest.raises(SplitgymError, match=r"block_size 3: .* blocks of 4 tokens; give a divisor"):
        Scenario(tested, named((0.0, 10, 1, [1, 2])))


@pytest.mark.skipif(not TRACE.is_file(), reason="Mooncake's trace is not at ../shared/data/mooncake")
def test_mooncakes_conversations() -> None:
    """The first 3,000 requests on eight machines: 27 % of their tokens are there, and TTFT falls by a quarter."""
    trace = read_trace(TRACE)
    assert trace.prefixes is not None
    rows = np.arange(3000)
    columns = (trace.arrival_s, trace.prompt_tokens, trace.output_tokens, trace.predicted_output_tokens)
    arrivals = Requests(*[column[rows] for column in columns], prefixes=trace.prefixes.take(rows))
    profile = load_profile("llama3.1-70b", "h100-sxm", 8)
    found = {}
    for caching in (False, True):
        tested = dataclasses.replace(
            cluster("m" * 8, batching=VllmBatching(prefix_caching=caching)), model=model_spec("llama3.1-70b")
        )
        machines = tuple(dataclasses.replace(machine, profile=profile) for machine in tested.machines)
        tested = dataclasses.replace(tested, machines=machines, baseline=profile)
        found[caching] = run(Scenario(tested, arrivals, tick_s=None), make_policy("least-ttft"))
    hit_rate = found[True].prefix_hit_tokens / arrivals.prompt_tokens.sum()
    assert hit_rate == pytest.approx(0.27, abs=0.02)  # 37 % of all its blocks were there before, on any machine
    assert np.nanmean(ttft_s(found[True])) < 0.8 * np.nanmean(ttft_s(found[False]))

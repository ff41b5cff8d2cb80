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
from splitgym.sim.faults import Faults, Outage
from splitgym.sim.prefix import PrefixCache, own_name
from splitgym.sim.reference import ReferenceEngine
from splitgym.sim.run import RunResult, run
from splitgym.view import PROMPT, Decision
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
        assert cache.release([], own_name(0), tokens, tokens) == 0
    assert cache.kept_tokens == 12
    assert cache.hit_tokens([], own_name(0), 100) == 12
    cache.give_up(0)
    assert cache.kept == {}


def test_full_blocks_of_ones_own_are_found_where_all_before_is_there() -> None:
    cache = PrefixCache(block_size=4, prefix_tokens=8)
    cache.use([7], own_name(0))
    cache.publish([7], 18)
    assert cache.release([7], own_name(0), 20, 18) == 0  # 8 by name, then 10 of its own
    assert cache.hit_tokens([7], own_name(0), 100) == 16
    assert cache.hit_tokens([], own_name(0), 100) == 0  # as of a cache that was sent here: the first 8 are not its own
    cache.give_up(16)
    assert cache.hit_tokens([7], own_name(0), 100) == 16
    cache.give_up(12)
    assert cache.hit_tokens([7], own_name(0), 100) == 12
    assert cache.release([], own_name(1), 20, 18) == 0  # sent here, whole
    assert cache.hit_tokens([7], own_name(1), 100) == 16
    assert cache.hit_tokens([8], own_name(1), 100) == 16


# --- with outages, and clients that give up ---------------------------------------------------------------------------


def down(*outages: tuple[int, float, float]) -> Faults:
    return Faults(outages=tuple(Outage(*outage) for outage in outages))


def linked(roles: str, tokens_per_s: float, **settings: object) -> Cluster:
    """Machines whose links send that many tokens' caches in a second."""
    link_bytes_per_s = tokens_per_s * cluster().model.kv_bytes_per_token
    tested = cluster(roles, latency=SECOND_A_TOKEN, batching=CACHING, link_bytes_per_s=link_bytes_per_s)
    return dataclasses.replace(tested, **settings)


@pytest.mark.parametrize("kind", [ReferenceEngine, CompiledEngine])
def test_a_machine_that_goes_down_loses_what_it_kept(kind: type[ReferenceEngine] | type[CompiledEngine]) -> None:
    """Machine 0 knows the prompt at 11 s, not at 20 s, and at 40 s again."""
    arrivals = named(*[(time_s, 10, 1, [1, 2]) for time_s in (0.0, 11.0, 20.0, 40.0)])
    engine = kind(Scenario(alone(roles="mm"), arrivals, tick_s=None, faults=down((0, 14.0, 15.0))))
    hits = []
    while (view := engine.advance()) is not None:
        hits.append(view["prefix_hit_tokens"].tolist())
        engine.decide(Decision(0, 0))
    assert hits == [[0.0, 0.0], [8.0, 0.0], [0.0, 0.0], [8.0, 0.0]]
    assert (engine.rows().first_token_s - arrivals.arrival_s).tolist() == pytest.approx([10.0, 2.0, 10.0, 2.0])


@engines
@pytest.mark.parametrize(("prompt_tokens", "names", "hit"), [(10, [], 8), (10, [1, 2], 8), (12, [], 12)])
def test_who_begins_again_finds_full_blocks(engine: str, prompt_tokens: int, names: list[int], hit: int) -> None:
    """A second a token. With three tokens out its token machine goes down: prompt and three are computed anew."""
    down_s = prompt_tokens + 0.25
    arrivals = named((0.0, prompt_tokens, 5, names))
    scenario = Scenario(linked("ptt", 1e6), arrivals, tick_s=None, faults=down((1, down_s, 99.0)))
    result = run(scenario, Fixed([(0, 1), (0, 2)]), engine=engine)
    assert result.prefix_hit_tokens == hit
    next_s = down_s + prompt_tokens + 3 - hit
    assert result.rows.tbt_max_s[0] == pytest.approx(next_s - (prompt_tokens + 0.2), abs=1e-4)  # transfers take 10 µs
    assert result.rows.finish_s[0] == pytest.approx(next_s + 0.1, abs=1e-4)


@engines
def test_what_was_only_reserved_holds_nothing(engine: str) -> None:
    """The cache of 8 tokens, sent from 8 s on, would take 8 s; at 9 s its sender goes down: 9 tokens are computed."""
    scenario = Scenario(linked("pm", 1.0), named((0.0, 8, 3, [])), tick_s=None, faults=down((0, 9.0, 99.0)))
    result = run(scenario, Fixed([(0, 1), (1, 1)]), engine=engine)
    assert result.prefix_hit_tokens == 0
    assert result.rows.finish_s[0] == pytest.approx(9.0 + 9.0 + 0.1)


@engines
def test_who_was_moved_finds_what_it_left(engine: str) -> None:
    """Machine 1 has its cache, sent whole, at 10.5 s, and gives up the token phase at 11.25 s.

    At 11.3 s 9 tokens are out and the 16 in the cache are sent to machine 2, which goes down at 12 s. Machine 1,
    a prompt machine now, has all of the 17 tokens to compute but the last.
    """
    tested = linked("pttt", 3.2, migrate=True)
    scenario = Scenario(tested, named((0.0, 8, 20, [1, 2])), tick_s=0.75, faults=down((2, 12.0, 99.0)))
    policy = Fixed([(0, 1), (1, 3)], roles_at={11.25: ((1, PROMPT),)})
    result = run(scenario, policy, engine=engine)
    assert (result.migrations, result.restarts, result.prefix_hit_tokens) == (1, 1, 16)
    assert result.rows.prompt_start_s[0] == pytest.approx(12.0)
    assert result.rows.transfer_end_s[0] == pytest.approx(13.0 + 17 / 3.2)
    assert result.rows.finish_s[0] == pytest.approx(13.0 + 17 / 3.2 + 10 * 0.1)
    assert result.meters.tokens_out == 20


@engines
def test_who_gives_up_leaves_blocks_to_others(engine: str) -> None:
    """The client is gone at 3 s, the iteration goes on to 8 s: its two blocks are there."""
    arrivals = named((0.0, 8, 5, [1, 2]), (10.0, 9, 1, [1, 2]))
    arrivals = dataclasses.replace(arrivals, deadline_s=np.array([3.0, np.inf]))
    result = run(Scenario(alone(), arrivals, tick_s=None), Fixed([(0, 0)]), engine=engine)
    assert result.rows.first_token_s[1] == pytest.approx(11.0)
    assert result.prefix_hit_tokens == 8


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

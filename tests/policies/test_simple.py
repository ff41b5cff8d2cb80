"""Counting policies, on views made by hand."""

from __future__ import annotations

from collections import Counter

import pytest

from splitgym.randomness import hashed_uniform as plain_hashed_uniform
from splitgym.sim.hashing import hashed_uniform
from splitgym.view import TICK, Decision
from tests.policies.views import view


@pytest.mark.parametrize(("key", "index", "counter"), [(0, 0, 0), (2**53 - 1, 3, 10**9), (123456789, 40, 7)])
def test_compiled_hash_is_the_plain_one(key, index, counter):
    assert hashed_uniform(key, index, counter) == plain_hashed_uniform(key, index, counter)


def test_random_is_uniform_over_the_masks(make):
    policy = make("random", "pmtt")
    seen = [policy.decide(view("pmtt")) for _ in range(6000)]
    prompts = Counter(decision.prompt_machine for decision in seen)
    tokens = Counter(decision.token_machine for decision in seen)
    # Standard deviations are 0.0065 and 0.0061: four of them.
    assert {m: n / 6000 for m, n in prompts.items()} == pytest.approx({0: 0.5, 1: 0.5}, abs=0.026)
    assert {m: n / 6000 for m, n in tokens.items()} == pytest.approx({1: 1 / 3, 2: 1 / 3, 3: 1 / 3}, abs=0.025)


def test_random_draws_depend_on_the_seed_alone(make):
    arrivals = [view("pptt") for _ in range(50)]
    first, again, other = make("random"), make("random"), make("random", seed=1)
    choices = [first.decide(v) for v in arrivals]
    assert choices == [again.decide(v) for v in arrivals]
    assert choices != [other.decide(v) for v in arrivals]


def test_round_robin_skips_who_is_masked(make):
    policy = make("round-robin", "ptpt")
    decisions = [policy.decide(view("ptpt")) for _ in range(3)]
    assert decisions == [Decision(0, 1), Decision(2, 3), Decision(0, 1)]


def test_round_robin_on_mixed_machines_transfers_nothing(make):
    policy = make("round-robin", "mmm")
    assert [policy.decide(view("mmm")) for _ in range(4)] == [Decision(m, m) for m in (0, 1, 2, 0)]


def test_queues_by_requests_and_by_tokens_differ(make):
    waiting = view("pptt", pending_prompts=[1, 3, 0, 0], pending_prompt_tokens=[8000, 900, 0, 0], decodes=[0, 0, 5, 4])
    assert make("jsq-requests").decide(waiting) == Decision(0, 3)
    assert make("jsq-tokens").decide(waiting) == Decision(1, 3)


def test_coming_decodes_count(make):
    assert make("jsq-tokens").decide(view("pptt", decodes=[0, 0, 5, 4], coming_decodes=[0, 0, 0, 3])) == Decision(0, 2)


def test_a_mixed_machine_keeps_its_requests(make):
    idle_mixed = view("pmt", pending_prompt_tokens=[500, 0, 0], decodes=[0, 10, 0])
    assert make("jsq-tokens", "pmt").decide(idle_mixed) == Decision(1, 1)


def test_power_of_two_never_takes_the_fullest_of_three(make):
    policy = make("power-of-two", "pppt")
    loaded = view("pppt", pending_prompt_tokens=[100, 9000, 200, 0])
    chosen = Counter(policy.decide(loaded).prompt_machine for _ in range(300))
    assert set(chosen) == {0, 2}
    assert chosen[0] / 300 == pytest.approx(2 / 3, abs=0.11)  # four standard deviations


def test_least_kv_is_by_share_of_the_memory(make):
    half_full = view("pptt", booked_kv_tokens=[9, 5, 400, 300], kv_capacity_tokens=[1000, 1000, 1000, 500])
    assert make("least-kv").decide(half_full) == Decision(1, 2)


def test_size_interval_keeps_long_prompts_apart(make):
    policy = make("size-interval", "pppt", params={"cutoff_tokens": 1000})
    speeds = {"prompt_tokens_per_s": [5e3, 2e4, 6e3, 1e4]}
    short = [policy.decide(view("pppt", prompt_tokens=300, **speeds)).prompt_machine for _ in range(20)]
    long = [policy.decide(view("pppt", prompt_tokens=900 + 200, **speeds)).prompt_machine for _ in range(5)]
    assert set(long) == {1}
    assert not set(short) & set(long)


def test_nothing_is_routed_at_a_tick(make):
    for name in ("random", "round-robin", "jsq-requests", "jsq-tokens", "power-of-two", "least-kv", "size-interval"):
        assert make(name).decide(view("pptt", kind=TICK)) == Decision()

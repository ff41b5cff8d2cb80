"""Splitwise's scheduler, on views made by hand and in the engine."""

from __future__ import annotations

import numpy as np
import pytest

from splitgym.sim.run import run
from splitgym.view import MIXED, PROMPT, TICK, TOKEN, Decision
from tests.policies.views import view

FULL = 999_500  # 1,101 tokens more do not fit a million
LONG = {"pending_prompt_tokens": [7500, 7600, 0, 0], "waiting_requests": [1, 1, 0, 0]}


def test_two_pools(make):
    seen = view("pptt", pending_prompt_tokens=[700, 600, 0, 0], booked_kv_tokens=[0, 0, 10, 9])
    assert make("splitwise").decide(seen) == Decision(1, 3)


def test_overloaded_prompt_pool_takes_the_idlest_token_machine(make):
    policy = make("splitwise")
    assert policy.decide(view("pptt", decodes=[0, 0, 4, 2], **LONG)) == Decision(3, 2, ((3, MIXED),))


def test_a_long_prompt_alone_is_no_overload(make):
    lone = view("pptt", prompt_tokens=9000, pending_prompts=[1, 1, 0, 0], waiting_requests=[0, 0, 0, 0])
    assert make("splitwise").decide(lone) == Decision(0, 2)


def test_full_token_pool_takes_a_prompt_machine(make):
    seen = view("pptt", booked_kv_tokens=[9, 5, FULL, FULL])
    assert make("splitwise").decide(seen) == Decision(0, 1, ((1, MIXED),))


def test_the_mixed_pool_comes_first(make):
    policy = make("splitwise", "pptt")
    policy.decide(view("pptt"))  # homes are learnt from what is seen
    seen = view("pptm", pending_prompts=[2, 2, 0, 1], decodes=[0, 0, 3, 3], **LONG)
    assert policy.decide(seen) == Decision(3, 2)


def test_mixed_machines_go_home_when_their_foreign_work_is_done(make):
    policy = make("splitwise", "ppttt")
    busy = view("ppmtt", pending_prompts=[0, 0, 1, 0, 0])
    done = view("ppmtt", decodes=[0, 0, 5, 0, 0])
    assert policy.decide(busy) == Decision(0, 3)
    assert policy.decide(done) == Decision(0, 3, ((2, TOKEN),))

    policy = make("splitwise", "pppt")
    busy = view("pmpt", coming_decodes=[0, 1, 0, 0])
    done = view("pmpt", pending_prompts=[0, 1, 0, 0])
    assert policy.decide(busy) == Decision(0, 3)
    assert policy.decide(done) == Decision(0, 3, ((1, PROMPT),))


def test_going_home_happens_at_ticks_too(make):
    assert make("splitwise").decide(view("ppmt", kind=TICK)) == Decision(role_changes=((2, TOKEN),))


def test_no_pool_is_left_empty_by_going_home(make):
    policy = make("splitwise", "ptt")
    assert policy.decide(view("tmm", kind=TICK)).role_changes == ((1, TOKEN),)


def test_machines_born_mixed_stay(make):
    assert make("splitwise", "mmm").decide(view("mmm")) == Decision(0, 0)


def test_where_no_role_may_change_the_own_pool_must_do(make):
    nothing = np.zeros((4, 3), np.bool_)
    assert make("splitwise").decide(view("pptt", role_mask=nothing, **LONG)) == Decision(0, 2)
    seen = view("pptt", booked_kv_tokens=[0, 0, FULL, FULL + 1], role_mask=nothing)
    assert make("splitwise").decide(seen) == Decision(0, 2)


def test_if_nothing_is_found_the_least_loaded_does_both(make):
    policy = make("splitwise", "ppt")
    everywhere = view(
        "pmm", pending_prompt_tokens=[8000, 9000, 7700], pending_prompts=[3, 3, 3], waiting_requests=[1, 1, 1],
        decodes=[0, 2, 2], booked_kv_tokens=[0, FULL, FULL],
    )  # fmt: skip
    assert policy.decide(everywhere) == Decision(2, 2)


def test_published_rule_is_blind_to_slow_decodes_and_the_tuned_one_is_not(make):
    slow = view("pptt", predicted_tbt_s=[0.03, 0.03, 0.09, 0.08])
    assert make("splitwise").decide(slow) == Decision(0, 2)
    tuned = make("splitwise-tuned", params={"tbt_slowdown": 1.5})
    assert tuned.decide(slow) == Decision(0, 0, ((0, MIXED),))


@pytest.mark.parametrize("switch_s", [0.0, 1.0])
def test_in_the_engine_machines_join_the_mixed_pool_and_return(make, switch_s):
    from splitgym.sim.cluster import Scenario
    from tests.sim.build import cluster, requests

    burst = requests(*[(0.01 * i, 1500, 20) for i in range(30)], (200.0, 100, 5))
    scenario = Scenario(cluster("ptt", switch_s=switch_s), burst, tick_s=5.0)
    result = run(scenario, make("splitwise"), record=True)
    assert (result.rows.status == 1).all()
    kinds = [event[1] for event in result.recorder.events if event[2] in (1, 2)]
    assert "role_mixed" in kinds
    assert kinds.count("role_mixed") == kinds.count("role_token")


def test_mixed_pool_moves_machines_at_ticks(make):
    policy = make("mixed-pool")
    assert policy.decide(view("pptt", kind=TICK, pending_prompt_tokens=[9000, 9000, 0, 0])) == Decision(
        role_changes=((2, MIXED),)
    )
    assert policy.decide(view("pptt", kind=TICK, decodes=[0, 0, 70, 65])) == Decision(role_changes=((0, MIXED),))
    hard_pressed = view("ppmt", kind=TICK, pending_prompt_tokens=[6e3, 6e3, 5e3, 0], pending_prompts=[2, 2, 2, 0])
    assert policy.decide(hard_pressed) == Decision()
    relaxed = view("ppmt", kind=TICK, pending_prompt_tokens=[6e3, 1e3, 5e3, 0], pending_prompts=[2, 2, 2, 0])
    assert policy.decide(relaxed) == Decision(role_changes=((2, TOKEN),))

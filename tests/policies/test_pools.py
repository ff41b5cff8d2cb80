"""Pool policies at ticks."""

from __future__ import annotations

import pytest

from splitgym.policies import BasePolicy, Combined, Decision
from splitgym.view import PROMPT, TICK, TOKEN
from tests.policies.views import view

RATES = {"prompt_token_rate": 3e4, "output_token_rate": 100.0}


def test_static_moves_nothing(make):
    assert make("static").decide(view("pptt", kind=TICK, pending_prompt_s=[9, 9, 0, 0])) == Decision()


def test_threshold_moves_the_idlest_machine_of_a_slack_pool(make):
    policy = make("threshold")
    pressed = view("pptt", kind=TICK, pending_prompt_s=[0.5, 0.5, 0, 0], remaining_output_tokens=[0, 0, 90, 80])
    assert policy.decide(pressed) == Decision(role_changes=((3, PROMPT),))


def test_threshold_waits_between_changes(make):
    policy = make("threshold", params={"dwell_s": 10.0})
    crowded = {"decodes": [0, 0, 60, 60]}
    times_s = (5.0, 10.0, 14.9, 15.0)
    moved = [policy.decide(view("pptt", kind=TICK, time_s=t, **crowded)).role_changes for t in times_s]
    assert moved == [((0, TOKEN),), (), (), ((0, TOKEN),)]


def test_threshold_waits_until_the_last_change_is_over(make):
    policy = make("threshold")
    crowded = {"decodes": [0, 0, 60, 60]}
    assert policy.decide(view("pptt", kind=TICK, draining=[0, 0, 1, 0], **crowded)) == Decision()
    assert policy.decide(view("pptt", kind=TICK, switching=[0, 0, 1, 0], **crowded)) == Decision()
    assert policy.decide(view("pptt", kind=TICK, **crowded)) == Decision(role_changes=((0, TOKEN),))


def test_the_hardware_that_suits_the_phase_is_moved(make):
    speeds = {"prompt_tokens_per_s": [2e4, 1e4, 2e4, 1e4], "decode_iteration_s": [0.03, 0.04, 0.03, 0.04]}
    crowded = view("pptt", kind=TICK, decodes=[0, 0, 60, 60], pending_prompt_tokens=[0, 9, 0, 0], **speeds)
    assert make("threshold").decide(crowded).role_changes == ((1, TOKEN),)
    pressed = view("pptt", kind=TICK, pending_prompt_s=[1, 1, 0, 0], remaining_output_tokens=[0, 0, 9, 0], **speeds)
    assert make("threshold").decide(pressed).role_changes == ((2, PROMPT),)


def test_threshold_does_not_rob_a_busy_pool(make):
    both = view("pptt", kind=TICK, pending_prompt_s=[0.5, 0.5, 0, 0], decodes=[0, 0, 60, 60])
    assert make("threshold").decide(both) == Decision()


def test_threshold_does_not_rob_a_pool_that_barely_keeps_up(make):
    crowded = {"decodes": [0, 0, 60, 60]}
    keeps_up = view("pptt", kind=TICK, cluster={"prompt_token_rate": 7900.0}, **crowded)  # of 1e4 left
    barely = view("pptt", kind=TICK, cluster={"prompt_token_rate": 8100.0}, **crowded)
    assert make("threshold").decide(keeps_up).role_changes == ((0, TOKEN),)
    assert make("threshold").decide(barely) == Decision()


def test_threshold_comes_to_the_aid_of_the_pool_under_more_pressure(make):
    both = view("ppttt", kind=TICK, pending_prompt_s=[9, 9, 0, 0, 0], decodes=[0, 0, 60, 60, 60])
    assert make("threshold", "ppttt").decide(both).role_changes == ((2, PROMPT),)


def test_threshold_leaves_the_last_machine(make):
    assert make("threshold", "pt").decide(view("pt", kind=TICK, pending_prompt_s=[9, 0])) == Decision()


def test_proportional_goes_towards_the_rates(make):
    assert make("proportional").decide(view("pttt", kind=TICK, cluster=RATES)) == Decision(role_changes=((1, PROMPT),))
    few_prompts = {"prompt_token_rate": 100.0, "output_token_rate": 2000.0}
    assert make("proportional").decide(view("pppt", kind=TICK, cluster=few_prompts)).role_changes == ((0, TOKEN),)


def test_proportional_rests_at_its_goal(make):
    # 1.5 · 8000/40000 = 0.3 and 960/3200 = 0.3: half of the machines each
    balanced = {"prompt_token_rate": 8e3, "output_token_rate": 960.0}
    assert make("proportional").decide(view("pptt", kind=TICK, cluster=balanced)) == Decision()
    assert make("proportional").decide(view("pptt", kind=TICK)) == Decision()  # nothing arrives: nothing is known


def test_forecast_moves_before_proportional_does(make):
    """Prompt tokens grow by 800 each tick: the forecast asks for a machine while the window does not yet."""
    ticks = [
        view(
            "pptt",
            kind=TICK,
            time_s=5.0 * n,
            cluster={"prompt_token_rate": 8e3 + 800.0 * n, "output_token_rate": 960.0},
        )
        for n in range(1, 31)
    ]
    first = {}
    for name in ("forecast", "proportional"):
        policy = make(name)
        first[name] = next(n for n, tick in enumerate(ticks) if policy.decide(tick).role_changes == ((2, PROMPT),))
    assert first["forecast"] < first["proportional"]


@pytest.mark.parametrize("name", ["static", "mixed-pool", "threshold", "proportional", "forecast"])
def test_pools_do_nothing_at_arrivals(make, name):
    pressed = view("pptt", pending_prompt_s=[0.5, 0.5, 0, 0], pending_prompt_tokens=[1e4, 1e4, 0, 0], cluster=RATES)
    assert make(name).decide(pressed) == Decision()


def test_combined_lets_each_do_its_half(make):
    class Both(BasePolicy):
        def decide(self, view):
            return Decision(0, 1, ((2, PROMPT),))

    assert Both.name == "Both"
    combined = Combined(make("round-robin"), Both())
    assert combined.name == "round-robin+Both"
    assert combined.decide(view("pptt")) == Decision(0, 2)
    assert combined.decide(view("pptt", kind=TICK)) == Decision(role_changes=((2, PROMPT),))

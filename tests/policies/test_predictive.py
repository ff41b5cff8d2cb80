"""Policies that predict, on views made by hand."""

from __future__ import annotations

from splitgym.view import Decision
from tests.policies.views import view


def test_least_ttft_and_least_tbt(make):
    seen = view("pptt", predicted_ttft_s=[0.2, 0.15, 9, 9], predicted_tbt_s=[0.1, 0.1, 0.05, 0.045])
    assert make("least-ttft").decide(seen) == Decision(1, 3)


def test_least_ttft_leaves_a_mixed_machine_whose_decodes_would_suffer(make):
    seen = view("pmt", predicted_ttft_s=[0.25, 0.1, 0.1], predicted_tbt_s=[0.04, 0.07, 0.05])
    assert make("least-ttft", "pmt").decide(seen) == Decision(0, 2)  # 0.07 s exceeds 1.5 x 0.04 s
    seen = view("pmt", predicted_ttft_s=[0.25, 0.1, 0.1], predicted_tbt_s=[0.04, 0.055, 0.05])
    assert make("least-ttft", "pmt").decide(seen) == Decision(1, 1)


def test_least_ttft_makes_do_where_nothing_is_feasible(make):
    seen = view("pptt", predicted_ttft_s=[5, 4, 0, 0], predicted_tbt_s=[0, 0, 0.9, 0.8])
    assert make("least-ttft").decide(seen) == Decision(1, 3)


def test_a_requests_own_promise_counts(make):
    """0.07 s between tokens is beyond 1.5 x 0.04 s, and within a class's 0.1 s; so with TTFT and 0.4 s."""
    seen = {"predicted_ttft_s": [0.25, 0.1, 0.1], "predicted_tbt_s": [0.04, 0.07, 0.05]}
    assert make("least-ttft", "pmt").decide(view("pmt", **seen)) == Decision(0, 2)
    assert make("least-ttft", "pmt").decide(view("pmt", promised=(1.0, 0.1), **seen)) == Decision(1, 1)
    seen = {"predicted_ttft_s": [0.1, 0.29, 0.39, 0, 0], "predicted_tbt_s": [0, 0, 0, 0.059, 0.09]}
    assert make("fullest-feasible", "ppptt").decide(view("ppptt", **seen)) == Decision(1, 3)
    assert make("fullest-feasible", "ppptt").decide(view("ppptt", promised=(0.4, 0.1), **seen)) == Decision(2, 4)
    seen = {"predicted_tbt_s": [0, 0, 0.06, 0.04], "booked_kv_tokens": [0, 0, 10, 20]}
    assert make("splitwise-tuned").decide(view("pptt", **seen)).token_machine == 0  # 1.25 x 0.04 s: it takes one along
    assert make("splitwise-tuned").decide(view("pptt", promised=(1.0, 0.1), **seen)) == Decision(0, 2)


def test_lmetric_multiplies_queue_and_batch(make):
    # (1000 + 1000) x 2 = 4000 against (1000 + 100) x 4 = 4400
    seen = view("pptt", pending_prompt_tokens=[1000, 100, 0, 0], pending_prompts=[1, 3, 0, 0], decodes=[0, 0, 9, 8])
    assert make("lmetric").decide(seen) == Decision(0, 3)


def test_lmetric_weighs_speed(make):
    seen = view(
        "pptt", prompt_tokens_per_s=[1e4, 2e4, 1e4, 1e4], decodes=[0, 0, 9, 9], decode_iteration_s=[1, 1, 0.05, 0.03]
    )
    assert make("lmetric").decide(seen) == Decision(1, 3)


def test_fullest_feasible_packs(make):
    # TTFT objective 3 x 0.1 s, TBT objective 1.5 x 0.04 s
    seen = view("ppptt", predicted_ttft_s=[0.1, 0.29, 0.31, 0, 0], predicted_tbt_s=[0, 0, 0, 0.059, 0.045])
    assert make("fullest-feasible", "ppptt").decide(seen) == Decision(1, 3)


def test_fullest_feasible_makes_do_where_nothing_is_feasible(make):
    seen = view("pptt", predicted_ttft_s=[0.5, 0.4, 0, 0], predicted_tbt_s=[0, 0, 0.08, 0.07])
    assert make("fullest-feasible").decide(seen) == Decision(1, 3)


def test_freeness_is_room_per_request(make):
    # (1e6 − 2e5)/(9 + 1) = 8e4 against (1e6 − 7e5)/(2 + 1) = 1e5
    seen = view("pptt", pending_prompt_tokens=[9, 5, 0, 0], booked_kv_tokens=[0, 0, 2e5, 7e5], decodes=[0, 0, 9, 2])
    assert make("freeness").decide(seen) == Decision(1, 3)


def test_least_e2e_weighs_transfer_against_speed(make):
    # 100 gaps: 0.1 + 100 · 0.040 = 4.1 s on machine 0; 0.1 + 0.01 + 100 · 0.0389 = 4.0 s via machine 1
    seen = view("mt", predicted_tbt_s=[0.040, 0.0389])
    assert make("least-e2e", "mt").decide(seen) == Decision(0, 1)
    slow_link = view("mt", predicted_tbt_s=[0.040, 0.0389], transfer_s=[0.01, 0.2])
    assert make("least-e2e", "mt").decide(slow_link) == Decision(0, 0)


def test_least_e2e_knows_that_prompts_delay_decodes(make):
    # Half of the time goes to prompts: 0.04 s become 0.08 s, and 0.06 s on the token machine are better.
    busy = {"prompt_token_rate": 5e3}
    seen = view("mt", predicted_tbt_s=[0.04, 0.06], cluster=busy)
    assert make("least-e2e", "mt").decide(seen) == Decision(0, 1)


def test_full_memory_is_avoided(make):
    seen = view("ptt", booked_kv_tokens=[0, 999_500, 10], predicted_tbt_s=[0, 0.03, 0.05])
    for name in ("least-ttft", "fullest-feasible", "least-e2e"):
        assert make(name, "ptt").decide(seen).token_machine == 2

"""The reference engine against cases computed by hand."""

from __future__ import annotations

import numpy as np
import pytest

from splitgym.errors import SplitgymError
from splitgym.sim.cluster import Batching, Scenario, Transfer
from splitgym.sim.reference import InvalidDecision, ReferenceEngine
from splitgym.sim.run import run
from splitgym.view import MIXED, PROMPT, TOKEN, Decision
from tests.sim.build import MODEL, Fixed, Shortest, cluster, law, requests


def test_one_request_alone() -> None:
    rows = run(Scenario(cluster("pt"), requests((0.5, 100, 4))), Fixed([(0, 1)])).rows
    kv_s = MODEL.kv_bytes_per_token * 100 / 1e15
    assert rows.first_token_s[0] == 1.5
    assert rows.transfer_end_s[0] == pytest.approx(1.5 + kv_s, abs=1e-12)
    assert rows.finish_s[0] == pytest.approx(1.8 + kv_s, abs=1e-9)  # three more tokens at 0.1 s
    assert rows.tbt_max_s[0] == pytest.approx(0.1 + kv_s, abs=1e-9)  # the gap across the transfer counts
    assert rows.tbt_mean_s[0] == pytest.approx((0.3 + kv_s) / 3, abs=1e-9)


def test_one_output_token_ends_with_its_prompt_phase() -> None:
    rows = run(Scenario(cluster("pt"), requests((0.0, 100, 1))), Fixed([(0, 1)])).rows
    assert rows.finish_s[0] == rows.first_token_s[0] == 1.0
    assert np.isnan(rows.transfer_end_s[0])
    assert np.isnan(rows.tbt_max_s[0])
    assert rows.to_arrow()["tbt_mean_s"].null_count == 1


def test_simultaneous_arrivals_share_a_batch_up_to_the_token_limit() -> None:
    arrivals = requests((0.0, 1000, 1), (0.0, 1000, 1), (0.0, 1000, 1), (0.0, 5000, 1), (0.0, 10, 1))
    rows = run(Scenario(cluster("pt"), arrivals), Fixed([(0, 1)])).rows
    # 2048 tokens a batch; the 5000 fit none but as the first of one
    assert rows.first_token_s.tolist() == [1.0, 1.0, 2.0, 3.0, 4.0]


def test_decodes_share_iterations_and_late_comers_wait_for_the_boundary() -> None:
    arrivals = requests((0.0, 10, 11), (0.0, 10, 6), (0.25, 10, 2))
    rows = run(Scenario(cluster("m"), arrivals), Fixed([(0, 0)])).rows
    # prompts of the first two until 1.0, then the third's (which arrived at 0.25) with both decodes until 2.0
    assert rows.first_token_s.tolist() == [1.0, 1.0, 2.0]
    assert rows.finish_s.tolist() == pytest.approx([2.9, 2.4, 2.1])
    assert rows.tbt_max_s.tolist() == pytest.approx([1.0, 1.0, 0.1])


def test_decodes_are_passed_over_four_times_then_forced() -> None:
    batching = Batching(max_batch_tokens=100)
    prompts = [(1.0 + 0.001 * i, 100, 1) for i in range(12)]  # each fills a batch
    arrivals = requests((0.0, 10, 4), *prompts)
    rows = run(Scenario(cluster("m", batching=batching), arrivals), Fixed([(0, 0)])).rows
    # The first token is out at 1.0, where a prompt is there already (arrived at 1.0): four prompts pass the decode
    # over until 5.0; then it is forced, and a prompt of 100 no longer fits beside it: 0.1 s; and so on.
    assert rows.first_token_s[0] == 1.0
    assert rows.tbt_max_s[0] == pytest.approx(4.1)
    assert rows.finish_s[0] == pytest.approx(1.0 + 3 * 4.1)


def test_serialized_transfers_wait_for_room_in_order() -> None:
    arrivals = requests((0.0, 60, 40), (0.0, 60, 40), (0.0, 5, 2))
    rows = run(Scenario(cluster("pt", kv_capacity_tokens=130), arrivals), Fixed([(0, 1)])).rows
    # The second takes 100 of 130 and has to wait until the first is done; the third could fit but comes after it.
    assert rows.transfer_end_s[1:] == pytest.approx([rows.finish_s[0]] * 2, abs=1e-4)
    assert (rows.status == 1).all()


def test_prompts_wait_for_memory_held_by_transfers() -> None:
    arrivals = requests((0.0, 60, 60), (0.0, 60, 60), (2.0, 60, 2))
    rows = run(Scenario(cluster("pt", kv_capacity_tokens=125), arrivals), Fixed([(0, 1)])).rows
    # The second's cache (61 tokens) stays on the prompt machine until the first is decoded; 61 + 61 still fit.
    assert rows.prompt_start_s[2] == 2.0
    tight = run(Scenario(cluster("pt", kv_capacity_tokens=121), arrivals), Fixed([(0, 1)])).rows
    assert tight.prompt_start_s[2] == pytest.approx(tight.transfer_end_s[1], abs=1e-9)


def test_layerwise_hides_all_but_the_last_layer() -> None:
    one = cluster("pt", transfer=Transfer("layerwise", overhead_s=0.25))
    rows = run(Scenario(one, requests((0.0, 1000, 2))), Fixed([(0, 1)])).rows
    size = MODEL.kv_bytes_per_token * 1000
    assert rows.transfer_end_s[0] - 1.25 == pytest.approx(size / MODEL.layers / 1e15, rel=1e-3)


def test_layerwise_reserves_before_the_prompt() -> None:
    arrivals = requests((0.0, 60, 40), (0.0, 60, 40))
    layerwise = cluster("pt", kv_capacity_tokens=130, transfer=Transfer("layerwise"))
    rows = run(Scenario(layerwise, arrivals), Fixed([(0, 1)])).rows
    assert rows.prompt_start_s[1] == pytest.approx(rows.finish_s[0])


def test_becoming_mixed_is_immediate_and_giving_up_a_phase_drains_then_switches() -> None:
    arrivals = requests((0.0, 10, 21), (3.0, 10, 2), (12.0, 10, 2))
    policy = Fixed([(0, 1), (0, 0), (1, 2)], roles_at={1.0: ((0, MIXED),), 2.0: ((1, PROMPT), (2, TOKEN))})
    scenario = Scenario(cluster("ptm", switch_s=5.0), arrivals, tick_s=1.0)
    result = run(scenario, policy, record=True)
    assert result.recorder is not None
    log = [(event.time_s, event.kind) for event in result.recorder.events if event.machine == 1 and event.request < 0]
    roles = [(time_s, kind) for time_s, kind in log if kind in ("role_prompt", "switching", "ready")]
    # its last decode ends at 3.0 (20 tokens of 0.1 s from 1.0), plus the transfer
    assert roles[0] == (2.0, "role_prompt")
    assert roles[1][0] == pytest.approx(3.0, abs=1e-6)
    assert roles[2][0] == pytest.approx(8.0, abs=1e-6)
    assert (result.rows.status == 1).all()


def test_the_last_of_a_pool_may_not_leave() -> None:
    engine = ReferenceEngine(Scenario(cluster("ppt"), requests((0.0, 10, 2))))
    view = engine.advance()
    assert view is not None
    assert view.role_mask.tolist() == [[False, True, True], [False, True, True], [False, False, True]]
    engine.change_roles(((0, TOKEN),))
    assert engine.view().role_mask[1].tolist() == [False, False, True]


@pytest.mark.parametrize(
    ("decision", "message"),
    [
        (Decision(7, 1), "prompt machine 7 does not exist: there are 2 machines, 0 to 1"),
        (Decision(-1, 1), "prompt machine -1 does not exist"),
        (Decision(1, 1), "prompt machine 1 may not be chosen: it is ready in role token"),
        (Decision(0, 0), "token machine 0 may not be chosen: it is ready in role prompt"),
        (Decision(0, 1, ((0, TOKEN),)), "machine 0 may not become token now"),
        (Decision(0, 1, ((0, 9),)), "role 9 does not exist"),
    ],
)
def test_impossible_decisions_are_refused(decision: Decision, message: str) -> None:
    engine = ReferenceEngine(Scenario(cluster("pt"), requests((0.0, 10, 2))))
    engine.advance()
    with pytest.raises(InvalidDecision, match=message):
        engine.decide(decision)


@pytest.mark.parametrize("engine", ["reference", "compiled"])
def test_a_policy_need_not_be_hashable(engine: str) -> None:
    class Unhashable(Fixed):
        __hash__ = None  # type: ignore[assignment]

    result = run(Scenario(cluster("pt"), requests((0.5, 10, 2))), Unhashable([(0, 1)]), engine=engine)
    assert result.meters.finished == 1


def test_an_engine_that_does_not_exist_is_named() -> None:
    with pytest.raises(SplitgymError, match="engine: unknown 'compild'; did you mean 'compiled'"):
        run(Scenario(cluster("pt"), requests((0.5, 10, 2))), Fixed([(0, 1)]), engine="compild")


def test_a_policy_that_errs_is_named() -> None:
    with pytest.raises(SplitgymError, match=r"policy 'fixed', request 0 at 0.5 s: token machine 9 does not exist"):
        run(Scenario(cluster("pt"), requests((0.5, 10, 2))), Fixed([(0, 9)]))


def test_a_request_that_fits_nowhere_fails_and_is_charged_to_the_end() -> None:
    arrivals = requests((0.0, 90, 20), (1.0, 10, 21))
    result = run(Scenario(cluster("pt", kv_capacity_tokens=100), arrivals), Fixed([(0, 1)]))
    assert result.rows.status.tolist() == [2, 1]
    assert result.meters.time_in_system_s == pytest.approx(result.rows.end_s + result.rows.e2e_s[1], rel=1e-9)


def test_horizon_truncates_and_the_drain_follows_up() -> None:
    arrivals = requests((0.0, 10, 31), (3.0, 10, 2), (4.5, 10, 2))
    scenario = Scenario(cluster("pt"), arrivals, horizon_s=3.5, drain_s=100.0)
    engine = ReferenceEngine(scenario)
    while (view := engine.advance()) is not None:
        engine.decide(Shortest().decide(view))
    assert engine.now_s == 3.5
    assert engine.meters().arrived == 2
    engine.finish()
    rows = engine.rows()
    assert len(rows) == 2
    assert (rows.status == 1).all()
    short = run(Scenario(cluster("pt"), arrivals, horizon_s=3.5, drain_s=0.1), Shortest())
    assert short.rows.status.tolist() == [0, 0]
    assert short.rows.end_s == 3.6


def test_energy_is_that_of_both_phases_and_of_idling() -> None:
    result = run(Scenario(cluster("pt", latency=law(2.0, 0.5)), requests((0.0, 10, 3))), Fixed([(0, 1)]))
    profile = cluster("pt").machines[0].profile
    power = profile.power  # 10 prompt tokens and one decode are below the first points
    idle_j = power.idle_w * (2 * result.rows.end_s - 3.0)
    prompt_j, token_j = 2.0 * power.prompt_points[0][1], 1.0 * power.decode_points[0][1]
    meters = result.meters
    assert (meters.prompt_energy_j, meters.token_energy_j) == pytest.approx((prompt_j, token_j), rel=1e-9)
    assert meters.idle_energy_j == pytest.approx(idle_j, rel=1e-9)
    assert meters.energy_j == pytest.approx(idle_j + prompt_j + token_j, rel=1e-9)


def test_a_run_says_where_it_extrapolated() -> None:
    result = run(Scenario(cluster("pt"), requests((0.0, 40_000, 2))), Fixed([(0, 1)]))
    measured = cluster("pt").machines[0].profile.valid_range
    assert result.extrapolations == (
        "llama2-70b.h100-80gb.tp8 was extrapolated: "
        f"up to 40000 batch tokens (measured to {measured.batch_tokens[1]}), "
        f"40001 tokens of decode context (measured to {measured.decode_context_tokens[1]}) in an iteration",
    )

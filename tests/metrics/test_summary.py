"""Summary and scorecard: their shape, their counts, their SLOs."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from splitgym.metrics import SLO_NAMES, scorecard, summary
from splitgym.sim.cluster import Scenario
from splitgym.sim.ledger import Meters
from tests.metrics.conftest import rows_of

NEVER = float("nan")


def test_shape_of_the_summary(scenario: Scenario, meters: Meters) -> None:
    content = summary(rows_of((20.0, 22.0, 25.0, 11), end_s=120.0), scenario, meters)
    statistics = ["mean", "p50", "p90", "p99"]
    assert list(content) == [
        "requests",
        "ttft_s",
        "tbt_s",
        "e2e_s",
        "slowdown",
        "slo",
        "goodput_rps",
        "energy_kwh",
        "cost_usd",
        "energy",
        "cost",
    ]
    assert list(content["requests"]) == ["arrived", "completed", "failed", "abandoned", "in_flight"]
    for place in (content["ttft_s"], content["slowdown"]["tbt"]):
        assert list(place) == statistics
    assert list(content["slo"]) == ["met", *SLO_NAMES]
    assert len(SLO_NAMES) == 9
    assert content["energy_kwh"] == 2.0
    assert content["cost_usd"] == pytest.approx((38 + 17.6) * 120 / 3600)


def test_energy_and_dollars_of_a_request_and_a_token(scenario: Scenario, meters: Meters) -> None:
    """Completed requests of the whole run, warm-up included, carry all of the 2 kWh and of the dollars."""
    rows = rows_of((1.0, 2.0, 3.0, 9), (20.0, 22.0, 25.0, 11), (30.0, NEVER, NEVER, 50), end_s=120.0)
    content, card = summary(rows, scenario, meters), scorecard(rows, scenario, meters)
    usd = (38 + 17.6) * 120 / 3600
    assert content["energy"] == {
        "prompt_kwh": 1.0,
        "token_kwh": 0.5,
        "idle_kwh": 0.5,
        "per_request_j": 3.6e6,
        "per_output_token_j": 3.6e5,
    }
    assert content["cost"]["per_hour_usd"] == pytest.approx(38 + 17.6)
    assert content["cost"]["per_request_usd"] == pytest.approx(usd / 2)
    assert content["cost"]["per_million_output_tokens_usd"] == pytest.approx(1e6 * usd / 20)
    assert card["energy_prompt_kwh"] + card["energy_token_kwh"] + card["energy_idle_kwh"] == card["energy_kwh"]
    assert card["energy_per_request_j"] == 3.6e6
    assert card["cost_per_request_usd"] == content["cost"]["per_request_usd"]


def test_quantiles_are_numpys(scenario: Scenario, meters: Meters) -> None:
    ttft_s = np.linspace(0.5, 4.0, 37)
    rows = rows_of(*((20.0, 20.0 + ttft, 21.0 + ttft, 11) for ttft in ttft_s), end_s=120.0)
    measured = summary(rows, scenario, meters)["ttft_s"]
    expected = [np.mean(ttft_s), *np.percentile(ttft_s, (50, 90, 99))]
    assert list(measured.values()) == pytest.approx(expected, rel=1e-12)


def test_requests_in_are_requests_accounted_for(scenario: Scenario, meters: Meters) -> None:
    rows = rows_of((20.0, 21.0, 22.0, 11), (21.0, NEVER, NEVER, 11), (22.0, NEVER, NEVER, 5), end_s=120.0, failed=(2,))
    requests = summary(rows, scenario, meters)["requests"]
    assert requests == {"arrived": 3, "completed": 1, "failed": 1, "abandoned": 0, "in_flight": 1}


@pytest.mark.parametrize(("ttft_s", "missed"), [(1.9, ()), (2.5, ("ttft_p50",)), (3.5, ("ttft_p50", "ttft_p90"))])
def test_which_slos_are_missed(scenario: Scenario, meters: Meters, ttft_s: float, missed: tuple[str, ...]) -> None:
    rows = rows_of(*((20.0, 20.0 + ttft_s, 20.0 + ttft_s + 10.0, 101) for _ in range(5)), end_s=120.0)
    slo = summary(rows, scenario, meters)["slo"]
    assert {name for name in SLO_NAMES if not slo[name]} == set(missed)
    assert slo["met"] == (not missed)


def test_goodput_counts_those_within_the_p90_multiples(scenario: Scenario, meters: Meters) -> None:
    good = (20.0, 22.9, 24.3, 11)
    late_first_token = (20.0, 23.1, 24.3, 11)
    slow_tokens = (20.0, 21.0, 22.6, 11)
    undone = (20.0, 21.0, NEVER, 11)
    rows = rows_of(good, late_first_token, slow_tokens, undone, end_s=120.0)
    assert summary(rows, scenario, meters)["goodput_rps"] == pytest.approx(1 / 100)  # from 10 s to 110 s


def test_scorecard_is_flat_and_agrees(scenario: Scenario, meters: Meters) -> None:
    rows = rows_of((20.0, 22.0, 25.0, 11), (21.0, 22.0, 23.0, 11), (22.0, NEVER, NEVER, 1), end_s=120.0)
    card, full = scorecard(rows, scenario, meters), summary(rows, scenario, meters)
    assert all(isinstance(value, float) for value in card.values())
    assert card["ttft_p99_s"] == full["ttft_s"]["p99"]
    assert card["e2e_slowdown_p90"] == full["slowdown"]["e2e"]["p90"]
    assert card["slowdown"] == pytest.approx((2.5 + 1.0 + 98.0) / 3)
    assert card["completed_fraction"] == pytest.approx(2 / 3)
    assert card["slo_fraction"] == sum(full["slo"][name] for name in SLO_NAMES) / 9


def test_nobody_came(scenario: Scenario, meters: Meters) -> None:
    rows = rows_of((1.0, 2.0, NEVER, 11), end_s=120.0)
    content = summary(rows, scenario, None)
    assert content["requests"]["arrived"] == 0
    assert content["ttft_s"]["p50"] is None
    assert content["energy_kwh"] is None
    assert set(content["energy"].values()) == {None}
    json.dumps(content, allow_nan=False)
    assert math.isnan(scorecard(rows, scenario, meters)["slowdown"])

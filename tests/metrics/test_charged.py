"""What requests are charged, on numbers one can check in the head."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from splitgym.metrics import charge
from splitgym.sim.cluster import Scenario
from tests.metrics.conftest import rows_of

NEVER = float("nan")


def test_a_finished_request_is_charged_what_it_took(scenario: Scenario) -> None:
    charged = charge(rows_of((20.0, 22.0, 25.0, 11), end_s=110.0), scenario)
    assert charged.ttft_s[0] == 2.0
    assert charged.e2e_s[0] == 5.0
    assert charged.tbt_s[0] == pytest.approx(0.3)
    assert charged.ttft_slowdown[0] == pytest.approx(2.0)
    assert charged.tbt_slowdown[0] == pytest.approx(3.0)
    assert charged.e2e_slowdown[0] == pytest.approx(2.5)  # 5 s against 1 s + 10 tokens of 0.1 s
    assert charged.slowdown[0] == pytest.approx(0.5 * 2 + 0.5 * 3)


def test_the_front_end_is_on_top_of_ttft_and_e2e(scenario: Scenario) -> None:
    finished, unfinished, unanswered = (20.0, 22.0, 25.0, 11), (20.0, 22.0, NEVER, 11), (20.0, NEVER, NEVER, 11)
    plain = rows_of(finished, unfinished, unanswered, end_s=110.0)
    without, charged = charge(plain, scenario), charge(dataclasses.replace(plain, frontend_s=0.5), scenario)
    assert charged.ttft_s == pytest.approx(without.ttft_s + 0.5)
    assert charged.e2e_s == pytest.approx(without.e2e_s + 0.5)
    assert charged.tbt_s[:2] == pytest.approx(without.tbt_s[:2])


def test_one_token_has_no_tbt_and_is_all_ttft(scenario: Scenario) -> None:
    charged = charge(rows_of((20.0, 24.0, 24.0, 1), end_s=110.0), scenario)
    assert np.isnan(charged.tbt_s[0])
    assert charged.slowdown[0] == pytest.approx(4.0)


def test_warm_up_does_not_count(scenario: Scenario) -> None:
    charged = charge(rows_of((9.9, 22.0, 25.0, 11), (10.0, 11.0, 12.0, 11), end_s=110.0), scenario)
    assert len(charged.ttft_s) == 1


def test_the_unanswered_are_charged_up_to_the_end(scenario: Scenario) -> None:
    charged = charge(rows_of((20.0, NEVER, NEVER, 11), end_s=110.0), scenario)
    assert charged.ttft_s[0] == 90.0
    assert charged.e2e_s[0] == 91.0  # and the tokens that are owed
    assert charged.tbt_s[0] == pytest.approx(9.1)
    assert not charged.completed[0]


def test_the_unfinished_are_charged_up_to_the_end(scenario: Scenario) -> None:
    charged = charge(rows_of((20.0, 30.0, NEVER, 11), end_s=110.0), scenario)
    assert charged.ttft_s[0] == 10.0
    assert charged.e2e_s[0] == 90.0
    assert charged.tbt_s[0] == pytest.approx(8.0)


def test_a_late_arrival_is_charged_no_less_than_alone(scenario: Scenario) -> None:
    charged = charge(rows_of((109.9, NEVER, NEVER, 11), end_s=110.0), scenario)
    assert charged.ttft_slowdown[0] == 1.0
    assert charged.e2e_slowdown[0] == pytest.approx(1.0)


@pytest.mark.parametrize("finish_s", [30.0, 60.0, 109.0])
def test_dropping_never_looks_better_than_serving(scenario: Scenario, finish_s: float) -> None:
    served = charge(rows_of((20.0, 25.0, finish_s, 11), end_s=110.0), scenario)
    for failed in ((), (0,)):
        dropped = charge(rows_of((20.0, NEVER, NEVER, 11), end_s=110.0, failed=failed), scenario)
        for name in ("ttft_slowdown", "tbt_slowdown", "e2e_slowdown", "slowdown"):
            assert getattr(dropped, name)[0] >= getattr(served, name)[0]

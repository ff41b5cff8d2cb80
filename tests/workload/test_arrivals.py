"""Arrival processes: rates, dispersion, and draws that do not depend on how far one looks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from splitgym.randomness import Streams
from splitgym.workload.arrivals import ArrivalProcess
from splitgym.workload.sources import Arrivals

PROCESSES: dict[str, Any] = {
    "poisson": "poisson",
    "gamma": {"process": "gamma", "cv": 3.0},
    "even": {"process": "gamma", "cv": 0.2},
    "markov": {
        "process": "markov",
        "states": [
            {"rate_factor": 1, "mean_sojourn_s": 20},
            {"rate_factor": 5, "mean_sojourn_s": 5},
            {"rate_factor": 0, "mean_sojourn_s": 8},
        ],
    },
    "diurnal": {"process": "diurnal", "amplitude": 0.8, "period_s": 250},
    "swinging": {"process": "swinging", "swings": [{"relative_sd": 0.3, "correlation_s": 20}]},
    "on-off": {
        "process": "on-off",
        "burst": {"mean_s": 10},
        "silence": {"mean_s": 20, "cv": 1.5, "law": "lognormal"},
    },
    "azure-conversation": "azure-conversation",
    "azure-coding": "azure-coding",
}


def process(name: str) -> ArrivalProcess:
    made: ArrivalProcess = TypeAdapter(Arrivals).validate_python(PROCESSES[name])
    return made


def counts(arrival_s: np.ndarray, window_s: float, length_s: float) -> np.ndarray:
    return np.histogram(arrival_s, np.arange(0, length_s + window_s / 2, window_s))[0]


@pytest.mark.parametrize("name", PROCESSES)
def test_mean_rate(name: str) -> None:
    # 300 starts of 500 s: the standard error is below 1.5 % for the most bursty of them
    length_s, rate = 500.0, 4.0
    drawn = [len(process(name).draw(Streams(seed), rate, length_s)) for seed in range(300)]
    error = np.std(drawn) / np.sqrt(len(drawn)) / (rate * length_s)
    assert error < 0.03
    assert np.mean(drawn) / (rate * length_s) == pytest.approx(1, abs=4 * error)


@pytest.mark.parametrize("name", PROCESSES)
def test_the_start_is_like_any_other_moment(name: str) -> None:
    # the first and the last tenth of 1,500 episodes see the same rate
    drawn = [process(name).draw(Streams(seed), 5.0, 20.0) for seed in range(1500)]
    more = np.array([int((arrival_s < 2).sum()) - int((arrival_s >= 18).sum()) for arrival_s in drawn])
    assert abs(more.mean()) < 4 * more.std() / np.sqrt(len(more))


@settings(max_examples=30, deadline=None)
@given(
    name=st.sampled_from(sorted(PROCESSES)),
    seed=st.integers(0, 10**6),
    shorter=st.floats(0.1, 300),
    longer=st.floats(1, 10),
)
def test_a_longer_draw_continues_a_shorter_one(name: str, seed: int, shorter: float, longer: float) -> None:
    short = process(name).draw(Streams(seed), 7.0, shorter)
    long = process(name).draw(Streams(seed), 7.0, shorter * longer)
    assert np.array_equal(long[long < shorter], short)
    assert np.all(np.diff(long) >= 0)


@pytest.mark.parametrize("name", PROCESSES)
def test_seeds_and_splits_differ_and_repeat(name: str) -> None:
    draws = [process(name).draw(Streams(s, split), 9.0, 400.0) for s in (0, 1) for split in ("train", "test")]
    again = process(name).draw(Streams(0, "train"), 9.0, 400.0)
    assert np.array_equal(draws[0], again)
    assert len({tuple(draw) for draw in draws}) == 4


@pytest.mark.parametrize(("name", "cv"), [("poisson", 1.0), ("gamma", 3.0), ("even", 0.2)])
def test_renewal_gaps_have_the_stated_variation(name: str, cv: float) -> None:
    gaps_s = np.diff(process(name).draw(Streams(3), 10.0, 10_000.0))  # 100,000 gaps: error of the cv about 2 %
    assert gaps_s.std() / gaps_s.mean() == pytest.approx(cv, rel=0.05)


def test_a_diurnal_rate_peaks_a_quarter_into_its_period() -> None:
    arrival_s = process("diurnal").draw(Streams(0), 50.0, 25_000.0, offset=0.0)
    rate = counts(arrival_s % 250, 25.0, 250.0) / 100 / 25  # (10,) mean over 100 periods, error 0.3 %
    expected = 50 * (1 + 0.8 * np.sin(2 * np.pi * (np.arange(10) + 0.5) / 10) * np.sinc(0.1))
    assert rate == pytest.approx(expected, rel=0.06)
    moved = process("diurnal").draw(Streams(0), 50.0, 100.0, offset=125.0)
    assert len(moved) < 50 * 100  # half a period in, the rate is below its mean


def test_bursts_keep_their_length_at_another_rate() -> None:
    slow, fast = (process("on-off").draw(Streams(5), rate, 30_000.0) for rate in (20.0, 200.0))
    assert len(fast) / len(slow) == pytest.approx(10, rel=0.02)
    silences = [np.diff(arrival_s)[np.diff(arrival_s) > 3].sum() for arrival_s in (slow, fast)]
    assert silences[0] == pytest.approx(silences[1], rel=0.01)


@pytest.mark.parametrize(
    "card",
    [
        "poison",
        {"process": "gamma"},
        {"process": "gamma", "cv": -1},
        {"process": "poisson", "cv": 2},
        {"process": "diurnal", "amplitude": 1.5},
        {"process": "markov", "states": [{"rate_factor": 0, "mean_sojourn_s": 1}] * 2},
        {"process": "swinging", "swings": []},
    ],
)
def test_impossible_processes_are_refused(card: Any) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(Arrivals).validate_python(card)

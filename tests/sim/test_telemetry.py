"""Staleness: reported features are those of the last scrape that did not fail, booked ones are exact."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from splitgym.features import MACHINE_FEATURES
from splitgym.sim.cluster import Scenario, Telemetry
from splitgym.sim.compiled import CompiledEngine
from splitgym.sim.reference import ReferenceEngine
from splitgym.sim.telemetry import LOSS, NEXT_S, SCRAPED_S, catch_up, new_reports
from splitgym.view import Decision
from tests.sim.build import Shortest, cluster, requests

REPORTED = [number for number, feature in enumerate(MACHINE_FEATURES) if feature.source == "reported"]
BOOKED = [number for number, feature in enumerate(MACHINE_FEATURES) if feature.source != "reported"]
ENGINES = pytest.mark.parametrize("engine", [ReferenceEngine, CompiledEngine])


def scenario(telemetry: Telemetry | None, *rows: tuple[float, int, int], tick_s: float | None = None) -> Scenario:
    tested = dataclasses.replace(cluster("m"), telemetry=telemetry)  # prompt iterations of 1 s, decodes of 0.1 s
    return Scenario(tested, requests(*rows), tick_s=tick_s, seed=5)


@ENGINES
def test_reports_are_those_of_the_last_scrape(engine: type[ReferenceEngine | CompiledEngine]) -> None:
    """One prompt of 10 tokens from 0.5 to 1.5 s, then decodes; scrapes at 1, 2, 3 s, looked at every 0.3 s."""
    run = engine(scenario(Telemetry(1.0), (0.5, 10, 40), tick_s=0.3))
    seen = {}
    while (view := run.advance()) is not None:
        figures = (view[name][0] for name in ("running_requests", "waiting_requests", "kv_held_tokens", "report_age_s"))
        seen[round(view.time_s, 9)] = tuple(figures)
        run.decide(Decision(0, 0) if run.pending_request >= 0 else Decision())
    assert seen[0.6] == (0.0, 0.0, 0.0, 0.6)  # not yet scraped: as at the start
    assert seen[0.9] == (0.0, 0.0, 0.0, pytest.approx(0.9))
    assert seen[1.2] == (1.0, 0.0, 11.0, pytest.approx(0.2))
    assert seen[1.8] == (1.0, 0.0, 11.0, pytest.approx(0.8))  # tokens since then are not known
    # at 2.0 s five iterations have ended, at about 1.6, 1.7, … 2.0: sums of 0.1 may miss 2.0 by a rounding
    assert seen[2.1][2] in (15.0, 16.0) and seen[2.1][3] == pytest.approx(0.1)
    assert seen[2.7][2] == seen[2.1][2]


@ENGINES
def test_a_scrape_sees_what_was_before_its_instant(engine: type[ReferenceEngine | CompiledEngine]) -> None:
    """The request arrives, and is looked at, at the instants of scrapes."""
    run = engine(scenario(Telemetry(1.0), (1.0, 10, 2), (2.0, 10, 2), (3.0, 10, 2)))
    held = []
    while (view := run.advance()) is not None:
        held.append((view.time_s, view["waiting_requests"][0], view["running_requests"][0], view["report_age_s"][0]))
        run.decide(Decision(0, 0))
    assert held[0] == (1.0, 0.0, 0.0, 0.0)
    assert held[1] == (2.0, 0.0, 1.0, 0.0)  # the prompt's iteration ends at 2.0, after the scrape


@ENGINES
def test_booked_features_are_exact(engine: type[ReferenceEngine | CompiledEngine]) -> None:
    rows = [(0.4 * number, 20 + number, 15) for number in range(25)]
    runs = [engine(scenario(telemetry, *rows)) for telemetry in (None, Telemetry(0.9, 0.5, 0.5))]
    policy, stale = Shortest(), 0
    while (fresh := runs[0].advance()) is not None:
        other = runs[1].advance()
        assert other is not None
        np.testing.assert_array_equal(fresh.machines[:, BOOKED], other.machines[:, BOOKED])
        assert fresh["report_age_s"].tolist() == [0.0]
        stale += not np.array_equal(fresh.machines[:, REPORTED], other.machines[:, REPORTED])
        for run in runs:
            run.decide(policy.decide(fresh))
    assert stale > 20
    results = []
    for run in runs:
        run.finish()
        results.append(run.rows().finish_s)
    np.testing.assert_array_equal(*results)  # what is seen changes nothing but decisions


def test_scrapes_come_at_their_times_and_some_fail() -> None:
    """10,000 scrapes of interval 2 s with jitter up to 0.5 s and 30 % failures; 3 σ of a share is 0.014."""
    tested = dataclasses.replace(cluster("mm"), telemetry=Telemetry(2.0, 0.5, 0.3))
    reports = new_reports(tested, seed=3)
    times: list[list[float]] = [[], []]
    for machine, report in enumerate(reports):
        while report[NEXT_S] < 20_000:
            catch_up(report, machine, report[NEXT_S])
            times[machine].append(float(report[SCRAPED_S]))
    numbers = [np.floor(np.array(found) / 2.0) for found in times]
    lateness_s = [np.array(found) - 2.0 * number for found, number in zip(times, numbers, strict=True)]
    for found, number, late_s in zip(times, numbers, lateness_s, strict=True):
        assert len(found) / 10_000 == pytest.approx(0.7, abs=0.014)
        assert (np.diff(number) >= 1).all()
        assert late_s.min() >= 0 and late_s.max() < 0.5
        assert late_s.mean() == pytest.approx(0.25, abs=0.006)  # 3 σ of the mean of 7,000 uniform ones
    shared = len(np.intersect1d(*numbers)) / 10_000
    assert shared == pytest.approx(0.49, abs=0.015)  # machines fail apart from each other
    assert (new_reports(tested, seed=3)[:, NEXT_S] != new_reports(tested, seed=4)[:, NEXT_S]).all()
    assert (reports[:, LOSS] == 0.3).all()


def test_a_restored_state_has_its_reports() -> None:
    rows = [(0.3 * number, 30, 20) for number in range(40)]
    run, policy = CompiledEngine(scenario(Telemetry(0.5, 0.5, 0.2), *rows)), Shortest()
    views: list[list[np.ndarray[tuple[int, ...], np.dtype[np.float64]]]] = []
    snapshot = None
    for again in (False, True):
        if again:
            assert snapshot is not None
            run.restore_state(snapshot)
        views.append([])
        count = 0 if not again else 15
        view = run.view() if again else run.advance()
        while view is not None:
            if count == 15 and not again:
                snapshot = run.clone_state()
            if count >= 15:
                views[-1].append(view.machines.copy())
            count += 1
            run.decide(policy.decide(view))
            view = run.advance()
    np.testing.assert_array_equal(*views)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((0.0,), "scrape_interval_s 0"),
        ((1.0, 2.0), r"jitter_s 2; give 0 to scrape_interval_s \(1\)"),
        ((1.0, 0.0, 1.0), "loss 1"),
    ],
)
def test_what_cannot_be_is_refused(values: tuple[float, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Telemetry(*values)

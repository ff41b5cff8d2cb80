from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from splitgym.learn.statistics import (
    Bootstrap,
    best_of,
    mean,
    normalised_score,
    paired_difference,
    regret,
    wins_and_losses,
)


def table(**rows: list[float]) -> dict[str, np.ndarray]:
    return {name: np.array([row], float) for name, row in rows.items()}


def test_paired_difference_removes_what_the_seeds_have_in_common():
    seeds = np.arange(10) * 100.0
    scores = table(a=list(seeds + 1 + 0.1 * np.arange(10)), b=list(seeds))
    difference = paired_difference(scores, "a", "b", Bootstrap(10))
    assert difference.value == pytest.approx(1.45)
    # the seeds spread over 900, the differences over 0.9: only the latter may show
    assert 1.2 < difference.low < 1.35 and 1.55 < difference.high < 1.7
    assert mean(scores["a"], "a", Bootstrap(10)).high - mean(scores["a"], "a", Bootstrap(10)).low > 300


def test_difference_to_itself_is_nothing():
    difference = paired_difference(table(a=[1, 5, 2]), "a", "a", Bootstrap(3))
    assert (difference.value, difference.low, difference.high) == (0, 0, 0)
    assert not difference.excludes_zero


def test_one_seed_gives_no_interval():
    difference = paired_difference(table(a=[1], b=[3]), "a", "b", Bootstrap(1))
    assert difference.value == -2 and np.isnan(difference.low) and not difference.excludes_zero


def test_interval_agrees_with_student_on_normal_data():
    values = np.random.default_rng(3).normal(5, 2, 20)
    ours = mean(values[None], "a", Bootstrap(20, resamples=50_000))
    low, high = stats.t.interval(0.95, 19, values.mean(), values.std(ddof=1) / np.sqrt(20))
    # the same width up to 4 %: resampling noise and the sample's own skewness
    assert ours.high - ours.low == pytest.approx(high - low, rel=0.04)
    assert ours.low == pytest.approx(low, abs=0.1) and ours.high == pytest.approx(high, abs=0.1)


@pytest.mark.parametrize("num_seeds", [10, 20])
def test_interval_covers_the_truth_about_19_times_in_20(num_seeds: int):
    rng = np.random.default_rng(num_seeds)
    bootstrap = Bootstrap(num_seeds, resamples=2_000)
    trials, covered = 1_000, 0
    for _ in range(trials):
        shared = rng.normal(0, 5, num_seeds)
        scores = {"a": (shared + rng.normal(0.3, 1, num_seeds))[None], "b": shared[None]}
        difference = paired_difference(scores, "a", "b", bootstrap)
        covered += difference.low <= 0.3 <= difference.high
    # 3 standard errors of 1,000 trials are 2.1 %
    assert covered / trials == pytest.approx(0.95, abs=0.021)


def test_interval_over_training_seeds_is_wider_and_covers():
    rng = np.random.default_rng(0)
    bootstrap = Bootstrap(20, resamples=1_000)
    trials, covered, naive_covered = 300, 0, 0
    for _ in range(trials):
        scores = rng.normal(0, 1, (5, 1)) + rng.normal(0, 1, (1, 20)) + rng.normal(0, 0.3, (5, 20))
        hierarchical = mean(scores, "a", bootstrap)
        naive = mean(scores.mean(axis=0, keepdims=True), "a", bootstrap)
        covered += hierarchical.low <= 0 <= hierarchical.high
        naive_covered += naive.low <= 0 <= naive.high
    # five training seeds are few: the interval may fall a little short, but not as one that ignores them
    assert covered / trials > 0.88
    assert naive_covered / trials < 0.75


def test_regret_is_to_the_best_whatever_it_is():
    scores = table(splitwise=[3, 3, 3], lmetric=[2, 2.5, 1.5], x=[2.2, 2.6, 1.8], random=[9, 9, 9])
    heuristics = ["splitwise", "lmetric", "random"]
    assert best_of(scores, heuristics) == "lmetric"
    assert best_of(scores, heuristics, higher_is_better=True) == "random"
    assert regret(scores, "x", heuristics, Bootstrap(3)).value == pytest.approx(0.2)
    assert regret(scores, "x", heuristics, Bootstrap(3), higher_is_better=True).value == pytest.approx(6.8)
    assert regret(scores, "lmetric", heuristics, Bootstrap(3)).value == 0


def test_regret_chooses_the_best_anew_in_each_resample():
    rng = np.random.default_rng(1)
    scores = {f"h{i}": rng.normal(0, 1, (1, 20)) for i in range(8)}  # equally good: the best is luck
    scores["x"] = rng.normal(0, 1, (1, 20))
    heuristics = [f"h{i}" for i in range(8)]
    bootstrap = Bootstrap(20)
    best = best_of(scores, heuristics)
    against_winner = paired_difference(scores, "x", best, bootstrap)
    chosen_anew = regret(scores, "x", heuristics, bootstrap)
    assert chosen_anew.value == pytest.approx(against_winner.value)
    assert chosen_anew.low >= against_winner.low and chosen_anew.high >= against_winner.high
    own = regret(scores, best, heuristics, bootstrap)
    assert own.value == 0 and own.low == 0 and own.high > 0  # another might have won


def test_normalised_score():
    scores = table(random=[8, 10, 12], best=[2, 3, 4], worse=[5, 5, 5], x=[3, 4, 5])
    heuristics = ["best", "worse"]
    score = normalised_score(scores, "x", "random", heuristics, Bootstrap(3))
    assert score.value == pytest.approx(6 / 7)
    assert score.low < 6 / 7 < score.high < 1
    assert normalised_score(scores, "best", "random", heuristics, Bootstrap(3)).low == pytest.approx(1)
    assert normalised_score(scores, "random", "random", heuristics, Bootstrap(3)).high == 0
    assert np.isnan(normalised_score(scores, "x", "random", ["random"], Bootstrap(3)).value)


def test_wins_and_losses_count_seeds():
    ours, theirs = np.array([[1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0, 2.0]]), np.array([[2.0, 2.0, 2.0, 4.0]])
    assert wins_and_losses(ours, theirs) == (2, 1)
    assert wins_and_losses(ours, theirs, higher_is_better=True) == (1, 2)


def test_intervals_are_reproducible():
    scores = table(a=[1, 4, 2, 8, 5], b=[2, 3, 2, 2, 9])
    scores["a"] = np.vstack([scores["a"], scores["a"] * 1.3, scores["a"] * 0.8])
    first, second = (regret(scores, "a", ["b"], Bootstrap(5, seed=7)) for _ in range(2))
    assert first == second
    assert regret(scores, "a", ["b"], Bootstrap(5, seed=8)) != first

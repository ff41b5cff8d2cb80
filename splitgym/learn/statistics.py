"""Paired comparisons of policies: differences, regret and normalised scores with bootstrap intervals over seeds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

from splitgym.randomness import Streams

FloatArray = npt.NDArray[np.float64]

CONFIDENCE = 0.95
RESAMPLES = 10_000


@dataclass(frozen=True)
class Estimate:
    """A figure and its interval; the bounds are NaN where one seed is all there is."""

    value: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval lies on one side of 0."""
        return self.low > 0 or self.high < 0


class Bootstrap:
    """Resamples test seeds, the same for every policy, and for each learned policy its training seeds.

    Scores of a policy are an array (num_training_seeds, num_test_seeds): every training seed's policy has played every
    test seed, so the two are crossed and resampled one after the other; a heuristic has one row. Requests are never
    resampled: those of one run are not independent of each other.

    The bounds are percentiles of the resampled figure. Their levels are pushed outwards by Student's t as for
    ``num_test_seeds`` observations, because plain percentiles cover too seldom where seeds are few (Hesterberg, The
    American Statistician 69(4), 2015, "expanded percentile"). With three training seeds the interval about spans
    their means: honest, and wide.

    Args:
        num_test_seeds: how many seeds every policy has played.
        seed: of the resampling; equal seeds give equal intervals.
        resamples: how many.
    """

    def __init__(self, num_test_seeds: int, *, seed: int = 0, resamples: int = RESAMPLES) -> None:
        self._streams = Streams(seed)
        self._resamples = resamples
        self._test_weights = self._weights("bootstrap test seeds", num_test_seeds)
        self._levels = _levels(num_test_seeds)

    def means(self, scores: FloatArray, name: str) -> FloatArray:
        """(resamples,) means of ``scores`` (num_training_seeds, num_test_seeds); ``name`` is the policy's."""
        if len(scores) == 1:
            return np.asarray(self._test_weights @ scores[0])
        training = self._weights(f"bootstrap training seeds of {name}", len(scores))
        return np.asarray(np.einsum("bt,ts,bs->b", training, scores, self._test_weights, optimize=True))

    def estimate(self, value: float, resampled: FloatArray) -> Estimate:
        """``value`` with the bounds that ``resampled`` (resamples,) gives."""
        if self._test_weights.shape[1] < 2 or np.isnan(resampled).any():
            return Estimate(value, np.nan, np.nan)
        low, high = np.quantile(resampled, self._levels)
        return Estimate(value, float(low), float(high))

    def _weights(self, stream: str, count: int) -> FloatArray:
        """(resamples, count) the share that each of ``count`` seeds has in each resample."""
        draws = self._streams.generator(stream).multinomial(count, np.full(count, 1 / count), self._resamples)
        return draws / count


def mean(scores: FloatArray, name: str, bootstrap: Bootstrap) -> Estimate:
    """The mean of ``scores`` (num_training_seeds, num_test_seeds)."""
    return bootstrap.estimate(float(scores.mean()), bootstrap.means(scores, name))


def paired_difference(scores: Mapping[str, FloatArray], name: str, other: str, bootstrap: Bootstrap) -> Estimate:
    """How much ``name`` exceeds ``other`` on the same seeds."""
    if name == other:
        return Estimate(0.0, 0.0, 0.0)
    resampled = bootstrap.means(scores[name], name) - bootstrap.means(scores[other], other)
    return bootstrap.estimate(float(scores[name].mean() - scores[other].mean()), resampled)


def best_of(scores: Mapping[str, FloatArray], names: list[str], *, higher_is_better: bool = False) -> str:
    """The one of ``names`` with the best mean; the first of equals."""
    sign = -1.0 if higher_is_better else 1.0
    return min(names, key=lambda name: sign * float(scores[name].mean()))


def regret(
    scores: Mapping[str, FloatArray],
    name: str,
    heuristics: list[str],
    bootstrap: Bootstrap,
    *,
    higher_is_better: bool = False,
) -> Estimate:
    """How much worse ``name`` is than the best of ``heuristics``; negative where it is better.

    The best is chosen on the seeds it is then measured on, which flatters it. So each resample chooses its own best:
    the interval contains the luck of the choice, and errs, if at all, against ``name``.
    """
    sign = -1.0 if higher_is_better else 1.0
    best = sign * min(sign * float(scores[heuristic].mean()) for heuristic in heuristics)
    resampled_best = _resampled_best(scores, heuristics, bootstrap, sign)
    resampled = sign * (bootstrap.means(scores[name], name) - resampled_best)
    return bootstrap.estimate(sign * (float(scores[name].mean()) - best), resampled)


def normalised_score(
    scores: Mapping[str, FloatArray],
    name: str,
    random: str,
    heuristics: list[str],
    bootstrap: Bootstrap,
    *,
    higher_is_better: bool = False,
) -> Estimate:
    """(random − x)/(random − best of ``heuristics``): 0 is random routing, 1 the best heuristic, more is better.

    As in `regret`, each resample chooses its own best heuristic.
    """
    sign = -1.0 if higher_is_better else 1.0
    best = sign * min(sign * float(scores[heuristic].mean()) for heuristic in heuristics)
    random_mean = float(scores[random].mean())
    value = _ratio(np.array(random_mean - scores[name].mean()), np.array(random_mean - best))
    resampled_random = bootstrap.means(scores[random], random)
    resampled_best = _resampled_best(scores, heuristics, bootstrap, sign)
    resampled = _ratio(
        resampled_random - bootstrap.means(scores[name], name),
        resampled_random - resampled_best,
    )
    return bootstrap.estimate(float(value), resampled)


def wins_and_losses(scores: FloatArray, others: FloatArray, *, higher_is_better: bool = False) -> tuple[int, int]:
    """On how many test seeds a policy (mean over its training seeds) beats another, and is beaten."""
    gain = scores.mean(axis=0) - others.mean(axis=0)
    if not higher_is_better:
        gain = -gain
    return int(np.sum(gain > 0)), int(np.sum(gain < 0))


def _resampled_best(
    scores: Mapping[str, FloatArray], heuristics: list[str], bootstrap: Bootstrap, sign: float
) -> FloatArray:
    means = [sign * bootstrap.means(scores[heuristic], heuristic) for heuristic in heuristics]
    return np.asarray(sign * np.min(means, axis=0))


def _ratio(gained: FloatArray, available: FloatArray) -> FloatArray:
    """NaN where nothing is to be gained over random."""
    nothing = available == 0
    return np.where(nothing, np.nan, gained / np.where(nothing, 1.0, available))


def _levels(num_seeds: int) -> tuple[float, float]:
    if num_seeds < 2:
        return (1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2
    t = stats.t.ppf((1 + CONFIDENCE) / 2, num_seeds - 1) * np.sqrt(num_seeds / (num_seeds - 1))
    level = float(stats.norm.cdf(-t))
    return level, 1 - level

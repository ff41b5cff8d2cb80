"""Relative intensities: how the rate of arrivals moves about its mean of 1, as steps over time."""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field
from scipy.signal import lfilter

from splitgym.randomness import Streams
from splitgym.workload.requests import FloatArray

Intensity = tuple[FloatArray, FloatArray]
"""Knots in seconds (num_steps + 1,) from 0, and the relative intensity between them (num_steps,)."""

FOREVER = 1e9


class Swing(BaseModel):
    """A random swing of the rate: its standard deviation relative to the mean, and its correlation time."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    relative_sd: float = Field(gt=0, le=5)
    correlation_s: float = Field(gt=0)

    @property
    def log_variance(self) -> float:
        """Variance of the rate's logarithm: ln(1 + relative_sd²)."""
        return float(np.log1p(self.relative_sd**2))


class Sojourn(BaseModel):
    """A random duration with the given mean; ``cv`` 1 of the gamma law is the exponential."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    mean_s: float = Field(gt=0)
    cv: float = Field(default=1.0, gt=0, le=10)
    law: Literal["gamma", "lognormal"] = "gamma"

    def draw(self, rng: np.random.Generator, count: int) -> FloatArray:
        """(count,) durations in seconds."""
        if self.law == "gamma":
            return rng.gamma(self.cv**-2, self.mean_s * self.cv**2, count)
        variance = np.log1p(self.cv**2)
        return rng.lognormal(np.log(self.mean_s) - variance / 2, np.sqrt(variance), count)

    def draw_rest(self, rng: np.random.Generator) -> float:
        """What is left of the sojourn met at a random instant: a uniform share of a length-biased one."""
        if self.law == "gamma":
            length_s = rng.gamma(self.cv**-2 + 1, self.mean_s * self.cv**2)
        else:
            variance = np.log1p(self.cv**2)
            length_s = rng.lognormal(np.log(self.mean_s) + variance / 2, np.sqrt(variance))
        return float(rng.random() * length_s)


def swings(streams: Streams, horizon_s: float, parts: tuple[Swing, ...]) -> Intensity:
    """The exponential of a sum of stationary Ornstein-Uhlenbeck processes, scaled to mean 1."""
    step_s = min(part.correlation_s for part in parts) / 4
    count = int(horizon_s / step_s) + 2
    log_rate: FloatArray = np.zeros(count)
    for index, swing in enumerate(parts):
        keep = np.exp(-step_s / swing.correlation_s)
        noise = streams.generator(f"swing-{index}").standard_normal(count)
        noise[1:] *= np.sqrt(1 - keep**2)
        log_rate += np.sqrt(swing.log_variance) * lfilter([1.0], [1.0, -keep], noise) - swing.log_variance / 2
    return np.arange(count + 1, dtype=np.float64) * step_s, np.exp(log_rate)


def on_off(streams: Streams, horizon_s: float, burst: Sojourn, silence: Sojourn, parts: tuple[Swing, ...]) -> Intensity:
    """Bursts and silences, met at a random instant; the swings, if any, act within bursts."""
    cycle_s = burst.mean_s + silence.mean_s
    start = streams.generator("offset")
    starts_on = bool(start.random() < burst.mean_s / cycle_s)
    rest_s = (burst if starts_on else silence).draw_rest(start)
    count = int(2 * horizon_s / cycle_s) + 16
    while True:
        burst_s = burst.draw(streams.generator("bursts"), count)
        silence_s = silence.draw(streams.generator("silences"), count)
        pairs = (silence_s, burst_s) if starts_on else (burst_s, silence_s)
        knots_s = np.cumsum(np.concatenate([[0.0, rest_s], np.column_stack(pairs).ravel()]))
        if knots_s[-1] > horizon_s:
            break
        count *= 2
    is_on = (np.arange(len(knots_s) - 1) % 2 == 0) == starts_on
    relative = np.where(is_on, cycle_s / burst.mean_s, 0.0)
    if not parts:
        return knots_s, relative
    grid_s, swing = swings(streams, horizon_s, parts)
    merged_s = np.union1d(knots_s[knots_s < grid_s[-1]], grid_s)
    merged_s = merged_s[: np.searchsorted(merged_s, min(knots_s[-1], grid_s[-1]), "right")]
    left_s = merged_s[:-1]
    return merged_s, (
        relative[np.searchsorted(knots_s, left_s, "right") - 1] * swing[np.searchsorted(grid_s, left_s, "right") - 1]
    )


def states(streams: Streams, horizon_s: float, factors: FloatArray, sojourns_s: FloatArray) -> Intensity:
    """A Markov jump process over (num_states,) factors, each left for any other with equal chance."""
    share = sojourns_s / sojourns_s.sum()  # the uniform jump chain visits all states equally often
    mean = float(factors @ share)
    num_states = len(factors)
    first = int(np.searchsorted(np.cumsum(share), streams.generator("offset").random()))
    count = int(2 * horizon_s / sojourns_s.mean()) + 16
    while True:
        hops = 1 + np.floor(streams.generator("hops").random(count) * (num_states - 1)).astype(np.int64)
        visited = (first + np.concatenate([[0], np.cumsum(hops)])) % num_states
        stay_s = streams.generator("sojourns").standard_exponential(count + 1) * sojourns_s[visited]
        knots_s = np.concatenate([[0.0], np.cumsum(stay_s)])
        if knots_s[-1] > horizon_s:
            return knots_s, factors[visited] / mean
        count *= 2

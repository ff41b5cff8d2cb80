"""Arrival processes: unit renewals, sped up and slowed down by a relative intensity with mean 1.

Every process is drawn the same way. A renewal process of rate 1 (Poisson, or gamma with a given variation) is
mapped through the inverse of the cumulative intensity, so any process runs at any mean rate with its relative
modulation kept. Each random ingredient has a stream of its own and is drawn in order of time: a longer draw
only continues a shorter one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from splitgym.randomness import Streams
from splitgym.workload.modulation import FOREVER, Intensity, Sojourn, Swing, on_off, states, swings
from splitgym.workload.requests import FloatArray

Offset = float | Literal["random"]
"""Where a draw begins: ``random`` for a random point of the process, else the seconds of it passed over."""


class ArrivalProcess(BaseModel):
    """How requests are spread in time; subclasses give the relative intensity."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    process: str

    @property
    def own_rate_rps(self) -> float | None:
        """The mean rate the process comes with; None where it has none."""
        return None

    @property
    def unit_cv(self) -> float:
        """Coefficient of variation of the gaps at constant intensity."""
        return 1.0

    def intensity(self, streams: Streams, horizon_s: float, offset: Offset) -> Intensity:
        """Relative intensity, mean 1 over time, for at least ``horizon_s``."""
        raise NotImplementedError

    def draw(self, streams: Streams, rate_rps: float, horizon_s: float, offset: Offset = "random") -> FloatArray:
        """(num_requests,) arrivals in [0, horizon_s), from a stationary start, at ``rate_rps`` on average."""
        passed_s = 0.0 if offset == "random" else float(offset)
        end_s = passed_s + horizon_s
        knots_s, relative = self.intensity(streams, end_s, offset)
        expected = rate_rps * np.concatenate([[0.0], np.cumsum(relative * np.diff(knots_s))])
        events = self._unit_renewals(streams, float(np.interp(end_s, knots_s, expected)))
        arrival_s = np.interp(events, expected, knots_s)
        return arrival_s[(arrival_s >= passed_s) & (arrival_s < end_s)] - passed_s

    def resolved(self, base_dir: Path) -> Self:
        """The process with its relative paths taken from ``base_dir``."""
        return self

    def _unit_renewals(self, streams: Streams, until: float) -> FloatArray:
        shape = self.unit_cv**-2
        # the first gap of a stationary renewal process: a uniform share of a length-biased one
        start = streams.generator("first-gap")
        first = start.random() * start.gamma(shape + 1) / shape
        count = int(until + 8 * self.unit_cv * np.sqrt(until) + 32)
        while True:
            gaps = streams.generator("gaps").gamma(shape, size=count) / shape
            events: FloatArray = np.cumsum(np.concatenate([[first], gaps]))
            if events[-1] > until:
                return events[events <= until]
            count *= 2


class SteadyArrivals(ArrivalProcess):
    """A process whose intensity does not move."""

    def intensity(self, streams: Streams, horizon_s: float, offset: Offset) -> Intensity:
        """Constant."""
        return np.array([0.0, FOREVER]), np.ones(1)


class PoissonArrivals(SteadyArrivals):
    """Independent arrivals at a constant rate."""

    process: Literal["poisson"]


class GammaArrivals(SteadyArrivals):
    """Independent gamma-distributed gaps with coefficient of variation ``cv``: bursty above 1, even below."""

    process: Literal["gamma"]
    cv: float = Field(gt=0, le=20)

    @property
    def unit_cv(self) -> float:
        """The card's ``cv``."""
        return self.cv


class MarkovState(BaseModel):
    """A state of a Markov-modulated process."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rate_factor: float = Field(ge=0)
    mean_sojourn_s: float = Field(gt=0)


class MarkovArrivals(ArrivalProcess):
    """Poisson arrivals whose rate jumps between states: exponential sojourns, then any other state.

    The factors are relative; they are scaled so that the mean over time is the mean rate.
    """

    process: Literal["markov"]
    states: tuple[MarkovState, ...] = Field(min_length=2)

    @model_validator(mode="after")
    def _some_state_has_arrivals(self) -> MarkovArrivals:
        if not any(state.rate_factor > 0 for state in self.states):
            raise ValueError("every rate_factor is 0; at least one state needs arrivals")
        return self

    def intensity(self, streams: Streams, horizon_s: float, offset: Offset) -> Intensity:
        """Piecewise constant, one piece a sojourn."""
        factors = np.array([state.rate_factor for state in self.states])
        sojourns_s = np.array([state.mean_sojourn_s for state in self.states])
        return states(streams, horizon_s, factors, sojourns_s)


class DiurnalArrivals(ArrivalProcess):
    """Poisson arrivals at the rate 1 + amplitude · sin(2πt / period_s) times the mean."""

    process: Literal["diurnal"]
    amplitude: float = Field(ge=0, le=1)
    period_s: float = Field(default=86_400.0, gt=0)

    def intensity(self, streams: Streams, horizon_s: float, offset: Offset) -> Intensity:
        """The sine in 2,000 steps a period, from a random phase unless an offset is given."""
        step_s = self.period_s / 2000
        phase_s = streams.generator("offset").random() * self.period_s if offset == "random" else 0.0
        knots_s = np.arange(int(horizon_s / step_s) + 2, dtype=np.float64) * step_s
        middle_s = knots_s[:-1] + step_s / 2 + phase_s
        relative: FloatArray = 1 + self.amplitude * np.sin(2 * np.pi * middle_s / self.period_s)
        return knots_s, relative


class SwingingArrivals(ArrivalProcess):
    """Poisson arrivals with a randomly swinging rate, log-normal at any instant."""

    process: Literal["swinging"]
    swings: tuple[Swing, ...] = Field(min_length=1)

    def intensity(self, streams: Streams, horizon_s: float, offset: Offset) -> Intensity:
        """Piecewise constant, in steps short against the fastest swing."""
        return swings(streams, horizon_s, self.swings)


class OnOffArrivals(ArrivalProcess):
    """Bursts and silences. At another mean rate their durations stay and the rate within bursts is scaled."""

    process: Literal["on-off"]
    burst: Sojourn  # not "on" and "off", which YAML reads as true and false
    silence: Sojourn
    swings: tuple[Swing, ...] = ()

    def intensity(self, streams: Streams, horizon_s: float, offset: Offset) -> Intensity:
        """(mean burst + mean silence)/mean burst times the swings in bursts, 0 between them."""
        return on_off(streams, horizon_s, self.burst, self.silence, self.swings)


def named_process(value: object) -> object:
    """``arrivals: poisson`` is short for ``arrivals: {process: poisson}``."""
    return {"process": value} if isinstance(value, str) else value


ShapedArrivals = Annotated[
    PoissonArrivals | GammaArrivals | MarkovArrivals | DiurnalArrivals | SwingingArrivals | OnOffArrivals,
    Field(discriminator="process"),
    BeforeValidator(named_process),
]
"""A process that stands on its own: everything but the shipped workloads' and a trace's arrivals."""

"""What every workload can do: be drawn, say its mean rate, and predict outputs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, FiniteFloat, PositiveFloat

from splitgym.errors import SplitgymError
from splitgym.randomness import Streams
from splitgym.workload.arrivals import Offset
from splitgym.workload.prediction import OutputPredictor
from splitgym.workload.prefixes import Prefixes
from splitgym.workload.quality import MeanPrediction, Prediction
from splitgym.workload.requests import FloatArray, IntArray, Requests
from splitgym.workload.streams import part

Drawn = tuple[FloatArray, IntArray, IntArray]
"""Arrivals in seconds, prompt tokens, output tokens; each (num_requests,)."""

REFERENCE_REQUESTS = 20_000


class Workload(BaseModel, ABC):
    """A source of requests. Equal streams give equal requests, and a longer draw begins as a shorter one."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    prediction: Prediction = MeanPrediction()
    deadline_s: Annotated[PositiveFloat, FiniteFloat] | None = None
    """From a request's arrival to when its client gives up; None for never."""

    @property
    @abstractmethod
    def mean_rate_rps(self) -> float:
        """Requests per second on average, as configured.

        Raises:
            SplitgymError: if nothing says the rate.
        """

    @abstractmethod
    def until(self, streams: Streams, horizon_s: float, rate_rps: float | None, offset: Offset) -> Drawn:
        """All arrivals in [0, horizon_s) at the mean rate ``rate_rps``, or at the configured one for None."""

    @abstractmethod
    def reference(self, count: int) -> tuple[IntArray, IntArray]:
        """(count,) prompts and (count,) outputs, always the same, from which outputs are predicted.

        Of a trace that is split they are the training stretch's, so that no prediction knows the test.
        """

    def resolved(self, base_dir: Path) -> Self:
        """The same workload with every relative path taken from ``base_dir``."""
        return self

    def natural_duration_s(self, streams: Streams, rate_rps: float | None) -> float | None:
        """How long a draw is that nothing limits; None where it would have no end."""
        return None

    def prefixes(
        self, streams: Streams, arrival_s: FloatArray, rate_rps: float | None, offset: Offset
    ) -> Prefixes | None:
        """Which prompts of the requests drawn for these arrivals begin alike; None where nothing says it."""
        return None

    def predict(self, streams: Streams, prompt_tokens: IntArray, output_tokens: IntArray) -> FloatArray:
        """(n,) what a router predicts of (n,) outputs, having learned from the reference requests."""
        return self.prediction.predict(_predictor(self), streams, prompt_tokens, output_tokens)

    def predict_again(self, streams: Streams, given: Requests) -> Requests:
        """``given``, a trace with mean predictions, predicted as well as this workload; learned from the trace."""
        if isinstance(self.prediction, MeanPrediction) or len(given) == 0:
            return given
        lengths = given.prompt_tokens, given.output_tokens
        predicted = self.prediction.predict(self.prediction.fit(*lengths), streams, *lengths)
        return replace(given, predicted_output_tokens=predicted)

    def draw(
        self,
        streams: Streams,
        *,
        duration_s: float | None = None,
        num_requests: int | None = None,
        rate_rps: float | None = None,
        offset: Offset = "random",
        base_dir: Path | None = None,
    ) -> Requests:
        """The requests of one episode; arrivals count from its start.

        Args:
            streams: the episode's random streams; their split chooses the stretch of a trace.
            duration_s: no request arrives at or after this.
            num_requests: no more requests than this. With neither limit a trace is replayed once.
            rate_rps: mean rate in place of the configured one; the parts of a mixture or shift in proportion.
            offset: where the episode begins: ``random``, or seconds into the trace, cycle or process.
            base_dir: the folder from which relative paths are taken; None takes the current one.

        Raises:
            SplitgymError: for a trace that cannot be read or a rate that nothing says.
            ValueError: for a limit or rate that is not positive, or without any limit where one is needed.
        """
        limits = {"duration_s": duration_s, "num_requests": num_requests, "rate_rps": rate_rps}
        for name, value in limits.items():
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be positive, not {value!r}")
        workload = self if base_dir is None else self.resolved(base_dir)
        if duration_s is None and num_requests is None:
            duration_s = workload.natural_duration_s(streams, rate_rps)
            if duration_s is None:
                raise ValueError("this workload has no end: give duration_s, num_requests or both")
        arrival_s, prompt, output = workload._within(streams, duration_s, num_requests, rate_rps, offset)
        predicted = workload.predict(streams, prompt, output) if len(prompt) else np.empty(0)
        prefixes = workload.prefixes(streams, arrival_s, rate_rps, offset)
        deadline_s = np.full(len(prompt), np.inf if workload.deadline_s is None else workload.deadline_s)
        return Requests(arrival_s, prompt, output, predicted, prefixes=prefixes, deadline_s=deadline_s)

    def _within(
        self,
        streams: Streams,
        duration_s: float | None,
        num_requests: int | None,
        rate_rps: float | None,
        offset: Offset,
    ) -> Drawn:
        if num_requests is None:
            assert duration_s is not None
            return self.until(streams, duration_s, rate_rps, offset)
        # draws do not depend on the horizon, so that looking further ahead changes nothing before
        horizon_s = (1.1 * num_requests + 16) / (rate_rps or self.mean_rate_rps)
        while True:
            horizon_s = horizon_s if duration_s is None else min(horizon_s, duration_s)
            arrival_s, prompt, output = self.until(streams, horizon_s, rate_rps, offset)
            if len(arrival_s) >= num_requests or horizon_s == duration_s:
                return arrival_s[:num_requests], prompt[:num_requests], output[:num_requests]
            horizon_s *= 2


def anchored(path: Path, base_dir: Path) -> Path:
    """``path``, from ``base_dir`` if it is relative."""
    return path if path.is_absolute() else base_dir / path


def reference_streams() -> Streams:
    """The fixed streams of reference draws."""
    return part(Streams(0, "train"), "reference")


def rate_missing(what: str) -> SplitgymError:
    """The error where nothing says how many requests arrive."""
    return SplitgymError(f"workload.rate_rps: missing for {what}; say how many requests arrive per second")


@lru_cache(maxsize=64)
def _predictor(workload: Workload) -> OutputPredictor:
    return workload.prediction.fit(*workload.reference(REFERENCE_REQUESTS))

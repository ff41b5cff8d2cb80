"""Fitting a latency law to the medians of profiled runs.

The law is linear in its coefficients and in the values of H_d and H_p at their points, so a linear
programme finds those with the least mean relative error whose largest stays within a cap.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from splitgym.hardware.latency import MAX_POINTS, LatencyLaw, Points, iteration_s, least_mixed_decode_s
from splitgym.hardware.measurements import OperatingPoint
from splitgym.hardware.profile import FitError

FloatArray = npt.NDArray[np.float64]

PROMPT_CAP, DECODE_CAP = 0.08, 0.057
"""Largest relative errors the fit strives to keep at the cost of the mean; it exceeds them if it must."""

LARGEST_WEIGHT, EXCESS_WEIGHT = 0.1, 10.0
"""Weights, beside the mean error's 1, of the largest error and of its excess over the cap."""


@dataclass(frozen=True)
class PointFit:
    """One operating point: its medians and what the law says."""

    point: OperatingPoint
    law_prompt_s: float
    law_token_s: float

    @property
    def prompt_error(self) -> float:
        """Law / median − 1 of the prompt time."""
        return self.law_prompt_s / self.point.prompt_s - 1

    @property
    def decode_error(self) -> float:
        """Law / median − 1 of the token time."""
        return self.law_token_s / self.point.token_s - 1


@dataclass(frozen=True)
class FitReport:
    """How a law fits, point by point."""

    points: tuple[PointFit, ...]

    @property
    def error(self) -> FitError:
        """Mean and largest relative error of prompts and decodes."""
        prompt = [abs(fit.prompt_error) for fit in self.points]
        decode = [abs(fit.decode_error) for fit in self.points]
        figures = (np.mean(prompt), max(prompt), np.mean(decode), max(decode))
        return FitError(*(round(float(figure), 5) for figure in figures))


def report_fit(law: LatencyLaw, points: Sequence[OperatingPoint]) -> FitReport:
    """The law against medians: equal prompts at once, then as many decodes halfway through the output."""
    row = law.packed()
    fits = []
    for point in points:
        batch, prompt = point.batch_size, point.prompt_tokens
        prompt_s = iteration_s(row, batch * prompt, batch, batch * prompt * prompt, 0, 0, 0)
        fits.append(PointFit(point, prompt_s, law.decode_s(batch, point.decode_context_tokens)))
    return FitReport(tuple(fits))


def fit_law(points: Sequence[OperatingPoint], least_context_s: float = 0.0) -> LatencyLaw:
    """The law with the least mean relative error, the largest capped, on prompts and on decodes.

    Mixed batches are not among the points: a decode context costs there what it costs among decodes, a
    decode the least with which no prompt shortens an iteration. Neither are chunks of a prompt nor the
    host's share of the time.

    Args:
        points: medians, at least one.
        least_context_s: lower bound of ``decode_context_s``; the time to read one token's KV-cache from
            memory.
    """
    batch = np.array([point.batch_size for point in points], dtype=np.float64)
    prompt = np.array([point.prompt_tokens for point in points], dtype=np.float64)
    context = np.array([point.decode_context_tokens for point in points], dtype=np.float64)
    decode_points, (decode_context_s,) = _fit(
        batch,
        context[:, None],
        np.array([point.token_s for point in points]),
        np.array([least_context_s]),
        DECODE_CAP,
    )
    batch_points, (per_prompt_s, attention_s) = _fit(
        batch * prompt,
        np.column_stack([batch, 0.5 * batch * prompt**2]),
        np.array([point.prompt_s for point in points]),
        np.zeros(2),
        PROMPT_CAP,
    )
    batch_points = _down_to_one_token(batch_points, decode_points[0][1] - per_prompt_s)
    return LatencyLaw(
        decode_points=decode_points,
        batch_points=batch_points,
        decode_context_s=decode_context_s,
        mixed_context_s=decode_context_s,
        mixed_decode_s=rounded(least_mixed_decode_s(decode_points, batch_points, per_prompt_s) * (1 + 1e-6)),
        attention_s=attention_s,
        per_prompt_s=per_prompt_s,
    )


def _fit(
    places: FloatArray, features: FloatArray, times_s: FloatArray, least: FloatArray, cap: float
) -> tuple[Points, tuple[float, ...]]:
    """Points of a monotone piecewise-linear function of ``places`` and coefficients of ``features``.

    Variables, all ≥ 0: the increments of the function (num_knots,), the coefficients above ``least``
    (num_features,), each point's relative error (num_points,), the largest of these, and its excess over
    ``cap``.
    """
    from scipy.optimize import linprog  # a quarter of a second that only fitting should pay

    knots = _knots(places)
    hats = np.array([np.interp(places, knots, unit) for unit in np.eye(len(knots))]).T
    increments = hats @ np.tril(np.ones((len(knots), len(knots))))  # (num_points, num_knots)
    scale = np.maximum(features.max(axis=0), 1.0)
    predicted = np.column_stack([increments, features / scale]) / times_s[:, None]
    wanted = 1 - features @ least / times_s
    num_points, num_variables = predicted.shape
    each = np.eye(num_points)
    neither, largest = np.zeros((num_points, 2)), np.tile([1.0, 0.0], (num_points, 1))
    result = linprog(
        np.concatenate([np.zeros(num_variables), np.full(num_points, 1 / num_points), [LARGEST_WEIGHT, EXCESS_WEIGHT]]),
        A_ub=np.block(
            [
                [predicted, -each, neither],
                [-predicted, -each, neither],
                [np.zeros_like(predicted), each, -largest],
                [np.zeros((1, num_variables + num_points)), np.array([[1.0, -1.0]])],
            ]
        ),
        b_ub=np.concatenate([wanted, -wanted, np.zeros(num_points), [cap]]),
        method="highs",
    )
    if result.x is None:  # feasible and bounded whatever the data; only the solver can fail
        raise RuntimeError(f"linear programme: {result.message}")
    solution = np.maximum(result.x, 0.0)
    seconds = np.cumsum(solution[: len(knots)])
    coefficients = least + solution[len(knots) : num_variables] / scale
    return (
        tuple((int(knot), rounded(value)) for knot, value in zip(knots, seconds, strict=True)),
        tuple(rounded(value) for value in coefficients),
    )


def _knots(places: FloatArray) -> FloatArray:
    """The places, or an even pick of them; one point is kept free for `_down_to_one_token`."""
    knots = np.unique(places)
    picked = np.linspace(0, len(knots) - 1, min(len(knots), MAX_POINTS - 1)).round().astype(np.int64)
    return np.asarray(knots[picked], dtype=np.float64)


def _down_to_one_token(batch_points: Points, decode_s: float) -> Points:
    """Prolong H_p to one token along its first segment, but not below an iteration of one decode."""
    if len(batch_points) < 2 or batch_points[0][0] <= 1:
        return batch_points
    (left, left_s), (right, right_s) = batch_points[:2]
    at_one_s = left_s - (left - 1) * (right_s - left_s) / (right - left)
    return ((1, min(left_s, rounded(max(at_one_s, decode_s)))), *batch_points)


def rounded(value: float) -> float:
    """Seven significant digits, as in the files."""
    return float(f"{value:.7g}")

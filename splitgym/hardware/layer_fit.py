"""Fitting a latency law to whole iterations composed from a layer profile, mixed batches included.

The law is linear in its coefficients once the places of H_d and H_p and the knee of the crowding term are chosen.
H_p is the time of the dense operations, which climbs in steps of a tile and is known at every size, plus a smooth
function of the batch that is fitted: the grid of mixed batches is far too coarse to find the steps again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from splitgym.hardware.latency import MAX_POINTS, LatencyLaw, Points, iteration_s, least_mixed_decode_s, piecewise_s
from splitgym.hardware.law_fit import rounded
from splitgym.hardware.layer_profile import Iterations

FloatArray = npt.NDArray[np.float64]

CROWDED_FROM_TOKENS = (65_536, 131_072, 196_608, 262_144)
"""Knees of the crowding term that are tried; the best is kept."""

FEW_DECODES = 32
"""Up to so many decodes H_p, beyond it ``mixed_decode_s``, is raised so that a prompt never shortens an iteration."""

SHORT_CONTEXT_TOKENS, SHORT_CONTEXT_WEIGHT = 128, 0.2
"""Decodes with contexts shorter than this, a third of a grid that doubles from 16 and rare in serving, count less."""

NUM_REFITS = 20
"""Refits to resampled iterations that tell the coefficients' spread."""

_REWEIGHTINGS = 12
_SMALL_ERROR = 0.005  # below it errors count by their square


@dataclass(frozen=True)
class ErrorOf:
    """Relative error |law / composed − 1| over iterations of one kind."""

    mean: float
    p95: float
    largest: float


@dataclass(frozen=True)
class Places:
    """What the fit does not fit: where H_d and H_p bend, H_p's steps, and the knee of the crowding term."""

    decodes: FloatArray  # (at most MAX_POINTS,)
    dense_points: Points  # (batch tokens, time of the dense operations)
    crowded_from_tokens: int


def fit_layers(iterations: Iterations, dense_tokens: FloatArray, dense_s: FloatArray) -> tuple[LatencyLaw, Places]:
    """The law with about the least mean relative error on the iterations, and the places it was fitted at.

    Args:
        iterations: of all three kinds.
        dense_tokens: (num_sizes,) batch tokens, increasing.
        dense_s: (num_sizes,) time of the dense operations at these.
    """
    decodes = np.unique(iterations.decodes[iterations.kinds["decode"]])
    even = np.linspace(0, len(decodes) - 1, min(len(decodes), MAX_POINTS)).round().astype(np.int64)
    dense_points = _bends(dense_tokens, np.maximum.accumulate(dense_s))
    best: tuple[float, LatencyLaw, Places] | None = None
    for crowded_from in CROWDED_FROM_TOKENS:
        places = Places(decodes[even], dense_points, crowded_from)
        law = fit_at(iterations, places)
        error = error_of(law, iterations)["mixed"].mean
        if best is None or error < best[0]:
            best = error, law, places
    assert best is not None
    return best[1:]


def fit_at(iterations: Iterations, places: Places) -> LatencyLaw:
    """The law with about the least mean relative error, its functions bending at ``places``."""
    kinds = iterations.kinds
    alone, prompted = iterations.of(kinds["decode"]), iterations.of(~kinds["decode"])
    decode_points, (decode_context_s,) = _fit(
        places.decodes, alone.decodes, alone.decode_context[:, None], alone, np.zeros_like(alone.seconds)
    )
    chunk, context, batch = prompted.chunk_tokens, prompted.decode_context, prompted.batch_tokens
    doublings = 2.0 ** np.arange(np.ceil(np.log2(batch.max())) + 1)
    smooth_points, others = _fit(
        doublings,
        batch,
        np.column_stack(
            [
                chunk * (prompted.prefill_context + chunk / 2),
                prompted.prefill_context,
                context,
                prompted.decodes,
                prompted.decodes * np.maximum(context - places.crowded_from_tokens, 0),
            ]
        ),
        prompted,
        piecewise_s(places.dense_points, batch),
    )
    attention_s, prefill_context_s, mixed_context_s, mixed_decode_s, crowded_s = others
    steps, steps_s = np.array(places.dense_points).T
    # a tiny prompt must not shorten an iteration of few decodes (nor of many: see least_s below)
    few = (seconds - mixed_decode_s * number for number, seconds in decode_points if number <= FEW_DECODES)
    few_s = max(few, default=0.0)
    batch_s = np.maximum(steps_s + piecewise_s(smooth_points, steps), few_s)
    batch_points = tuple((int(step), rounded(seconds)) for step, seconds in zip(steps, batch_s, strict=True))
    least_s = least_mixed_decode_s(decode_points, batch_points, 0.0) * (1 + 1e-6)
    return LatencyLaw(
        decode_points=decode_points,
        batch_points=batch_points,
        decode_context_s=decode_context_s,
        mixed_context_s=max(mixed_context_s, decode_context_s),
        mixed_decode_s=max(mixed_decode_s, rounded(least_s)),
        attention_s=attention_s,
        prefill_context_s=prefill_context_s,
        crowded_s=crowded_s,
        crowded_from_tokens=places.crowded_from_tokens,
    )


def refits(iterations: Iterations, always: Iterations, places: Places, rng: np.random.Generator) -> list[LatencyLaw]:
    """Laws fitted to iterations resampled by (prefill context, decode context), whole groups at a time, and to others.

    Neighbouring iterations err alike, so that single ones would make the law look far better known than it is.
    """
    pairs = np.column_stack([iterations.prefill_context, iterations.context_each])
    _, group = np.unique(pairs, axis=0, return_inverse=True)
    rows_of = [np.flatnonzero(group == number) for number in range(int(group.max()) + 1)]
    decodes_only = iterations.kinds["decode"]
    laws: list[LatencyLaw] = []
    while len(laws) < NUM_REFITS:
        drawn = np.concatenate([rows_of[number] for number in rng.integers(len(rows_of), size=len(rows_of))])
        if decodes_only[drawn].all() or not decodes_only[drawn].any():
            continue  # of so few rows that either kind may be left out
        counts = np.bincount(drawn, minlength=len(group))
        laws.append(fit_at(iterations.of(np.repeat(np.arange(len(group)), counts)).and_also(always), places))
    return laws


def law_s(law: LatencyLaw, iterations: Iterations) -> FloatArray:
    """What the law says of each iteration (num_iterations,)."""
    row = law.packed()
    sizes = (iterations.chunk_tokens, iterations.prefill_context, iterations.decodes, iterations.decode_context)
    return np.array(
        [
            iteration_s(row, chunk, int(chunk > 0), chunk * (2 * prefill + chunk), prefill, decodes, context)
            for chunk, prefill, decodes, context in np.column_stack(sizes).astype(np.int64).tolist()
        ]
    )


def error_of(law: LatencyLaw, iterations: Iterations) -> Mapping[str, ErrorOf]:
    """The law's error on iterations of prompts alone, decodes alone, and both."""
    errors = np.abs(law_s(law, iterations) / iterations.seconds - 1)
    return {
        kind: ErrorOf(
            float(errors[which].mean()),
            float(np.quantile(errors[which], 0.95)),
            float(errors[which].max()),
        )
        for kind, which in iterations.kinds.items()
    }


def _bends(sizes: FloatArray, seconds: FloatArray) -> Points:
    """The points through which linear interpolation comes close, one added after the other where it is worst."""
    chosen = [0, len(sizes) - 1]
    while len(chosen) < min(MAX_POINTS, len(sizes)):
        misses = np.abs(np.interp(sizes, sizes[chosen], seconds[chosen]) / seconds - 1)
        chosen = sorted({*chosen, int(misses.argmax())})
        if misses.max() == 0:
            break
    return tuple((int(sizes[index]), float(seconds[index])) for index in chosen)


def _fit(
    knots: FloatArray, places: FloatArray, features: FloatArray, iterations: Iterations, known_s: FloatArray
) -> tuple[Points, tuple[float, ...]]:
    """Points of a monotone function of ``places`` and coefficients of ``features``, none negative, beside ``known_s``.

    Least absolute relative errors by least squares with weights 1/|error|, repeated; non-negative increments of the
    function make it monotone. (The linear programme of `law_fit` would take minutes for so many iterations.)
    """
    from scipy.optimize import nnls  # a quarter of a second that only fitting should pay

    hats = np.column_stack([np.interp(places, knots, unit) for unit in np.eye(len(knots))])
    if len(knots) > 1:
        beyond = np.maximum(places - knots[-1], 0) / (knots[-1] - knots[-2])  # the last segment goes on
        hats[:, -2:] += beyond[:, None] * [-1, 1]
    increments = hats @ np.tril(np.ones((len(knots), len(knots))))
    scale = np.maximum(features.max(axis=0), 1.0)
    predictors = np.column_stack([increments, features / scale, iterations.seconds - known_s])
    predictors /= iterations.seconds[:, None]
    short = (iterations.decodes > 0) & (iterations.context_each < SHORT_CONTEXT_TOKENS)
    counts = np.where(short, SHORT_CONTEXT_WEIGHT, 1.0)
    weights = np.sqrt(counts)
    solution = np.zeros(predictors.shape[1] - 1)
    for _ in range(_REWEIGHTINGS):
        rows = np.linalg.qr(predictors * weights[:, None], mode="r")  # as good as all rows, and far fewer
        triangle: FloatArray = np.asarray(rows)
        solution, _ = nnls(triangle[:, :-1], triangle[:, -1])
        errors = np.abs(predictors[:, :-1] @ solution - predictors[:, -1])
        weights = np.sqrt(counts / np.maximum(errors, _SMALL_ERROR))
    heights = np.cumsum(solution[: len(knots)])
    points = tuple((int(knot), rounded(height)) for knot, height in zip(knots, heights, strict=True))
    return points, tuple(rounded(value) for value in solution[len(knots) :] / scale)

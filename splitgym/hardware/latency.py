"""The latency law: how long one iteration of a machine takes, and what it draws meanwhile.

Two scalar compiled functions, `iteration_s` and `power_w`, are called by every engine; `LatencyLaw` and
`splitgym.hardware.power.PowerLaw` are their readable faces.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Annotated

import numpy as np
import numpy.typing as npt
from pydantic import ConfigDict, Field

from splitgym.jit import inner_njit, lean_njit, njit, seldom_njit

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Points = tuple[tuple[Annotated[int, Field(ge=0)], Seconds], ...]

MAX_POINTS = 24
"""Most points of one piecewise-linear function in a law."""

_HOST, _PER_PROMPT, _ATTENTION, _PREFILL_CONTEXT, _DECODE_CONTEXT, _MIXED_CONTEXT, _MIXED_DECODE = range(7)
_CROWDED, _CROWDED_FROM, _NUM_DECODE_POINTS, _NUM_BATCH_POINTS = range(7, 11)
CAP_W, CAP_SLOWDOWN, NUM_PROMPT_WATTS, NUM_DECODE_WATTS = range(11, 15)  # written by PowerLaw; 0: no cap
_DECODE_POINTS = 15
_BATCH_POINTS = _DECODE_POINTS + 3 * MAX_POINTS  # places, seconds, slope of the segment that ends at each point

TABULATED_DECODES, TABULATED_TOKENS = 1024, 4096
"""So many values of H_d and H_p, from 0 on, are looked up: usual batches are smaller. 41 kB a law."""

_DECODE_TABLE = _BATCH_POINTS + 3 * MAX_POINTS
_BATCH_TABLE = _DECODE_TABLE + TABULATED_DECODES

PROMPT_WATTS = _BATCH_TABLE + TABULATED_TOKENS
DECODE_WATTS = PROMPT_WATTS + 3 * MAX_POINTS

LAW_SIZE = DECODE_WATTS + 3 * MAX_POINTS
"""Length of a packed law."""


@dataclass(frozen=True)
class LatencyLaw:
    """Time of one iteration, linear in its coefficients, non-decreasing in every feature of the batch.

    Decodes only::

        T = host_s + H_d(decodes) + decode_context_s · Σ decode context

    With prompts::

        T = host_s + H_p(prompt tokens + decodes) + per_prompt_s · prompt sequences
            + attention_s · Σ chunk · (context + chunk/2) + prefill_context_s · Σ prefill context
            + mixed_context_s · Σ decode context + mixed_decode_s · decodes
            + crowded_s · decodes · max(0, Σ decode context − crowded_from_tokens)

    The decode context of a sequence is its prompt and the tokens generated so far, the first one included. The
    last term: contexts that many decodes read beside a prompt outgrow the GPU's cache and evict each other's.
    H_d and H_p are piecewise linear through ``decode_points`` and ``batch_points``, flat below the first
    point and going on with the last segment's slope beyond the last.

    Raises:
        ValueError: if points are missing, too many, not increasing in place or decreasing in time, or a mixed
            iteration could be shorter than its decodes alone.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    decode_points: Points  # H_d: (decodes, seconds)
    batch_points: Points  # H_p: (tokens in the batch, seconds)
    decode_context_s: Seconds  # a token of decode context, iterations of decodes only
    mixed_context_s: Seconds  # the same, iterations with prompts
    mixed_decode_s: Seconds  # a decode, iterations with prompts
    attention_s: Seconds  # a (query, key) pair of a prompt
    per_prompt_s: Seconds = 0.0
    prefill_context_s: Seconds = 0.0  # a token of context that a prompt's chunk finds in the cache
    crowded_s: Seconds = 0.0  # a decode and a token of decode context beyond the next, iterations with prompts
    crowded_from_tokens: Annotated[int, Field(ge=0)] = 0
    host_s: Seconds = 0.0  # between iterations

    def __post_init__(self) -> None:
        for name, points in (("decode_points", self.decode_points), ("batch_points", self.batch_points)):
            if not 1 <= len(points) <= MAX_POINTS:
                raise ValueError(f"{name}: {len(points)} points; give 1 to {MAX_POINTS}")
            if any(left[0] >= right[0] or left[1] > right[1] for left, right in pairwise(points)):
                raise ValueError(f"{name}: places must increase and times must not decrease")
        if self.mixed_context_s < self.decode_context_s:
            raise ValueError("mixed_context_s: below decode_context_s, so that a prompt would shorten an iteration")
        least = least_mixed_decode_s(self.decode_points, self.batch_points, self.per_prompt_s)
        if self.mixed_decode_s < least * (1 - 1e-9):
            raise ValueError(f"mixed_decode_s: below {least:.7g}, so that a prompt would shorten an iteration")

    def packed(self) -> FloatArray:
        """The law as a row (LAW_SIZE,) for `iteration_s`; those of several machines can be stacked."""
        return self._row.copy()

    @cached_property
    def _row(self) -> FloatArray:
        row = np.zeros(LAW_SIZE)
        row[_HOST] = self.host_s
        row[_PER_PROMPT] = self.per_prompt_s
        row[_ATTENTION] = self.attention_s
        row[_PREFILL_CONTEXT] = self.prefill_context_s
        row[_DECODE_CONTEXT] = self.decode_context_s
        row[_MIXED_CONTEXT] = self.mixed_context_s
        row[_MIXED_DECODE] = self.mixed_decode_s
        row[_CROWDED] = self.crowded_s
        row[_CROWDED_FROM] = self.crowded_from_tokens
        row[_NUM_DECODE_POINTS] = len(self.decode_points)
        row[_NUM_BATCH_POINTS] = len(self.batch_points)
        for start, points in ((_DECODE_POINTS, self.decode_points), (_BATCH_POINTS, self.batch_points)):
            put_points(row, start, points)
        _fill_tables(row)
        return row

    def prompt_s(self, prompt_tokens: int) -> float:
        """Time of one prompt alone."""
        return iteration_s(self._row, prompt_tokens, 1, prompt_tokens * prompt_tokens, 0, 0, 0)

    def decode_s(self, decodes: int, context_tokens_total: int) -> float:
        """Time of an iteration of ``decodes`` decodes whose contexts sum to ``context_tokens_total``."""
        return iteration_s(self._row, 0, 0, 0, 0, decodes, context_tokens_total)

    def uncontended_s(self, prompt_tokens: IntArray, output_tokens: IntArray) -> tuple[FloatArray, FloatArray]:
        """TTFT and E2E of requests that have a machine to themselves.

        TTFT0 = T(prompt); E2E0 = TTFT0 + Σ T(1 decode, context prompt + k) for k = 1 … output − 1, in
        closed form.

        Args:
            prompt_tokens: (num_requests,).
            output_tokens: (num_requests,), the first token included.

        Returns:
            TTFT0 and E2E0 in seconds, each (num_requests,).
        """
        prompts, outputs = np.broadcast_arrays(np.atleast_1d(prompt_tokens), np.atleast_1d(output_tokens))
        return _uncontended_s(self._row, prompts.astype(np.int64, order="C"), outputs.astype(np.int64, order="C"))


def least_mixed_decode_s(decode_points: Points, batch_points: Points, per_prompt_s: float) -> float:
    """The smallest time of a decode among prompts with which no prompt ever shortens an iteration.

    That is the largest (H_d(n) − H_p(n + 1) − per_prompt_s) / n over n ≥ 1: with mixed_context_s ≥
    decode_context_s, an iteration of n decodes and any prompt then takes no less than the n decodes alone.
    """
    # between breakpoints the ratio is a/n + b, hence monotone: it is largest at one of them or at infinity
    breakpoints = {1, *(n for n, _ in decode_points), *(tokens - 1 for tokens, _ in batch_points)}
    numbers = np.array(sorted(n for n in breakpoints if n >= 1), dtype=np.float64)
    excess_s = piecewise_s(decode_points, numbers) - piecewise_s(batch_points, numbers + 1) - per_prompt_s
    return max(0.0, float(np.max(excess_s / numbers)), _last_slope(decode_points) - _last_slope(batch_points))


def piecewise_s(points: Points, places: FloatArray) -> FloatArray:
    """The piecewise-linear function through ``points`` at ``places`` (num_places,), as a law reads it."""
    known, seconds = np.array(points, dtype=np.float64).T
    beyond = np.maximum(places - known[-1], 0.0) * _last_slope(points)
    values: FloatArray = np.interp(places, known, seconds) + beyond
    return values


def put_points(law_row: FloatArray, start: int, points: Points) -> None:
    """Write a function's points into a packed law: places, heights, slopes of the segments."""
    places, heights = np.array(points, dtype=np.float64).T
    law_row[start : start + len(points)] = places
    law_row[start + MAX_POINTS : start + MAX_POINTS + len(points)] = heights
    slopes = start + 2 * MAX_POINTS + 1
    law_row[slopes : slopes + len(points) - 1] = np.diff(heights) / np.diff(places)


def _last_slope(points: Points) -> float:
    if len(points) == 1:
        return 0.0
    (left, left_s), (right, right_s) = points[-2:]
    return (right_s - left_s) / (right - left)


@lean_njit
def _points_s(law_row: FloatArray, start: int, num_points: int, place: float) -> float:
    places, seconds = law_row[start : start + num_points], law_row[start + MAX_POINTS :]
    if num_points == 1 or place <= places[0]:
        return float(seconds[0])
    right = 1
    for point in range(1, num_points - 1):  # counting them all takes less time than guessing where to stop
        right += place > places[point]
    slope = law_row[start + 2 * MAX_POINTS + right]
    return float(seconds[right - 1] + slope * (place - places[right - 1]))


@njit
def _fill_tables(law_row: FloatArray) -> None:
    for n in range(_DECODE_TABLE, _BATCH_TABLE):
        law_row[n] = _points_s(law_row, _DECODE_POINTS, int(law_row[_NUM_DECODE_POINTS]), float(n - _DECODE_TABLE))
    for n in range(_BATCH_TABLE, LAW_SIZE):
        law_row[n] = _points_s(law_row, _BATCH_POINTS, int(law_row[_NUM_BATCH_POINTS]), float(n - _BATCH_TABLE))


@inner_njit
def _decodes_s(law_row: FloatArray, decodes: int) -> float:
    if 0 <= decodes < TABULATED_DECODES:
        return float(law_row[_DECODE_TABLE + decodes])
    return _points_s(law_row, _DECODE_POINTS, int(law_row[_NUM_DECODE_POINTS]), float(decodes))


@inner_njit
def _batch_s(law_row: FloatArray, tokens: int) -> float:
    if 0 <= tokens < TABULATED_TOKENS:
        return float(law_row[_BATCH_TABLE + tokens])
    return _points_s(law_row, _BATCH_POINTS, int(law_row[_NUM_BATCH_POINTS]), float(tokens))


@lean_njit
def iteration_s(
    law_row: FloatArray,
    prompt_tokens: int,
    prompt_sequences: int,
    attention: int,
    prefill_context: int,
    decodes: int,
    decode_context: int,
) -> float:
    """Time of one iteration; a batch without prompt tokens is one of decodes only.

    Under a power cap it takes longer where it would draw more: see `splitgym.hardware.power.PowerLaw`.

    Args:
        law_row: (LAW_SIZE,) from `LatencyLaw.packed` or `PowerLaw.packed_with`.
        prompt_tokens: prompt tokens processed in this iteration.
        prompt_sequences: prompts they belong to.
        attention: Σ chunk · (2 · context + chunk) over prompts; halved here, so that callers keep an integer.
        prefill_context: Σ tokens of these prompts already in the cache.
        decodes: sequences that yield one token each.
        decode_context: Σ over decodes of prompt tokens and tokens generated so far.
    """
    duration_s = _uncapped_s(
        law_row, prompt_tokens, prompt_sequences, attention, prefill_context, decodes, decode_context
    )
    if law_row[CAP_W] > 0:
        duration_s *= _stretch(law_row, prompt_tokens, decodes)
    return duration_s


@seldom_njit
def _stretch(law_row: FloatArray, prompt_tokens: int, decodes: int) -> float:
    """How many times as long an iteration takes under the cap."""
    excess = max(0.0, _uncapped_w(law_row, prompt_tokens, decodes) / law_row[CAP_W] - 1.0)
    return float(1.0 + law_row[CAP_SLOWDOWN] * excess)


@inner_njit
def _uncapped_s(
    law_row: FloatArray,
    prompt_tokens: int,
    prompt_sequences: int,
    attention: int,
    prefill_context: int,
    decodes: int,
    decode_context: int,
) -> float:
    if prompt_tokens == 0:
        return float(law_row[_HOST] + _decodes_s(law_row, decodes) + law_row[_DECODE_CONTEXT] * decode_context)
    return float(
        law_row[_HOST]
        + _batch_s(law_row, prompt_tokens + decodes)
        + law_row[_PER_PROMPT] * prompt_sequences
        + law_row[_ATTENTION] * (0.5 * attention)
        + law_row[_PREFILL_CONTEXT] * prefill_context
        + law_row[_MIXED_CONTEXT] * decode_context
        + law_row[_MIXED_DECODE] * decodes
        + law_row[_CROWDED] * decodes * max(0.0, decode_context - law_row[_CROWDED_FROM])
    )


@lean_njit
def power_w(law_row: FloatArray, prompt_tokens: int, decodes: int) -> float:
    """What a machine draws in an iteration, idling included.

    Args:
        law_row: (LAW_SIZE,) from `PowerLaw.packed_with`.
        prompt_tokens: prompt tokens processed in this iteration.
        decodes: sequences that yield one token each.
    """
    watts = _uncapped_w(law_row, prompt_tokens, decodes)
    return float(min(watts, law_row[CAP_W])) if law_row[CAP_W] > 0 else watts


@inner_njit
def _uncapped_w(law_row: FloatArray, prompt_tokens: int, decodes: int) -> float:
    decode_w = _watts(law_row, DECODE_WATTS, int(law_row[NUM_DECODE_WATTS]), decodes)
    if prompt_tokens == 0:
        return decode_w
    return max(_watts(law_row, PROMPT_WATTS, int(law_row[NUM_PROMPT_WATTS]), prompt_tokens + decodes), decode_w)


@inner_njit
def _watts(law_row: FloatArray, start: int, num_points: int, load: int) -> float:
    """Flat beyond the last point, where a law of times goes on rising."""
    return _points_s(law_row, start, num_points, min(float(load), law_row[start + num_points - 1]))


@njit
def _uncontended_s(law_row: FloatArray, prompts: IntArray, outputs: IntArray) -> tuple[FloatArray, FloatArray]:
    ttft_s = np.empty(prompts.size)
    e2e_s = np.empty(prompts.size)
    for i in range(prompts.size):
        prompt, steps = prompts[i], outputs[i] - 1
        ttft_s[i] = iteration_s(law_row, prompt, 1, prompt * prompt, 0, 0, 0)
        context_total = steps * prompt + steps * (steps + 1) // 2
        first_s = iteration_s(law_row, 0, 0, 0, 0, 1, 0)
        e2e_s[i] = ttft_s[i] + steps * first_s + law_row[_DECODE_CONTEXT] * context_total
    return ttft_s, e2e_s

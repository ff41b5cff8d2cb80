"""The power law: what a machine draws in an iteration, by phase and load, and what a power cap does to it."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated

import numpy as np
import numpy.typing as npt
from pydantic import ConfigDict, Field

from splitgym.hardware.latency import (
    CAP_SLOWDOWN,
    CAP_W,
    DECODE_WATTS,
    MAX_POINTS,
    NUM_DECODE_WATTS,
    NUM_PROMPT_WATTS,
    PROMPT_WATTS,
    LatencyLaw,
    put_points,
)

FloatArray = npt.NDArray[np.float64]
Watts = Annotated[float, Field(ge=0, allow_inf_nan=False)]
LoadPoints = tuple[tuple[Annotated[int, Field(ge=0)], Watts], ...]

PUBLISHED_CAP_SLOWDOWN = 0.7
"""A machine capped at 0.7 of what it would draw takes 1 + 0.7 · (1/0.7 − 1) = 1.3 times as long.

So do the prompts of the capped H100 in the profile published with Splitwise (SplitwiseSim, MIT), whose token phase,
below the cap, takes as long as ever.
"""


@dataclass(frozen=True)
class PowerLaw:
    """Power of a machine in one iteration, idling included, non-decreasing in every feature of the batch.

    It is::

        decode only:   P = P_d(decodes)
        with prompts:  P = max(P_p(prompt tokens + decodes), P_d(decodes))

    P_p and P_d are piecewise linear through ``prompt_points`` and ``decode_points`` and flat outside them.

    Under a cap C an iteration that would draw P > C draws C and takes 1 + ``cap_slowdown`` · (P/C − 1) times as long.
    So a lower cap never shortens an iteration, and with a ``cap_slowdown`` of at most 1 never raises its energy.

    Raises:
        ValueError: if points are missing, too many, not increasing in place, decreasing in power or below idling.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    idle_w: Watts  # between iterations
    prompt_points: LoadPoints  # P_p: (tokens in the batch, watts)
    decode_points: LoadPoints  # P_d: (decodes, watts)
    cap_slowdown: Annotated[float, Field(ge=0, le=1)] = PUBLISHED_CAP_SLOWDOWN

    def __post_init__(self) -> None:
        for name, points in (("prompt_points", self.prompt_points), ("decode_points", self.decode_points)):
            if not 1 <= len(points) <= MAX_POINTS:
                raise ValueError(f"{name}: {len(points)} points; give 1 to {MAX_POINTS}")
            if any(left[0] >= right[0] or left[1] > right[1] for left, right in pairwise(points)):
                raise ValueError(f"{name}: places must increase and watts must not decrease")
            if points[0][1] < self.idle_w:
                raise ValueError(f"{name}: {points[0][1]:g} W is below the {self.idle_w:g} W of idling")

    @property
    def most_w(self) -> float:
        """What a machine draws at most."""
        return max(self.prompt_points[-1][1], self.decode_points[-1][1])

    def packed_with(self, law: LatencyLaw, cap_w: float | None = None) -> FloatArray:
        """Both laws as a row (LAW_SIZE,) for `iteration_s` and `power_w`, of a machine with this power cap."""
        row = law.packed()
        row[CAP_W] = cap_w or 0.0
        row[CAP_SLOWDOWN] = self.cap_slowdown
        for number, start, points in (
            (NUM_PROMPT_WATTS, PROMPT_WATTS, self.prompt_points),
            (NUM_DECODE_WATTS, DECODE_WATTS, self.decode_points),
        ):
            row[number] = len(points)
            put_points(row, start, points)
        return row

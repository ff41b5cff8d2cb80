"""How well a law's coefficients are known, and laws drawn from that for domain randomisation."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import ConfigDict, Field

from splitgym.hardware.latency import LatencyLaw, Points, least_mixed_decode_s, piecewise_s

Spread = Annotated[float, Field(ge=0, allow_inf_nan=False)]

MOST_DEVIATIONS = 2.0
"""Draws further out are pulled in to this many standard deviations."""

LARGEST_SPREAD = 0.5
"""Largest relative standard deviation that is stated: more means that the measurements say next to nothing."""


@dataclass(frozen=True)
class LawUncertainty:
    """Relative standard deviations of a law's coefficients; those of a function's points are common to all points."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    decode_points: Spread = 0.0
    batch_points: Spread = 0.0
    decode_context_s: Spread = 0.0
    mixed_context_s: Spread = 0.0
    mixed_decode_s: Spread = 0.0
    attention_s: Spread = 0.0
    per_prompt_s: Spread = 0.0
    prefill_context_s: Spread = 0.0
    crowded_s: Spread = 0.0
    host_s: Spread = 0.0


def spread_of(
    law: LatencyLaw, refits: Sequence[LatencyLaw], decode_error: float, prompt_error: float, host: float = 0.0
) -> LawUncertainty:
    """The spread of a law's coefficients over refits to resampled measurements.

    Resampling tells what noise does, not what the law's form leaves out. So the two functions, which carry most of
    the time, are given at least the law's mean relative error on decodes alone and with prompts.

    Args:
        law: the law.
        refits: laws of the same form, at least two.
        decode_error: mean relative error of iterations of decodes only.
        prompt_error: that of iterations with prompts.
        host: relative standard deviation of ``host_s``, which no refit can tell.
    """
    spreads = {"decode_points": decode_error, "batch_points": prompt_error, "host_s": host if law.host_s else 0.0}
    for name, floor in (("decode_points", decode_error), ("batch_points", prompt_error)):
        points: Points = getattr(law, name)
        places = np.array([place for place, _ in points], dtype=np.float64)
        heights = np.array([piecewise_s(getattr(refit, name), places) for refit in refits])
        ratios = heights / np.maximum([seconds for _, seconds in points], 1e-12)
        spreads[name] = max(floor, float(np.std(np.median(ratios, axis=1), ddof=1)))
    for field in dataclasses.fields(LawUncertainty):
        value = getattr(law, field.name)
        if field.name not in spreads:
            others = [getattr(refit, field.name) for refit in refits]
            spreads[field.name] = float(np.std(others, ddof=1)) / value if value else 0.0
    return LawUncertainty(**{name: round(min(spread, LARGEST_SPREAD), 4) for name, spread in spreads.items()})


def drawn_law(law: LatencyLaw, uncertainty: LawUncertainty, rng: np.random.Generator) -> LatencyLaw:
    """A law whose coefficients are each multiplied by exp(spread · z), z normal and within ±`MOST_DEVIATIONS`.

    Valid by construction: a function's points move together, so that they keep their order; both coefficients of
    decode context share one z, the same memory being read; and the least with which no prompt shortens an iteration
    is kept. The same generator state gives the same law, and as many numbers are taken from it for any profile.
    """
    z = np.clip(rng.standard_normal(len(dataclasses.fields(uncertainty))), -MOST_DEVIATIONS, MOST_DEVIATIONS)
    names = [field.name for field in dataclasses.fields(uncertainty)]
    deviation = dict(zip(names, z.tolist(), strict=True))
    deviation["mixed_context_s"] = deviation["decode_context_s"]
    factor = {name: float(np.exp(getattr(uncertainty, name) * deviation[name])) for name in names}
    decode_points = _scaled(law.decode_points, factor["decode_points"])
    batch_points = _scaled(law.batch_points, factor["batch_points"])
    per_prompt_s = law.per_prompt_s * factor["per_prompt_s"]
    decode_context_s = law.decode_context_s * factor["decode_context_s"]
    least_s = least_mixed_decode_s(decode_points, batch_points, per_prompt_s)
    return dataclasses.replace(
        law,
        decode_points=decode_points,
        batch_points=batch_points,
        decode_context_s=decode_context_s,
        mixed_context_s=max(law.mixed_context_s * factor["mixed_context_s"], decode_context_s),
        mixed_decode_s=max(law.mixed_decode_s * factor["mixed_decode_s"], least_s),
        attention_s=law.attention_s * factor["attention_s"],
        per_prompt_s=per_prompt_s,
        prefill_context_s=law.prefill_context_s * factor["prefill_context_s"],
        crowded_s=law.crowded_s * factor["crowded_s"],
        host_s=law.host_s * factor["host_s"],
    )


def _scaled(points: Points, factor: float) -> Points:
    return tuple((place, seconds * factor) for place, seconds in points)

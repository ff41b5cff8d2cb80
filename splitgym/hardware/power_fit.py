"""Where the figures of a power law come from: profiled runs with power, declared shares of the TDP else."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Sequence
from itertools import accumulate, pairwise

from splitgym.hardware.measurements import Run, decode_power_fraction
from splitgym.hardware.models import MachineSpec
from splitgym.hardware.power import PowerLaw

IDLE_POWER_FRACTION = 0.25
"""Share of TDP a machine draws between iterations: declared, not measured."""

UNMEASURED_DECODE_POWER_FRACTION = 0.5
"""Share of TDP while decoding where no power was measured: declared."""

_CAPPED = (
    "a power cap: 1 + 0.7 (P/cap - 1) times the time, so that 0.7 of TDP makes saturated prompts 1.3 times as long,"
    " as in the synthetic rows of the capped H100 published with Splitwise (SplitwiseSim, MIT)"
)


def declared_power(machine: MachineSpec, share: float) -> PowerLaw:
    """Constant in each phase, of a ``share`` of the machine."""
    return PowerLaw(
        idle_w=round(IDLE_POWER_FRACTION * machine.tdp_w * share, 1),
        prompt_points=((1, round(machine.tdp_w * share, 1)),),
        decode_points=((1, round(UNMEASURED_DECODE_POWER_FRACTION * machine.uncapped_tdp_w * share, 1)),),
    )


def declared_assumptions(machine: MachineSpec) -> tuple[str, ...]:
    """What `declared_power` supposes."""
    return (
        f"power of a machine: prompt at its TDP, {machine.tdp_w:g} W; decode {UNMEASURED_DECODE_POWER_FRACTION:g} of"
        f" {machine.uncapped_tdp_w:g} W, idle {IDLE_POWER_FRACTION:g} of TDP, declared; how it rises with load was not"
        " measured, so it is constant in each phase",
        _CAPPED,
    )


def measured_power(machine: MachineSpec, share: float, runs: Sequence[Run]) -> PowerLaw:
    """The GPUs' shares of their TDP in ``runs``, taken for the machine's; declared ones where there is no power.

    P_p is the peak of a run by the tokens of its prompts, P_d the average of runs that mostly decode.
    """
    declared = declared_power(machine, share)
    decode = decode_power_fraction(runs)
    if decode is None:
        return declared

    def watts(fraction: float) -> float:
        return round(min(machine.tdp_w, fraction * machine.uncapped_tdp_w) * share, 1)

    ramp = tuple((tokens, max(watts(peak), watts(decode))) for tokens, peak in prompt_power_fractions(runs))
    rising = ramp[:1] + tuple(right for left, right in pairwise(ramp) if left[1] < ramp[-1][1])
    return PowerLaw(declared.idle_w, rising or declared.prompt_points, ((1, watts(decode)),))


def measured_assumptions(machine: MachineSpec, runs: Sequence[Run]) -> tuple[str, ...]:
    """What `measured_power` supposes."""
    decode = decode_power_fraction(runs)
    if decode is None:
        return declared_assumptions(machine)
    powered = ", ".join(sorted({run.hardware for run in runs if run.power_fraction > 0}))
    ramp = "the peaks by their tokens" if prompt_power_fractions(runs) else "at TDP"
    return (
        f"power of a machine, TDP {machine.tdp_w:g} W: shares of {machine.uncapped_tdp_w:g} W as the GPUs' measured on"
        f" {powered} with this model and group: prompts {ramp}, decode {decode:.3g} whatever its batch;"
        f" idle {IDLE_POWER_FRACTION:g} of TDP, declared",
        "a peak shorter than the interval of sampling, which is not stated, may have been missed: prompts of few tokens"
        " may draw more",
        _CAPPED,
    )


def prompt_power_fractions(runs: Sequence[Run]) -> list[tuple[int, float]]:
    """(tokens of the prompts, share of TDP): medians of the peaks, at most 1, never falling."""
    peaks: dict[int, list[float]] = defaultdict(list)
    for run in runs:
        if run.peak_power_fraction > 0:
            peaks[run.prompt_tokens * run.batch_size].append(run.peak_power_fraction)
    places = sorted(peaks)
    rising = list(accumulate((min(statistics.median(peaks[tokens]), 1.0) for tokens in places), max))
    return list(zip(places, rising, strict=True))

"""Rewards: named, summed with weights, each divided by the arrivals expected in a step.

A reward is a name, a sum such as ``"slowdown+0.1*energy"``, or a mapping such as ``{"slowdown": 1.0, "energy": 0.1}``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from splitgym.errors import SplitgymError, did_you_mean
from splitgym.jit import lean_njit
from splitgym.sim.ledger import Meters

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
RewardSpec = str | Mapping[str, float]


class Step(NamedTuple):
    """What happened between two decisions.

    Attributes:
        before, after: the run's meters at either end.
        potential_before, potential_after: predicted remaining weighted slowdown of unfinished requests, ≥ 0 (see
            `splitgym.sim.books.potential`); after termination 0, after truncation as it is.
        gamma: the learner's discount per step.
        usd_per_s: what the cluster costs.
    """

    before: Meters
    after: Meters
    potential_before: float
    potential_after: float
    gamma: float
    usd_per_s: float


Term = Callable[[Step], float]


@lean_njit
def slowdown(step: Step) -> float:
    """−∫ Σ over unfinished requests [ ½·1(before first token)/TTFT₀ + ½·1(after)/(E2E₀ − TTFT₀) ] dt.

    Unit: slowdowns, so that a request which takes as long as alone on the baseline machine costs 1 in all. TTFT₀ and
    E2E₀ are uncontended on the card's baseline machine; a one-token request has the first term alone, at weight 1.
    """
    return step.before.slowdown - step.after.slowdown


@lean_njit
def slowdown_shaped(step: Step) -> float:
    """``slowdown`` + γΦ(s′) − Φ(s), Φ = −Σ predicted remaining weighted slowdown of unfinished requests.

    Unit: slowdowns. A potential (Ng, Harada and Russell, ICML 1999), so the best policy stays the best, while a
    decision's predicted consequences are paid at once. It uses true output lengths: for training only. Φ is 0 on
    termination and kept on truncation.
    """
    return slowdown(step) - step.gamma * step.potential_after + step.potential_before


@lean_njit
def time_in_system(step: Step) -> float:
    """−∫ N dt, N the unfinished requests. Unit: seconds.

    All requests count alike, so within a horizon it may pay to starve the long ones, which `slowdown` does not allow.
    """
    return step.before.time_in_system_s - step.after.time_in_system_s


@lean_njit
def slo(step: Step) -> float:
    """−1 when a request misses its TTFT, −1 when it misses its TBT, charged when it is missed. Unit: misses.

    Allowed are the P90 multiples of the card's SLO, of TTFT₀ for the first token and of E2E₀ − TTFT₀ for the rest; with
    classes, what the request's is promised.
    """
    missed_before = step.before.ttft_missed + step.before.tbt_missed
    return float(missed_before - step.after.ttft_missed - step.after.tbt_missed)


@lean_njit
def energy(step: Step) -> float:
    """−energy drawn by all machines, idling included. Unit: watt-hours."""
    return (step.before.energy_j - step.after.energy_j) / 3600


@lean_njit
def cost(step: Step) -> float:
    """−price of all machines, busy or not, for the time of the step. Unit: US cents."""
    return -100 * step.usd_per_s * (step.after.time_s - step.before.time_s)


TERMS: dict[str, Term] = {
    "slowdown": slowdown,
    "slowdown-shaped": slowdown_shaped,
    "time_in_system": time_in_system,
    "slo": slo,
    "energy": energy,
    "cost": cost,
}
"""The rewards by name."""


class Mix(NamedTuple):
    """What compiled functions must know of a reward."""

    terms: IntArray  # (num_terms,) indices into TERMS
    factors: FloatArray  # (num_terms,) by which they are multiplied


class Reward:
    """A weighted sum of `TERMS`, divided by the arrivals expected in a step.

    Args:
        spec: see the module's docstring.
        arrivals_per_step: the card's rate times the expected time between two decisions.
        scale: multiplies it all.

    Attributes:
        weights: by name, as given.
        mix: the same for compiled functions.

    Raises:
        SplitgymError: if a name is unknown or a weight not a number.
    """

    def __init__(self, spec: RewardSpec, arrivals_per_step: float, scale: float = 1.0) -> None:
        if not _is_number(scale):
            raise SplitgymError(f"reward_scale: {scale!r} is not a number; give one, 0.1 for example")
        self.weights = parse_reward(spec)
        factor = scale / arrivals_per_step
        names = list(TERMS)
        self.mix = Mix(
            np.array([names.index(name) for name in self.weights]),
            np.array([weight * factor for weight in self.weights.values()]),
        )

    def __call__(self, step: Step) -> float:
        """The reward of ``step``."""
        return float(weighted(self.mix, step))


@lean_njit
def weighted(mix: Mix, step: Step) -> float:
    """The reward of ``step``, summed in the order in which its terms were given."""
    total = 0.0
    for k in range(len(mix.terms)):
        term = mix.terms[k]
        if term == 0:
            total += mix.factors[k] * slowdown(step)
        elif term == 1:
            total += mix.factors[k] * slowdown_shaped(step)
        elif term == 2:
            total += mix.factors[k] * time_in_system(step)
        elif term == 3:
            total += mix.factors[k] * slo(step)
        elif term == 4:
            total += mix.factors[k] * energy(step)
        else:
            total += mix.factors[k] * cost(step)
    return total


def parse_reward(spec: RewardSpec) -> dict[str, float]:
    """Weights by name.

    Raises:
        SplitgymError: if a name is unknown or a weight not a finite number.
    """
    if isinstance(spec, str):
        parts = [part.rpartition("*")[::2] for part in spec.split("+")]
        pairs: list[tuple[str, object]] = [(name.strip(), _weight(weight)) for weight, name in parts]
    elif isinstance(spec, Mapping) and spec:
        pairs = list(spec.items())
    else:
        raise SplitgymError(f"reward: {spec!r} is neither a name nor weights by name; one of: {', '.join(TERMS)}")
    weights: dict[str, float] = {}
    for name, weight in pairs:
        if name not in TERMS:
            raise SplitgymError(f"reward: unknown {name!r}{did_you_mean(str(name), TERMS)}")
        if not _is_number(weight):
            raise SplitgymError(f"reward: the weight of {name!r} is {weight!r}; give a number, 0.1 for example")
        weights[name] = weights.get(name, 0.0) + float(weight)  # type: ignore[arg-type]
    return weights


def _weight(text: str) -> object:
    try:
        return float(text) if text.strip() else 1.0
    except ValueError:
        return text.strip()


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)

"""Draws made during a run, in compiled code."""

from __future__ import annotations

import numpy as np

from splitgym.jit import njit


@njit
def hashed_uniform(key: int, index: int, counter: int) -> float:
    """`splitgym.randomness.hashed_uniform`, compiled."""
    z = (
        np.uint64(key)
        + np.uint64(index) * np.uint64(0x9E3779B97F4A7C15)
        + np.uint64(counter) * np.uint64(0xD1B54A32D192ED03)
    )
    for _ in range(2):
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    return float(z >> np.uint64(11)) * 2.0**-53

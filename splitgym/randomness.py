"""Named random streams: what arrives never depends on what is decided, and no draw on another's order.

Draws made before a run come from generators, one for each name. Draws made during a run are integer hashes of
(seed, stream, index, counter), so that it does not matter in which order events ask for them.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np

SPLITS = ("train", "val", "test")
"""The splits of a scenario's seeds and traces: no seed of one is a seed of another."""

_MASK = (1 << 64) - 1


@dataclass(frozen=True)
class Streams:
    """The random streams of one scenario.

    Args:
        seed: the scenario's seed, ≥ 0.
        split: ``train``, ``val`` or ``test``; part of the entropy, so equal seeds of two splits differ.
    """

    seed: int
    split: str = "test"

    def generator(self, name: str) -> np.random.Generator:
        """A fresh generator for the stream ``name``; asking twice gives the same draws twice."""
        return np.random.default_rng(np.random.SeedSequence([self.seed, SPLITS.index(self.split), _code(name)]))

    def key(self, name: str) -> int:
        """A 64-bit key of the stream ``name``, for `hashed_uniform` during a run."""
        sequence = np.random.SeedSequence([self.seed, SPLITS.index(self.split), _code(name)])
        return int(sequence.generate_state(1, np.uint64)[0])


def hashed_uniform(key: int, index: int, counter: int) -> float:
    """A number in [0, 1) from (key, index, counter): SplitMix64's finaliser (Steele et al., OOPSLA 2014)."""
    z = (key + index * 0x9E3779B97F4A7C15 + counter * 0xD1B54A32D192ED03) & _MASK
    for _ in range(2):
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
        z ^= z >> 31
    return (z >> 11) * 2.0**-53


def _code(name: str) -> int:
    return zlib.crc32(name.encode())

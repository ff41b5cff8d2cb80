"""Random streams of a workload's parts: each part of a mixture or shift draws from its own."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from splitgym.randomness import Streams


@dataclass(frozen=True)
class PartStreams(Streams):
    """Streams whose names begin with the part's, so that no two parts share a draw."""

    prefix: str = ""

    def generator(self, name: str) -> np.random.Generator:
        """A fresh generator for the part's stream ``name``."""
        return super().generator(self.prefix + name)

    def key(self, name: str) -> int:
        """A 64-bit key of the part's stream ``name``."""
        return super().key(self.prefix + name)


def part(streams: Streams, name: str) -> PartStreams:
    """The streams of the part ``name`` of whatever draws from ``streams``."""
    prefix = streams.prefix if isinstance(streams, PartStreams) else ""
    return PartStreams(streams.seed, streams.split, f"{prefix}{name}.")

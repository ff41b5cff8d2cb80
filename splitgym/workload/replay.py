"""Replay of traces: each split has a stretch of the trace to itself, walked in a circle from some offset."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from splitgym.errors import SplitgymError
from splitgym.randomness import SPLITS, Streams
from splitgym.workload.arrivals import Offset
from splitgym.workload.prefixes import Prefixes
from splitgym.workload.requests import FloatArray, IntArray, Requests
from splitgym.workload.traces import read_trace

SPLIT_EDGES = (0.0, 0.6, 0.8, 1.0)
"""Shares of a trace's time at which train, val and test begin and end."""


@dataclass(frozen=True)
class Stretch:
    """A stretch of a trace as a circle: after its last request comes its first again."""

    offset_s: FloatArray  # (num_requests,) since the stretch's start
    prompt_tokens: IntArray  # (num_requests,)
    output_tokens: IntArray  # (num_requests,)
    period_s: float
    prefixes: Prefixes | None = None

    @property
    def rate_rps(self) -> float:
        """Mean rate of the stretch."""
        return len(self.offset_s) / self.period_s

    def replay(
        self, streams: Streams, horizon_s: float, rate_rps: float | None, offset: Offset
    ) -> tuple[FloatArray, IntArray]:
        """Arrivals in [0, horizon_s) and which request of the stretch each is.

        Args:
            streams: its stream ``offset`` chooses where a random replay begins.
            horizon_s: where the replay ends.
            rate_rps: the mean rate to compress or stretch time to; None keeps the trace's time.
            offset: seconds of the stretch, before compression, that are passed over first; or ``random``.
        """
        scale = 1.0 if rate_rps is None else self.rate_rps / rate_rps
        random = streams.generator("offset").random() * self.period_s if offset == "random" else offset
        start_s = float(random) % self.period_s
        laps = int((start_s + horizon_s / scale) / self.period_s) + 1
        time_s = np.concatenate([self.offset_s + lap * self.period_s for lap in range(laps)])
        arrival_s = (time_s - start_s) * scale
        keep = (arrival_s >= 0) & (arrival_s < horizon_s)
        return arrival_s[keep], np.tile(np.arange(len(self.offset_s)), laps)[keep]


def stretch(path: Path, split: str | None) -> Stretch:
    """The stretch of the trace at ``path`` for a split: 60, 20 and 20 % of its time; all of it for None.

    A trace's time runs from 0, or from its first arrival where that is later than the trace is long (clock
    times), to one mean gap after its last arrival.

    Raises:
        SplitgymError: as `read_trace`, and where the split's stretch has no request.
    """
    requests = _read(path.resolve(), _stamp(path))
    first_s, last_s = float(requests.arrival_s[0]), float(requests.arrival_s[-1])
    origin_s = first_s if first_s > last_s - first_s else 0.0
    gap_s = (last_s - first_s) / (len(requests) - 1) if len(requests) > 1 else 0.0
    length_s = last_s - origin_s + (gap_s or 1.0)
    low, high = (0.0, 1.0) if split is None else SPLIT_EDGES[SPLITS.index(split) :][:2]
    time_s, begin_s, end_s = requests.arrival_s - origin_s, low * length_s, high * length_s
    here = (time_s >= begin_s) & (time_s < end_s)
    if not here.any():
        share = f"{high - low:.0%} of its time"
        raise SplitgymError(f"{path}: no request in the {split} stretch ({share}); use split_trace: false")
    return Stretch(
        time_s[here] - begin_s,
        requests.prompt_tokens[here],
        requests.output_tokens[here],
        end_s - begin_s,
        requests.prefixes and requests.prefixes.take(np.flatnonzero(here)),
    )


def _stamp(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except OSError:
        return (0, 0)  # reading it will say what is wrong
    return (status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=8)
def _read(path: Path, stamp: tuple[int, int]) -> Requests:
    return read_trace(path)

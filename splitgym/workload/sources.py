"""What a synthetic workload may be made of: every law and process, the shipped workloads', and a trace's."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from splitgym.randomness import Streams
from splitgym.workload.arrivals import (
    ArrivalProcess,
    DiurnalArrivals,
    GammaArrivals,
    MarkovArrivals,
    Offset,
    OnOffArrivals,
    PoissonArrivals,
    SwingingArrivals,
    named_process,
)
from splitgym.workload.base import anchored
from splitgym.workload.lengths import IndependentLengths
from splitgym.workload.modulation import Intensity
from splitgym.workload.replay import Stretch, stretch
from splitgym.workload.requests import FloatArray, IntArray
from splitgym.workload.shipped import ShippedName, shipped_workload


class TraceFile(BaseModel):
    """A trace, and whether train, val and test have each a stretch to itself (60, 20, 20 % of its time)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: Path
    split_trace: bool = True

    def stretch(self, split: str) -> Stretch:
        """The split's stretch, or the whole trace where it is not split."""
        return stretch(self.path, split if self.split_trace else None)

    def whole(self) -> Stretch:
        """All of the trace."""
        return stretch(self.path, None)


class ShippedArrivals(ArrivalProcess):
    """Arrivals with the statistics of a shipped workload."""

    process: ShippedName

    @property
    def own_rate_rps(self) -> float:
        """The rate of the trace behind the figures."""
        return shipped_workload(self.process).rate_rps

    def intensity(self, streams: Streams, horizon_s: float, offset: Offset) -> Intensity:
        """The shipped process's."""
        return shipped_workload(self.process).arrivals.intensity(streams, horizon_s, offset)


class TraceArrivals(ArrivalProcess, TraceFile):
    """Arrivals of a trace, compressed or stretched to the rate asked for."""

    process: Literal["trace"]

    @property
    def own_rate_rps(self) -> float:
        """The whole trace's rate."""
        return self.whole().rate_rps

    def draw(self, streams: Streams, rate_rps: float, horizon_s: float, offset: Offset = "random") -> FloatArray:
        """(num_requests,) arrivals of the split's stretch in a circle."""
        return self.stretch(streams.split).replay(streams, horizon_s, rate_rps, offset)[0]

    def resolved(self, base_dir: Path) -> Self:
        """The trace found from ``base_dir``."""
        return self.model_copy(update={"path": anchored(self.path, base_dir)})


class ShippedLengths(BaseModel):
    """Lengths with the statistics of a shipped workload, outputs dependent on prompts."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    law: ShippedName

    def draw(self, streams: Streams, count: int) -> tuple[IntArray, IntArray]:
        """(count,) prompt tokens and (count,) output tokens."""
        return shipped_workload(self.law).lengths.draw(streams, count)

    def resolved(self, base_dir: Path) -> Self:
        """Itself: it has no path."""
        return self


class TraceLengths(TraceFile):
    """Pairs of prompt and output drawn from a trace, with replacement."""

    law: Literal["trace"]

    def draw(self, streams: Streams, count: int) -> tuple[IntArray, IntArray]:
        """(count,) prompt tokens and (count,) output tokens."""
        stretch = self.stretch(streams.split)
        row = np.floor(streams.generator("lengths").random(count) * len(stretch.offset_s)).astype(np.int64)
        return stretch.prompt_tokens[row], stretch.output_tokens[row]

    def resolved(self, base_dir: Path) -> Self:
        """The trace found from ``base_dir``."""
        return self.model_copy(update={"path": anchored(self.path, base_dir)})


def _named_law(value: object) -> object:
    return {"law": value} if isinstance(value, str) else value


Lengths = Annotated[
    ShippedLengths | IndependentLengths | TraceLengths,
    Field(discriminator="law"),
    BeforeValidator(_named_law),
]
"""``lengths:`` of a card; a bare name is short for ``{law: name}``."""

Arrivals = Annotated[
    PoissonArrivals
    | GammaArrivals
    | MarkovArrivals
    | DiurnalArrivals
    | SwingingArrivals
    | OnOffArrivals
    | ShippedArrivals
    | TraceArrivals,
    Field(discriminator="process"),
    BeforeValidator(named_process),
]
"""``arrivals:`` of a card; a bare name is short for ``{process: name}``."""

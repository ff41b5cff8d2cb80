"""What goes wrong with machines, known before a run: outages, and stretches in which a machine is slow."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

from splitgym.randomness import Streams

DOWN, UP, PACE = range(3)
"""What may change: a machine goes down, comes back, or works at another pace."""

NOBODY = (1 << 20) - 1
"""In place of a machine in the key of an event that is about a request alone: after those about machines."""

FaultLaw = Literal["exponential", "fixed"]


@dataclass(frozen=True)
class Outage:
    """A machine is down from ``down_s`` to ``up_s``; ``inf`` where it does not come back.

    Raises:
        ValueError: if it ends before it begins.
    """

    machine: int
    down_s: float
    up_s: float

    def __post_init__(self) -> None:
        if not 0 <= self.down_s < self.up_s:
            raise ValueError(f"down_s {self.down_s:g} is not before up_s {self.up_s:g}; give 0 ≤ down_s < up_s")


@dataclass(frozen=True)
class Straggler:
    """Iterations that a machine starts from ``from_s`` on and before ``to_s`` take ``factor`` times as long.

    Raises:
        ValueError: if it ends before it begins, or the factor is no positive number.
    """

    machine: int
    from_s: float
    to_s: float
    factor: float

    def __post_init__(self) -> None:
        if not 0 <= self.from_s < self.to_s:
            raise ValueError(f"from_s {self.from_s:g} is not before to_s {self.to_s:g}; give 0 ≤ from_s < to_s")
        if not 0 < self.factor < float("inf"):
            raise ValueError(f"factor {self.factor:g}; give a number above 0")


class Change(NamedTuple):
    """What happens to a machine."""

    time_s: float
    machine: int
    kind: int  # DOWN, UP or PACE
    factor: float  # of iterations from then on, for PACE


@dataclass(frozen=True)
class Faults:
    """All that goes wrong in a run. Outages of a machine may overlap: it is down while any lasts."""

    outages: tuple[Outage, ...] = ()
    stragglers: tuple[Straggler, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.outages or self.stragglers)

    @property
    def machines(self) -> set[int]:
        """Those to which anything happens."""
        return {outage.machine for outage in self.outages} | {straggler.machine for straggler in self.stragglers}

    @cached_property
    def changes(self) -> tuple[Change, ...]:
        """What changes when, in order; of several stretches of slowness at once the largest factor counts."""
        found = [change for m in self.machines for change in (*self._outages_of(m), *self._paces_of(m))]
        return tuple(sorted(change for change in found if change.time_s < float("inf")))

    def _outages_of(self, machine: int) -> Iterator[Change]:
        until_s = -1.0
        for outage in sorted((o for o in self.outages if o.machine == machine), key=lambda o: (o.down_s, o.up_s)):
            if outage.down_s > until_s:
                if until_s >= 0:
                    yield Change(until_s, machine, UP, 1.0)
                yield Change(outage.down_s, machine, DOWN, 1.0)
            until_s = max(until_s, outage.up_s)
        if until_s >= 0:
            yield Change(until_s, machine, UP, 1.0)

    def _paces_of(self, machine: int) -> Iterator[Change]:
        slow = [s for s in self.stragglers if s.machine == machine]
        for time_s in sorted({s.from_s for s in slow} | {s.to_s for s in slow}):
            yield Change(
                time_s, machine, PACE, max((s.factor for s in slow if s.from_s <= time_s < s.to_s), default=1.0)
            )


def drawn_spans(
    streams: Streams, name: str, machine: int, mean_gap_s: float, mean_span_s: float, law: FaultLaw, until_s: float
) -> Iterator[tuple[float, float]]:
    """(from, to) of what befalls a machine again and again, each beginning before ``until_s``.

    Between them lie ``mean_gap_s`` on average, they last ``mean_span_s`` on average: exponential both, or ``fixed``
    both, the first after a uniformly drawn part of the gap. A longer draw begins as a shorter one.
    """
    draw = streams.generator(f"{name}-{machine}")
    is_fixed = law == "fixed"
    from_s = float(mean_gap_s * draw.random()) if is_fixed else float(draw.exponential(mean_gap_s))
    while from_s < until_s:
        to_s = from_s + (mean_span_s if is_fixed else float(draw.exponential(mean_span_s)))
        if to_s > from_s:
            yield from_s, to_s
        from_s = to_s + (mean_gap_s if is_fixed else float(draw.exponential(mean_gap_s)))

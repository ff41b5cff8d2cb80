"""What a card says of faults: how often machines go down or are slow, drawn or listed."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, NonNegativeFloat, PositiveFloat, model_validator

from splitgym.errors import SplitgymError
from splitgym.randomness import Streams
from splitgym.sim.faults import FaultLaw, Faults, Outage, Straggler, drawn_spans

Seconds = Annotated[PositiveFloat, FiniteFloat]
MachineNumber = Annotated[int, Field(ge=0)]

FOLLOWED_S = 3600.0
"""In a run without a horizon, faults are drawn up to the last arrival and this long after it."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Listed(_Strict):
    machine: MachineNumber


class ListedOutage(_Listed):
    """See `splitgym.sim.faults.Outage`."""

    down_s: Annotated[NonNegativeFloat, FiniteFloat]
    up_s: PositiveFloat = float("inf")

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        self.build()
        return self

    def build(self) -> Outage:
        """The outage."""
        return Outage(**self.model_dump())


class ListedStraggler(_Listed):
    """See `splitgym.sim.faults.Straggler`."""

    from_s: Annotated[NonNegativeFloat, FiniteFloat]
    to_s: PositiveFloat = float("inf")
    factor: Seconds

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        self.build()
        return self

    def build(self) -> Straggler:
        """The slow stretch."""
        return Straggler(**self.model_dump())


class _Drawn(_Strict):
    mtbf_s: Seconds | None = None  # from the end of one to the beginning of the next, on average, of each machine
    mttr_s: Seconds | None = None  # how long one lasts, on average
    law: FaultLaw = "exponential"

    @model_validator(mode="after")
    def _both(self) -> Self:
        if (self.mtbf_s is None) != (self.mttr_s is None):
            raise ValueError("give both mtbf_s and mttr_s, or neither")
        return self

    def spans(
        self, streams: Streams, name: str, num_machines: int, until_s: float
    ) -> list[tuple[int, tuple[float, float]]]:
        """(machine, (from, to)) of those that begin before ``until_s``."""
        if self.mtbf_s is None or self.mttr_s is None:
            return []
        mean_s = self.mtbf_s, self.mttr_s
        return [(m, s) for m in range(num_machines) for s in drawn_spans(streams, name, m, *mean_s, self.law, until_s)]


class StragglersCard(_Drawn):
    """Machines that are slow now and then."""

    factor: Seconds = 2.0  # of the drawn ones
    listed: tuple[ListedStraggler, ...] = ()


class FaultsCard(_Drawn):
    """Machines that go down and come back, drawn (``mtbf_s``, ``mttr_s``), listed, or both; and stragglers."""

    listed: tuple[ListedOutage, ...] = ()
    stragglers: StragglersCard = StragglersCard()

    def check_machines(self, num_machines: int) -> None:
        """Raise ValueError where the list names a machine that there is not."""
        listed: tuple[_Listed, ...] = (*self.listed, *self.stragglers.listed)
        for fault in listed:
            if fault.machine >= num_machines:
                last = num_machines - 1
                raise ValueError(f"faults: machine {fault.machine} does not exist; the machines are 0 to {last}")

    def plan(self, streams: Streams, num_machines: int, until_s: float) -> Faults:
        """What goes wrong in one run; drawn faults begin before ``until_s``.

        Raises:
            SplitgymError: if a listed machine does not exist.
        """
        try:
            self.check_machines(num_machines)
        except ValueError as error:
            raise SplitgymError(f"cluster.{error}") from None
        slow = self.stragglers
        outages = [Outage(m, *span) for m, span in self.spans(streams, "outages", num_machines, until_s)]
        slowness = slow.spans(streams, "stragglers", num_machines, until_s)
        return Faults(
            outages=(*(fault.build() for fault in self.listed), *outages),
            stragglers=(
                *(fault.build() for fault in slow.listed),
                *(Straggler(m, *span, slow.factor) for m, span in slowness),
            ),
        )

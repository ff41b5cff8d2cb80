"""What an engine keeps on request: the event log, and what each machine did when."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import NamedTuple

import pyarrow as pa


class Event(NamedTuple):
    """One line of the event log; a machine or request that does not apply is -1."""

    time_s: float
    kind: str
    machine: int
    request: int


class Slice(NamedTuple):
    """A stretch of one machine's time: iterations of one kind run on, so decodes of many iterations are one slice."""

    machine: int
    start_s: float
    end_s: float
    activity: str  # prompt phase, token phase, both phases, switching, down
    iterations: int
    prompts: int
    max_decodes: int


class Send(NamedTuple):
    """A KV-cache on its way."""

    request: int
    source: int
    destination: int
    start_s: float
    end_s: float


@dataclass
class Recorder:
    """Event log, machine slices and transfers of one run."""

    events: list[Event] = field(default_factory=list)
    sends: list[Send] = field(default_factory=list)
    _slices: list[Slice] = field(default_factory=list)
    _open: dict[int, Slice] = field(default_factory=dict)  # the last token-phase slice of a machine

    def event(self, time_s: float, kind: str, machine: int, request: int) -> None:
        """Add a line to the log."""
        self.events.append(Event(time_s, kind, machine, request))

    def iteration(self, machine: int, start_s: float, end_s: float, prompts: int, decodes: int) -> None:
        """A machine has done an iteration."""
        activity = "token phase" if not prompts else "both phases" if decodes else "prompt phase"
        self.events.append(Event(start_s, "iteration_start", machine, -1))
        self.events.append(Event(end_s, "iteration_end", machine, -1))
        last = self._open.get(machine)
        if last is not None and activity == last.activity == "token phase" and last.end_s == start_s:
            most = max(last.max_decodes, decodes)
            self._open[machine] = Slice(machine, last.start_s, end_s, activity, last.iterations + 1, 0, most)
            return
        if last is not None:
            self._slices.append(last)
        self._open[machine] = Slice(machine, start_s, end_s, activity, 1, prompts, decodes)

    def transfer(self, request: int, source: int, destination: int, start_s: float, end_s: float) -> None:
        """A KV-cache has been sent."""
        self.sends.append(Send(request, source, destination, start_s, end_s))

    def switch(self, machine: int, start_s: float, end_s: float) -> None:
        """A machine has restarted in another role."""
        self._slices.append(Slice(machine, start_s, end_s, "switching", 0, 0, 0))

    def outage(self, machine: int, start_s: float, end_s: float) -> None:
        """A machine was down."""
        self._slices.append(Slice(machine, start_s, end_s, "down", 0, 0, 0))

    def slices(self) -> list[Slice]:
        """All slices, by machine and start."""
        return sorted([*self._slices, *self._open.values()], key=lambda slice_: slice_[:2])

    def event_table(self) -> pa.Table:
        """The event log, schema (time_s float64, kind string, machine int64, request int64)."""
        columns = zip(*self.events, strict=True) if self.events else ((), (), (), ())
        types = (pa.float64(), pa.string(), pa.int64(), pa.int64())
        arrays = [pa.array(list(column), kind) for column, kind in zip(columns, types, strict=True)]
        return pa.Table.from_arrays(arrays, names=list(Event._fields))

    def digest(self) -> str:
        """SHA-256 of the event log: equal where two runs were equal to the last bit."""
        digest = hashlib.sha256()
        for time_s, kind, machine, request in self.events:
            digest.update(f"{time_s.hex()} {kind} {machine} {request}\n".encode())
        return digest.hexdigest()

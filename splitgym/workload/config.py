"""The ``workload:`` field of an environment card: synthetic, a trace, a mixture, or a shift over time."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from splitgym.randomness import Streams
from splitgym.workload.arrivals import Offset
from splitgym.workload.base import Drawn, Workload, anchored, rate_missing, reference_streams
from splitgym.workload.prefixes import Prefixes
from splitgym.workload.requests import FloatArray, IntArray
from splitgym.workload.sources import Arrivals, Lengths, TraceFile
from splitgym.workload.streams import part

Rate = Annotated[float, Field(gt=0, le=1e6)]


class SyntheticWorkload(Workload):
    """Requests with lengths of one law and arrivals of one process.

    ``rate_rps`` may be left out where the arrivals are a shipped workload's or a trace's: then it is theirs.
    """

    source: Literal["synthetic"]
    lengths: Lengths
    arrivals: Arrivals
    rate_rps: Rate | None = None

    @property
    def mean_rate_rps(self) -> float:
        """The configured rate, else the arrivals' own."""
        rate = self.rate_rps or self.arrivals.own_rate_rps
        if rate is None:
            raise rate_missing(f"{self.arrivals.process} arrivals")
        return rate

    def until(self, streams: Streams, horizon_s: float, rate_rps: float | None, offset: Offset) -> Drawn:
        """Arrivals first, then as many lengths."""
        rate = rate_rps or self.mean_rate_rps
        arrival_s = self.arrivals.draw(part(streams, "arrivals"), rate, horizon_s, offset)
        return arrival_s, *self.lengths.draw(part(streams, "lengths"), len(arrival_s))

    def reference(self, count: int) -> tuple[IntArray, IntArray]:
        """Draws of the lengths from fixed streams."""
        return self.lengths.draw(reference_streams(), count)

    def resolved(self, base_dir: Path) -> Self:
        """Traces of arrivals and lengths found from ``base_dir``."""
        update = {"lengths": self.lengths.resolved(base_dir), "arrivals": self.arrivals.resolved(base_dir)}
        return self.model_copy(update=update)


class TraceWorkload(Workload, TraceFile):
    """Replay of a trace; a rate of its own compresses or stretches the time between its requests."""

    source: Literal["trace"]
    rate_rps: Rate | None = None

    @property
    def mean_rate_rps(self) -> float:
        """The configured rate, else that of the whole trace."""
        return self.rate_rps or self.whole().rate_rps

    def natural_duration_s(self, streams: Streams, rate_rps: float | None) -> float:
        """Once through the split's stretch."""
        stretch, rate = self.stretch(streams.split), rate_rps or self.rate_rps
        return stretch.period_s if rate is None else len(stretch.offset_s) / rate

    def until(self, streams: Streams, horizon_s: float, rate_rps: float | None, offset: Offset) -> Drawn:
        """The split's stretch in a circle."""
        stretch = self.stretch(streams.split)
        arrival_s, row = stretch.replay(part(streams, "arrivals"), horizon_s, rate_rps or self.rate_rps, offset)
        return arrival_s, stretch.prompt_tokens[row], stretch.output_tokens[row]

    def prefixes(
        self, streams: Streams, arrival_s: FloatArray, rate_rps: float | None, offset: Offset
    ) -> Prefixes | None:
        """The trace's, where it has any."""
        stretch = self.stretch(streams.split)
        if stretch.prefixes is None or not len(arrival_s):
            return None
        until_s = float(np.nextafter(arrival_s[-1], np.inf))  # as in `until`
        _, row = stretch.replay(part(streams, "arrivals"), until_s, rate_rps or self.rate_rps, offset)
        return stretch.prefixes.take(row[: len(arrival_s)])

    def reference(self, count: int) -> tuple[IntArray, IntArray]:
        """Requests of the training stretch, evenly picked."""
        stretch = self.stretch("train")
        row = np.arange(count) * len(stretch.offset_s) // count
        return stretch.prompt_tokens[row], stretch.output_tokens[row]

    def resolved(self, base_dir: Path) -> Self:
        """The trace found from ``base_dir``."""
        return self.model_copy(update={"path": anchored(self.path, base_dir)})


class MixturePart(BaseModel):
    """A workload and its share of a mixture's requests; shares are relative to their sum."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    weight: float = Field(gt=0)
    workload: WorkloadConfig

    @field_validator("workload")
    @classmethod
    def _leaves_it_to_the_whole(cls, workload: WorkloadConfig) -> WorkloadConfig:
        return without_deadline(without_prediction(workload))


class MixtureWorkload(Workload):
    """Several workloads at once. Their own rates count for nothing: shares of ``rate_rps`` do."""

    source: Literal["mixture"]
    parts: tuple[MixturePart, ...] = Field(min_length=1)
    rate_rps: Rate

    @property
    def mean_rate_rps(self) -> float:
        """The configured rate."""
        return self.rate_rps

    def until(self, streams: Streams, horizon_s: float, rate_rps: float | None, offset: Offset) -> Drawn:
        """The parts' requests in order of arrival."""
        total_rps = rate_rps or self.rate_rps
        drawn = [
            row.workload.until(part(streams, f"part-{index}"), horizon_s, total_rps * share, offset)
            for index, (row, share) in enumerate(zip(self.parts, self._shares(), strict=True))
        ]
        return merged(drawn)

    def reference(self, count: int) -> tuple[IntArray, IntArray]:
        """The parts' references, in their shares."""
        return _pooled([row.workload for row in self.parts], self._shares(), count)

    def resolved(self, base_dir: Path) -> Self:
        """Traces of the parts found from ``base_dir``."""
        parts = tuple(p.model_copy(update={"workload": p.workload.resolved(base_dir)}) for p in self.parts)
        return self.model_copy(update={"parts": parts})

    def _shares(self) -> list[float]:
        total = sum(row.weight for row in self.parts)
        return [row.weight / total for row in self.parts]


class Phase(BaseModel):
    """A workload for a while."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    duration_s: float = Field(gt=0)
    workload: WorkloadConfig

    @field_validator("workload")
    @classmethod
    def _leaves_it_to_the_whole(cls, workload: WorkloadConfig) -> WorkloadConfig:
        return without_deadline(without_prediction(workload))


class ShiftWorkload(Workload):
    """One workload after another, in a circle, or staying with the last.

    Within ``fade_s`` around a change the old phase's arrivals are thinned out and the new one's let in,
    linearly. With ``rate_rps`` the phases' rates are scaled in proportion so that it is their mean over a
    cycle. A draw starts at a random point of the cycle; without ``repeat`` at the first phase's start.
    """

    source: Literal["shift"]
    phases: tuple[Phase, ...] = Field(min_length=1)
    repeat: bool = True
    fade_s: float = Field(default=0.0, ge=0)
    rate_rps: Rate | None = None

    @model_validator(mode="after")
    def _fades_do_not_overlap(self) -> ShiftWorkload:
        shortest_s = min(phase.duration_s for phase in self.phases)
        if self.fade_s > shortest_s:
            raise ValueError(f"fade_s {self.fade_s:g} is longer than the shortest phase ({shortest_s:g} s); shorten it")
        return self

    @property
    def cycle_s(self) -> float:
        """The phases' durations together."""
        return sum(phase.duration_s for phase in self.phases)

    @property
    def mean_rate_rps(self) -> float:
        """The configured rate, else the phases' mean over a cycle."""
        return self.rate_rps or self._unscaled_rps

    def until(self, streams: Streams, horizon_s: float, rate_rps: float | None, offset: Offset) -> Drawn:
        """Every phase met before ``horizon_s``, each time it is met from streams of its own."""
        target = rate_rps or self.rate_rps
        scale = None if target is None else target / self._unscaled_rps
        if offset == "random":
            start = part(streams, "shift").generator("offset").random() if self.repeat else 0.0
            begin_s = -start * self.cycle_s
        else:
            begin_s = -(float(offset) % self.cycle_s if self.repeat else float(offset))
        turn = 0
        if self.repeat:  # the phase before the first may still fade out
            turn, begin_s = -1, begin_s - self.phases[-1].duration_s
        drawn = []
        while begin_s - self.fade_s / 2 < horizon_s:
            last = not self.repeat and turn == len(self.phases) - 1
            phase = self.phases[turn % len(self.phases)]
            end_s = np.inf if last else begin_s + phase.duration_s
            rate = None if scale is None else scale * phase.workload.mean_rate_rps
            if end_s + self.fade_s / 2 > 0:
                drawn.append(self._phase(part(streams, f"turn-{turn}"), phase, rate, (begin_s, end_s), turn, horizon_s))
            begin_s, turn = end_s, turn + 1
        return merged(drawn)

    def _phase(
        self,
        streams: Streams,
        phase: Phase,
        rate_rps: float | None,
        span_s: tuple[float, float],
        turn: int,
        horizon_s: float,
    ) -> Drawn:
        fade_in_s = self.fade_s if turn != 0 or self.repeat else 0.0
        from_s, to_s = span_s[0] - fade_in_s / 2, span_s[1] + self.fade_s / 2
        length_s = min(to_s, max(horizon_s, from_s + 1.0)) - from_s
        arrival_s, prompt, output = phase.workload.until(streams, length_s, rate_rps, "random")
        chance = streams.generator("fade").random(len(arrival_s))
        share = np.ones(len(arrival_s))
        if fade_in_s > 0:
            share = np.minimum(share, arrival_s / fade_in_s)
        if self.fade_s > 0 and np.isfinite(to_s):
            share = np.minimum(share, (to_s - from_s - arrival_s) / self.fade_s)
        arrival_s = arrival_s + from_s
        keep = (chance < share) & (arrival_s >= 0) & (arrival_s < min(horizon_s, to_s))
        return arrival_s[keep], prompt[keep], output[keep]

    def reference(self, count: int) -> tuple[IntArray, IntArray]:
        """The phases' references, in their shares of the requests."""
        expected = [phase.duration_s * phase.workload.mean_rate_rps for phase in self.phases]
        return _pooled([p.workload for p in self.phases], [e / sum(expected) for e in expected], count)

    def resolved(self, base_dir: Path) -> Self:
        """Traces of the phases found from ``base_dir``."""
        phases = tuple(p.model_copy(update={"workload": p.workload.resolved(base_dir)}) for p in self.phases)
        return self.model_copy(update={"phases": phases})

    @property
    def _unscaled_rps(self) -> float:
        return sum(p.duration_s * p.workload.mean_rate_rps for p in self.phases) / self.cycle_s


WorkloadConfig = Annotated[
    SyntheticWorkload | TraceWorkload | MixtureWorkload | ShiftWorkload, Field(discriminator="source")
]
"""The type of a card's ``workload:`` field."""


def without_prediction(workload: WorkloadConfig) -> WorkloadConfig:
    """``workload``, a part of another.

    Raises:
        ValueError: if it says how outputs are predicted, which is for the whole to say.
    """
    if "prediction" in workload.model_fields_set:
        raise ValueError("prediction is the whole workload's; put it beside source, not into a part")
    return workload


def without_deadline(workload: WorkloadConfig) -> WorkloadConfig:
    """``workload``, a part of another.

    Raises:
        ValueError: if it says when clients give up, which is for the whole to say.
    """
    if workload.deadline_s is not None:
        raise ValueError(f"deadline_s {workload.deadline_s:g} is a part's own; give one for the whole workload")
    return workload


def merged(drawn: list[Drawn]) -> Drawn:
    """Several draws as one, in order of arrival; the earlier part first where two arrive at once."""
    if not drawn:
        return np.empty(0), np.empty(0, np.int64), np.empty(0, np.int64)
    arrival_s, prompt, output = (np.concatenate(columns) for columns in zip(*drawn, strict=True))
    order = np.argsort(arrival_s, kind="stable")
    return arrival_s[order], prompt[order], output[order]


def _pooled(workloads: list[Workload], shares: list[float], count: int) -> tuple[IntArray, IntArray]:
    pairs = [w.reference(max(round(count * share), 1)) for w, share in zip(workloads, shares, strict=True)]
    return np.concatenate([prompt for prompt, _ in pairs]), np.concatenate([output for _, output in pairs])


for _model in (MixturePart, Phase, MixtureWorkload, ShiftWorkload):
    _model.model_rebuild()

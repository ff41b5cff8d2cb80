"""Profiled runs: a CSV of prompt and token times, and their medians by operating point."""

from __future__ import annotations

import csv
import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from splitgym.errors import SplitgymError, did_you_mean

COLUMNS = (
    "model",
    "hardware",
    "tensor_parallel",
    "prompt_size",
    "batch_size",
    "token_size",
    "prompt_time",
    "token_time",
)
"""Columns a profile must have, in the published layout; times in ms."""

_COUNTS = ("tensor_parallel", "prompt_size", "batch_size", "token_size")
_TIMES = ("prompt_time", "token_time")


@dataclass(frozen=True)
class Run:
    """One profiled run: ``batch_size`` equal prompts, then ``output_tokens`` tokens for each."""

    model: str
    hardware: str
    tensor_parallel: int
    prompt_tokens: int
    batch_size: int
    output_tokens: int
    prompt_s: float
    token_s: float
    power_fraction: float  # average over the run as a share of the GPUs' TDP; 0 where it was not measured
    peak_power_fraction: float = 0.0  # likewise the peak

    @property
    def key(self) -> tuple[str, str, int]:
        """(model, hardware, tensor parallelism)."""
        return self.model, self.hardware, self.tensor_parallel


@dataclass(frozen=True)
class OperatingPoint:
    """Medians over the runs of one prompt size and one batch size, output sizes pooled."""

    prompt_tokens: int
    batch_size: int
    output_tokens: float  # mean
    prompt_s: float
    token_s: float

    @property
    def decode_context_tokens(self) -> int:
        """Context summed over the batch, halfway through the output."""
        return round(self.batch_size * (self.prompt_tokens + self.output_tokens / 2))


def read_runs(path: Path) -> list[Run]:
    """Read a profile.

    Raises:
        SplitgymError: if the file is missing, a column is missing, or a number is none.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            present = list(reader.fieldnames or ())
            for column in COLUMNS:
                if column not in present:
                    hint = did_you_mean(column, present) if present else ""
                    raise SplitgymError(f"{path}:1: no column {column!r}{hint}")
            runs = [_run(f"{path}:{reader.line_num}", row) for row in reader]
    except FileNotFoundError:
        raise SplitgymError(f"{path}: no such file; check the path") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise SplitgymError(f"{path}: cannot be read ({error}); give a CSV file") from None
    if not runs:
        raise SplitgymError(f"{path}: no rows under the header; give at least one profiled run")
    return runs


def choose_runs(
    path: Path, runs: Sequence[Run], model: str | None, hardware: str | None, tensor_parallel: int | None
) -> list[Run]:
    """The runs of one (model, hardware, tensor parallelism).

    Raises:
        SplitgymError: if a choice matches nothing, or several sets remain.
    """
    kept = list(runs)
    for field, value in (("model", model), ("hardware", hardware), ("tensor_parallel", tensor_parallel)):
        if value is None:
            continue
        options = {str(getattr(run, field)) for run in kept}
        kept = [run for run in kept if getattr(run, field) == value]
        if not kept:
            raise SplitgymError(f"{path}: {field}: no rows for {value!r}{did_you_mean(str(value), options)}")
    keys = sorted({run.key for run in kept})
    if len(keys) > 1:
        sets = ", ".join(f"{m}/{h}/{t}" for m, h, t in keys)
        raise SplitgymError(
            f"{path}: {len(keys)} sets; choose one (--model, --hardware, --tensor-parallel) out of: {sets}"
        )
    return kept


def medians(runs: Iterable[Run]) -> list[OperatingPoint]:
    """The operating points of one set of runs, in order of (prompt, batch)."""
    groups: dict[tuple[int, int], list[Run]] = defaultdict(list)
    for run in runs:
        groups[run.prompt_tokens, run.batch_size].append(run)
    return [
        OperatingPoint(
            prompt,
            batch,
            statistics.fmean(run.output_tokens for run in group),
            statistics.median(run.prompt_s for run in group),
            statistics.median(run.token_s for run in group),
        )
        for (prompt, batch), group in sorted(groups.items())
    ]


def without_corrupt(points: Sequence[OperatingPoint]) -> tuple[list[OperatingPoint], list[OperatingPoint]]:
    """Points kept, and points left out: a larger batch of the same prompts took less than half the time."""
    corrupt = [
        point
        for point in points
        if any(
            other.prompt_tokens == point.prompt_tokens
            and other.batch_size < point.batch_size
            and other.prompt_s > 2 * point.prompt_s
            for other in points
        )
    ]
    return [point for point in points if point not in corrupt], corrupt


def decode_power_fraction(runs: Iterable[Run]) -> float | None:
    """Median share of TDP over runs that decode nine tenths of their time; None if none was measured."""
    shares = [
        run.power_fraction
        for run in runs
        if run.power_fraction > 0 and 9 * run.prompt_s < run.token_s * (run.output_tokens - 1)
    ]
    return statistics.median(shares) if shares else None


def _run(place: str, row: dict[str, str | None]) -> Run:
    counts = {name: parsed_number(place, name, row[name]) for name in _COUNTS}
    times = {name: parsed_number(place, name, row[name]) for name in _TIMES}
    for name, count in counts.items():
        if count < 1 or count != int(count):
            raise SplitgymError(f"{place}: {name}: {row[name]!r} is no count; give a whole number ≥ 1")
    for name, time_ms in times.items():
        if time_ms <= 0:
            raise SplitgymError(f"{place}: {name}: {row[name]!r} is no duration; give milliseconds > 0")
    for name in ("model", "hardware"):
        if not row[name]:
            raise SplitgymError(f"{place}: {name}: empty; give a name")
    return Run(
        model=str(row["model"]),
        hardware=str(row["hardware"]),
        tensor_parallel=int(counts["tensor_parallel"]),
        prompt_tokens=int(counts["prompt_size"]),
        batch_size=int(counts["batch_size"]),
        output_tokens=int(counts["token_size"]),
        prompt_s=times["prompt_time"] / 1000,
        token_s=times["token_time"] / 1000,
        power_fraction=parsed_number(place, "average_power", row.get("average_power") or "0"),
        peak_power_fraction=parsed_number(place, "peak_power", row.get("peak_power") or "0"),
    )


def parsed_number(place: str, column: str, text: str | None) -> float:
    """The finite number in a field of a table.

    Raises:
        SplitgymError: if it is none; ``place`` is the file and line the message names.
    """
    try:
        value = float(text or "")
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise SplitgymError(f"{place}: {column}: {text!r} is not a number; give one")
    return value

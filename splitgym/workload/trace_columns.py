"""Columns of a trace: from text to numbers, in bulk, and back to the line where one of them is wrong."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from splitgym.errors import SplitgymError
from splitgym.workload.requests import FloatArray, IntArray

MOST_TOKENS = 2**31


@dataclass(frozen=True)
class Column:
    """One column as read: an Arrow array of text or numbers, and where each row stands in the file."""

    path: Path
    name: str
    values: pa.Array  # (num_requests,)
    place: Callable[[int], str]

    def fail(self, row: int, problem: str, mend: str) -> NoReturn:
        """Raise the one line that names file, line, column, value, problem and mend."""
        value = self.values[row].as_py()
        shown = "nothing" if value is None or value == "" else repr(value)
        shown = shown if len(shown) <= 60 else shown[:57] + "..."
        raise SplitgymError(f"{self.path}: {self.place(row)}: {self.name}: {shown} {problem}; {mend}")

    def numbers(self) -> FloatArray:
        """(num_requests,) the values as float64, exactly as written."""
        try:
            text = pa.types.is_string(self.values.type)
            cast = pc.cast(pc.utf8_trim_whitespace(self.values) if text else self.values, pa.float64())
        except pa.ArrowException:
            self.fail(_first(~_castable(self.values)), "is not a number", "write digits only")
        numbers: FloatArray = cast.to_numpy(zero_copy_only=False).astype(np.float64)
        if cast.null_count or not np.isfinite(numbers).all():
            self.fail(_first(~np.isfinite(numbers)), "is not a finite number", "mend or remove the request")
        return numbers


def arrivals(column: Column, unit: str) -> FloatArray:
    """(num_requests,) arrival times in seconds.

    Args:
        column: the values as read.
        unit: ``s``, ``ms``, or ``clock`` for timestamps, which count from the first.
    """
    if unit == "clock":
        nanoseconds = _clock_ns(column)
        seconds = (nanoseconds - nanoseconds[:1]) / 1e9
    else:
        seconds = column.numbers() / (1000.0 if unit == "ms" else 1.0)
    falls = np.flatnonzero(np.diff(seconds) < 0)
    if len(falls):
        column.fail(int(falls[0]) + 1, "is earlier than the arrival before it", "sort the trace by arrival")
    if len(seconds) and seconds[0] < 0:
        column.fail(0, "is negative", "count arrivals from 0 s or later")
    return seconds


def tokens(column: Column) -> IntArray:
    """(num_requests,) token counts, each a whole number ≥ 1."""
    numbers = column.numbers()
    whole = numbers == np.floor(numbers)
    if not whole.all():
        column.fail(_first(~whole), "is not a whole number", "tokens are counted in whole numbers")
    if (numbers < 1).any():
        column.fail(_first(numbers < 1), "is below 1", "a request has at least one token; mend or remove it")
    if (numbers > MOST_TOKENS).any():
        column.fail(_first(numbers > MOST_TOKENS), "is too large for a token count", "mend or remove the request")
    return numbers.astype(np.int64)


def csv_header(data: bytes) -> list[str]:
    """The column names in the first line of a CSV."""
    first_line = data.split(b"\n", 1)[0].decode("utf-8", "replace").rstrip("\r")
    return [name.strip() for row in csv.reader([first_line]) for name in row]


def text_columns(path: Path, data: bytes, names: tuple[str, ...]) -> list[Column]:
    """The named columns of a CSV, as text; blank lines are passed over."""

    def place(row: int) -> str:
        filled = [number for number, line in enumerate(data.splitlines(), 1) if line.strip()]
        return f"line {filled[row + 1]}"  # the header is the first filled line

    ragged: list[tuple[int, int]] = []

    def skip(row: pa.csv.InvalidRow) -> str:
        if row.text.strip():
            ragged.append((row.expected_columns, row.actual_columns))
        return "skip"

    header = [f"{name} {index}" if name not in names else name for index, name in enumerate(csv_header(data))]
    try:
        table = pa.csv.read_csv(
            pa.BufferReader(data),
            pa.csv.ReadOptions(use_threads=False, column_names=header, skip_rows=1),
            pa.csv.ParseOptions(invalid_row_handler=skip),
            pa.csv.ConvertOptions(
                column_types={name: pa.string() for name in header},
                include_columns=names,
                strings_can_be_null=False,
            ),
        )
    except pa.ArrowException as error:
        reason = " ".join(str(error).split())
        raise SplitgymError(f"{path}: not a readable CSV ({reason}); save it as UTF-8 text") from None
    if ragged:
        expected, actual = ragged[0]
        line = _first_ragged_line(data, expected)
        raise SplitgymError(f"{path}: line {line}: {actual} columns where the header has {expected}; mend the line")
    return [Column(path, name, table.column(name).combine_chunks(), place) for name in names]


def json_columns(path: Path, data: bytes, names: tuple[str, ...]) -> list[Column]:
    """The named fields of JSON lines, as numbers; blank lines are passed over."""
    lines: list[int] = []
    fields: tuple[list[float], ...] = tuple([] for _ in names)
    for number, line in enumerate(data.splitlines(), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError:  # a decoding error is one too
            raise SplitgymError(f"{path}: line {number}: not a JSON object; mend or remove the line") from None
        lines.append(number)
        for name, values in zip(names, fields, strict=True):
            values.append(_json_number(path, number, name, record))

    def place(row: int) -> str:
        return f"line {lines[row]}"

    return [Column(path, name, pa.array(v, pa.float64()), place) for name, v in zip(names, fields, strict=True)]


def _json_number(path: Path, line: int, name: str, record: object) -> float:
    if not isinstance(record, dict) or name not in record:
        raise SplitgymError(f"{path}: line {line}: no field {name!r}; a Mooncake request has it")
    value = record[name]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise SplitgymError(f"{path}: line {line}: {name}: {value!r:.60} is not a number; write digits only")
    try:
        return float(value)
    except OverflowError:  # an integer beyond float64
        return float("inf")


def _clock_ns(column: Column) -> IntArray:
    text = pc.utf8_trim_whitespace(column.values)
    for kind in (pa.timestamp("ns"), pa.timestamp("ns", "UTC")):
        try:
            stamps = pc.cast(text, kind)
        except pa.ArrowException:
            continue
        if stamps.null_count == 0:
            nanoseconds: IntArray = pc.cast(stamps, pa.int64()).to_numpy()
            return nanoseconds
    bad = next(row for row, value in enumerate(text) if not _is_clock(value))
    return column.fail(bad, "is not a time", "write it as 2023-11-16 18:17:03.979")


def _is_clock(value: pa.Scalar) -> bool:
    try:
        return bool(pc.cast(value, pa.timestamp("ns")).is_valid)
    except pa.ArrowException:
        return False


def _castable(values: pa.Array) -> npt.NDArray[np.bool_]:
    def number(value: object) -> bool:
        try:
            float(value)  # type: ignore[arg-type]
        except (TypeError, ValueError):
            return False
        return "_" not in str(value)

    return np.array([number(value.as_py()) for value in values])


def _first_ragged_line(data: bytes, expected: int) -> int:
    for number, line in enumerate(data.splitlines(), 1):
        if line.strip() and line.count(b",") + 1 != expected:
            return number
    return 1


def _first(mask: npt.NDArray[np.bool_]) -> int:
    return int(np.flatnonzero(mask)[0]) if mask.any() else 0

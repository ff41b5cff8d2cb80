"""Readers of request traces: the format is told from the contents, and every mistake names its line.

| format | told by |
|---|---|
| Azure 2023 and 2024 CSV | header ``TIMESTAMP,ContextTokens,GeneratedTokens`` |
| the published simulator's CSV | header with ``arrival_timestamp,prompt_size,token_size`` |
| Mooncake JSONL | lines with ``timestamp`` (ms), ``input_length``, ``output_length``, perhaps ``hash_ids`` |
| plain CSV or Parquet | columns ``arrival_s,prompt_tokens,output_tokens`` |

Further columns are ignored. Any of them may be compressed with gzip.
"""

from __future__ import annotations

import gzip
import io
import zlib
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from splitgym.errors import SplitgymError
from splitgym.workload.prediction import predict_output
from splitgym.workload.prefixes import mooncake_prefixes
from splitgym.workload.requests import Requests
from splitgym.workload.trace_columns import Column, arrivals, csv_header, json_columns, text_columns, tokens

PLAIN = ("arrival_s", "prompt_tokens", "output_tokens")
AZURE = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
PUBLISHED = ("arrival_timestamp", "prompt_size", "token_size")
MOONCAKE = ("timestamp", "input_length", "output_length")


def read_trace(path: Path | str) -> Requests:
    """The requests of a trace file.

    Arrivals are as in the file, in seconds; Azure's clock times count from the first of them, Mooncake's
    milliseconds are divided by 1000. ``predicted_output_tokens`` is the trace's mean output by prompt decile.

    Raises:
        SplitgymError: for a file that is missing, empty, damaged or of no known format, and for a value that
            cannot be an arrival (unsorted, negative, not a number) or a token count (below 1, fractional).
    """
    path = Path(path)
    data = _contents(path)
    names: tuple[str, ...] = PLAIN
    if data.startswith(b"PAR1"):
        columns = _parquet_columns(path, data)
    elif data.lstrip().startswith(b"{"):
        names = MOONCAKE
        columns = json_columns(path, data, MOONCAKE)
    else:
        names = _csv_format(path, data)
        columns = text_columns(path, data, names)
    unit = "clock" if names == AZURE else "ms" if names == MOONCAKE else "s"
    arrival_s = arrivals(columns[0], unit)
    prompt_tokens, output_tokens = tokens(columns[1]), tokens(columns[2])
    if len(arrival_s) == 0:
        raise SplitgymError(f"{path}: no requests below the header; add at least one line")
    predicted = predict_output(prompt_tokens, prompt_tokens, output_tokens)
    prefixes = mooncake_prefixes(path, data, prompt_tokens) if names == MOONCAKE else None
    return Requests(arrival_s, prompt_tokens, output_tokens, predicted, prefixes=prefixes)


def write_trace(requests: Requests, path: Path | str) -> None:
    """Write the project's plain format, Parquet where the name ends in ``.parquet``, else CSV (``.gz`` too).

    Reading it back gives the same arrays, to the bit.
    """
    path = Path(path)
    table = pa.table({name: getattr(requests, name) for name in PLAIN})
    if path.suffix == ".parquet":
        pq.write_table(table, path)
        return
    buffer = io.BytesIO()
    pa.csv.write_csv(table, buffer, pa.csv.WriteOptions(quoting_style="none"))
    text = buffer.getvalue()
    path.write_bytes(gzip.compress(text, mtime=0) if path.suffix == ".gz" else text)


def _contents(path: Path) -> bytes:
    if path.is_dir():
        raise SplitgymError(f"{path}: a folder; name the trace file in it")
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise SplitgymError(f"{path}: no such trace file; check the path") from None
    except OSError as error:
        raise SplitgymError(f"{path}: cannot be read ({error.strerror}); check its permissions") from None
    if data.startswith(b"\x1f\x8b"):
        try:
            data = gzip.decompress(data)
        except (EOFError, OSError, zlib.error):
            raise SplitgymError(f"{path}: the gzip data is cut short or damaged; fetch or compress it again") from None
    data = data.removeprefix(b"\xef\xbb\xbf")
    if not data.strip():
        raise SplitgymError(f"{path}: the file is empty; a trace needs a header and at least one request")
    return data


def _csv_format(path: Path, data: bytes) -> tuple[str, ...]:
    header = csv_header(data)
    for names in (PLAIN, AZURE, PUBLISHED):
        if set(header).issuperset(names):
            twice = [name for name in names if header.count(name) > 1]
            if twice:
                raise SplitgymError(f"{path}: line 1: two columns {twice[0]!r}; keep one of them")
            return names
    first_line = ",".join(header)
    shown = first_line if len(first_line) <= 80 else first_line[:77] + "..."
    expected = " or ".join(",".join(names) for names in (PLAIN, AZURE, PUBLISHED))
    raise SplitgymError(f"{path}: line 1: unknown header {shown!r}; expected {expected}, or Mooncake's JSON lines")


def _parquet_columns(path: Path, data: bytes) -> list[Column]:
    try:
        table = pq.read_table(pa.BufferReader(data))
    except (pa.ArrowException, OSError):
        raise SplitgymError(f"{path}: the Parquet data is cut short or damaged; write or fetch it again") from None
    missing = [name for name in PLAIN if name not in table.column_names]
    if missing:
        raise SplitgymError(f"{path}: no column {missing[0]!r}; a Parquet trace has {', '.join(PLAIN)}")
    columns = []
    for name in PLAIN:
        values = table.column(name).combine_chunks()
        columns.append(Column(path, name, values, lambda row: f"row {row + 1}"))
    return columns

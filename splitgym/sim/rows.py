"""One row per request: what a run leaves behind, whichever engine ran it."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

STATUSES = ("in_flight", "completed", "failed", "abandoned")
"""``status`` codes by position: unfinished at the end, finished, fits nowhere, given up by the client."""

IN_FLIGHT, COMPLETED, FAILED, ABANDONED = range(4)


@dataclass(frozen=True)
class RequestRows:
    """What happened to each request, in order of arrival. A time or machine that never was is NaN or -1."""

    arrival_s: FloatArray  # (num_requests,)
    prompt_tokens: IntArray  # (num_requests,)
    output_tokens: IntArray  # (num_requests,)
    prompt_machine: IntArray  # (num_requests,)
    token_machine: IntArray  # (num_requests,)
    prompt_start_s: FloatArray  # (num_requests,) start of the iteration that processes the prompt
    first_token_s: FloatArray  # (num_requests,)
    transfer_end_s: FloatArray  # (num_requests,) NaN where nothing was transferred
    finish_s: FloatArray  # (num_requests,)
    tbt_max_s: FloatArray  # (num_requests,) largest gap between tokens, the transfer's included; NaN for one token
    status: IntArray  # (num_requests,) index into STATUSES
    end_s: float  # when the run ended; unfinished requests are charged up to here
    frontend_s: float = 0.0  # of router and HTTP, on top of TTFT and E2E
    slo_class: IntArray | None = None  # (num_requests,) index into class_names, where there are classes
    class_names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.arrival_s)

    @property
    def ttft_s(self) -> FloatArray:
        """(num_requests,) time to first token."""
        return self.first_token_s - self.arrival_s + self.frontend_s

    @property
    def e2e_s(self) -> FloatArray:
        """(num_requests,) from arrival to last token."""
        return self.finish_s - self.arrival_s + self.frontend_s

    @property
    def tbt_mean_s(self) -> FloatArray:
        """(num_requests,) (E2E − TTFT)/(output tokens − 1), NaN for one token."""
        gaps = self.output_tokens - 1
        return np.where(gaps > 0, (self.finish_s - self.first_token_s) / np.maximum(gaps, 1), np.nan)

    def to_arrow(self) -> pa.Table:
        """The table of ``requests.parquet``; NaN becomes null, status and class their names."""
        columns: dict[str, pa.Array] = {"request_id": pa.array(np.arange(len(self)))}
        names = ["arrival_s", "prompt_tokens", "output_tokens", "prompt_machine", "token_machine", "prompt_start_s"]
        names += ["first_token_s", "transfer_end_s", "finish_s", "ttft_s", "tbt_mean_s", "tbt_max_s", "e2e_s"]
        for name in names:
            values = getattr(self, name)
            missing = np.isnan(values) if values.dtype.kind == "f" else values < 0
            columns[name] = pa.array(values, mask=missing)
        columns["status"] = pa.array([STATUSES[code] for code in self.status], pa.string())
        if self.slo_class is not None:
            columns["slo_class"] = pa.array([self.class_names[number] for number in self.slo_class], pa.string())
        return pa.table(columns)

    def write_parquet(self, path: Path) -> None:
        """Write ``requests.parquet``."""
        pq.write_table(self.to_arrow(), path)

    def take(self, keep: npt.NDArray[np.bool_]) -> RequestRows:
        """The rows where ``keep`` (num_requests,) holds."""
        values = ((f.name, getattr(self, f.name)) for f in fields(self))
        kept: dict[str, Any] = {name: array[keep] for name, array in values if isinstance(array, np.ndarray)}
        return replace(self, **kept)

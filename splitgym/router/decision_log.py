"""Every decision with its view, its propensity and what came of it, in Parquet files that train offline policies."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from splitgym.errors import SplitgymError
from splitgym.features import CLUSTER_FEATURES, MACHINE_FEATURES, REQUEST_FEATURES
from splitgym.folders import check_writable
from splitgym.router.config import LogConfig
from splitgym.router.decide import Choice
from splitgym.router.metrics import Metrics
from splitgym.view import DECISION_KINDS, ClusterView

_log = logging.getLogger(__name__)

_MOST_WAITING = 4  # files' worth of rows that may wait for the disk


@dataclass(eq=False)
class Record:
    """One decision; the outcome is filled in as it becomes known."""

    view: ClusterView
    choice: Choice
    request_id: str = ""
    attempt: int = 0
    predicted_output_tokens: float = 0.0
    status: int = 0  # 200, or what went wrong; 0 at a tick, 599 where another attempt followed
    failure: str = ""
    ttft_s: float = float("nan")
    e2e_s: float = float("nan")
    output_tokens: int = 0
    made_s: float = field(default_factory=time.time)


class DecisionLog:
    """Collects rows and writes them in a thread.

    Args:
        config: where to, and how many to a file.
        engines: their names, in the order of the machines.
        metrics: where rows that could not be written are counted.
        told: what else a reader must know of the router; it goes into the files' metadata.

    Raises:
        SplitgymError: if the folder cannot be written.
    """

    def __init__(
        self, config: LogConfig, engines: tuple[str, ...], metrics: Metrics, told: Mapping[str, str] | None = None
    ) -> None:
        try:
            check_writable(config.folder)
        except SplitgymError as error:
            raise SplitgymError(f"log.folder: {error}") from None
        config.folder.mkdir(parents=True, exist_ok=True)
        self._config = config
        self._told = {"engines": ",".join(engines)} | dict(told or {})
        self._metrics = metrics
        self._records: list[Record] = []
        self._files = 0
        self._started = time.strftime("%Y%m%dT%H%M%S")
        self._full = asyncio.Event()

    def open(self, view: ClusterView, choice: Choice) -> Record:
        """A record of a decision on ``view``, which must last. It is written once it is closed."""
        return Record(view, choice)

    def close(self, record: Record) -> None:
        """Its outcome is known."""
        if len(self._records) >= _MOST_WAITING * self._config.rows_per_file:
            self._metrics.log_errors.inc()  # the disk is slower than the decisions
            return
        self._records.append(record)
        if len(self._records) >= self._config.rows_per_file:
            self._full.set()

    async def run(self) -> None:
        """Write a file when there are enough rows, or the last is old, for ever."""
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._full.wait(), self._config.seconds_per_file)
            await self.flush()

    async def flush(self) -> None:
        """Write what there is."""
        self._full.clear()
        records, self._records = self._records, []
        if not records:
            return
        self._files += 1
        path = self._config.folder / f"decisions-{self._started}-{self._files:06d}.parquet"
        try:
            await asyncio.to_thread(_write, records, self._told, path)
        except (OSError, pa.ArrowException) as error:
            self._metrics.log_errors.inc(len(records))
            _log.warning("%d rows of the decision log are lost: %s", len(records), error)


def _write(records: list[Record], told: Mapping[str, str], path: Path) -> None:
    temporary = path.with_suffix(".tmp")
    pq.write_table(table_of(records, told), temporary)
    temporary.rename(path)


def table_of(records: list[Record], told: Mapping[str, str]) -> pa.Table:
    """A row for each record. Arrays are flat; the schema's metadata names their columns and has what is ``told``."""
    views = [record.view for record in records]
    choices = [record.choice for record in records]
    shadows = [_shadow_of(choice) for choice in choices]
    columns: dict[str, pa.Array] = {
        "made_s": pa.array([record.made_s for record in records]),
        "kind": pa.array([DECISION_KINDS[view.kind] for view in views]),
        "time_s": pa.array([view.time_s for view in views]),
        "request_id": pa.array([record.request_id for record in records]),
        "attempt": pa.array([record.attempt for record in records], pa.int32()),
        "predicted_output_tokens": pa.array([record.predicted_output_tokens for record in records]),
        "policy": pa.array([choice.policy for choice in choices]),
        "fallback": pa.array([choice.fallback for choice in choices]),
        "prompt_machine": pa.array([choice.decision.prompt_machine for choice in choices], pa.int32()),
        "token_machine": pa.array([choice.decision.token_machine for choice in choices], pa.int32()),
        "role_changes": pa.array(
            [[number for change in choice.decision.role_changes for number in change] for choice in choices],
            pa.list_(pa.int32()),
        ),
        "propensity": pa.array([choice.propensity for choice in choices], pa.float64()),
        "shadow_prompt_machine": pa.array([shadow[0] for shadow in shadows], pa.int32()),
        "shadow_token_machine": pa.array([shadow[1] for shadow in shadows], pa.int32()),
        "status": pa.array([record.status for record in records], pa.int32()),
        "failure": pa.array([record.failure for record in records]),
        "ttft_s": _times([record.ttft_s for record in records]),
        "e2e_s": _times([record.e2e_s for record in records]),
        "output_tokens": pa.array([record.output_tokens for record in records], pa.int32()),
        "machines": _lists([view.machines for view in views]),
        "request": _lists([view.request for view in views]),
        "cluster": _lists([view.cluster for view in views]),
        "prompt_mask": _lists([view.prompt_mask for view in views]),
        "token_mask": _lists([view.token_mask for view in views]),
        "role_mask": _lists([view.role_mask for view in views]),
    }
    names = {
        "machine_features": [feature.name for feature in MACHINE_FEATURES],
        "request_features": [feature.name for feature in REQUEST_FEATURES],
        "cluster_features": [feature.name for feature in CLUSTER_FEATURES],
    }
    metadata = {key: ",".join(value) for key, value in names.items()} | dict(told)
    return pa.table(columns).replace_schema_metadata(metadata)


def _times(values: list[float]) -> pa.Array:
    array = np.array(values, dtype=np.float64)
    return pa.array(array, mask=np.isnan(array))


def _lists(arrays: list[npt.NDArray[np.float64]] | list[npt.NDArray[np.bool_]]) -> pa.Array:
    """(rows,) lists of the flattened arrays."""
    flat = np.concatenate([array.ravel() for array in arrays])
    return pa.FixedSizeListArray.from_arrays(pa.array(flat), arrays[0].size)


def _shadow_of(choice: Choice) -> tuple[int | None, int | None]:
    shadow = choice.shadow
    if shadow is None or not shadow.done() or shadow.cancelled() or shadow.exception() is not None:
        return None, None
    return shadow.result().prompt_machine, shadow.result().token_machine

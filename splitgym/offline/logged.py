"""A router's decision log, read back as views and decisions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from splitgym.errors import SplitgymError
from splitgym.features import CLUSTER_FEATURES, MACHINE_FEATURES, REQUEST_FEATURES, Feature
from splitgym.view import DECISION_KINDS, ROLES, ClusterView, Decision

_FEATURES: dict[str, tuple[Feature, ...]] = {
    "machine_features": MACHINE_FEATURES,
    "request_features": REQUEST_FEATURES,
    "cluster_features": CLUSTER_FEATURES,
}


@dataclass(frozen=True)
class LoggedDecision:
    """One decision of a router, and what came of it; times of an outcome are the clock's, from the arrival on."""

    view: ClusterView
    decision: Decision
    policy: str
    fallback: str  # why the fallback decided; "" where the policy did
    propensity: float | None  # the probability with which the policy decided so, where it is known
    request_id: str
    attempt: int  # 0 is a request's first
    status: int  # 200, or what went wrong; 599: another attempt followed; 0 at a tick
    ttft_s: float  # NaN where no token came
    e2e_s: float  # NaN at a tick
    output_tokens: int


@dataclass(frozen=True)
class Logged:
    """The decisions of a log in the order in which they were made, and whom they were about."""

    decisions: tuple[LoggedDecision, ...]
    engines: tuple[str, ...]
    told: Mapping[str, str]  # whatever else the log says of its router


def read_decision_log(folder: Path) -> Logged:
    """The decisions in ``folder``, of one router or of several runs of it.

    Raises:
        SplitgymError: if there are none, they are of other features than this version's, or of different engines.
    """
    files = sorted(folder.glob("*.parquet"))
    if not files:
        raise SplitgymError(f"{folder}: no Parquet files there; name the folder of a router's log")
    try:
        tables = [pq.read_table(file) for file in files]
    except (OSError, pa.ArrowException) as error:
        raise SplitgymError(f"{folder}: not a decision log: {str(error).splitlines()[0]}") from None
    told = [_metadata(table) for table in tables]
    for file, own in zip(files, told, strict=True):
        _check(file, own, told[0])
    rows = [row for table in tables for row in table.to_pylist()]
    rows.sort(key=lambda row: row["made_s"])
    engines = tuple(told[0]["engines"].split(","))
    rest = {name: value for name, value in told[0].items() if name not in (*_FEATURES, "engines")}
    return Logged(tuple(_decision(row, len(engines)) for row in rows), engines, rest)


def _metadata(table: pa.Table) -> dict[str, str]:
    return {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}


def _check(file: Path, own: Mapping[str, str], first: Mapping[str, str]) -> None:
    for name, features in _FEATURES.items():
        if own.get(name) != ",".join(feature.name for feature in features):
            raise SplitgymError(f"{file}: {name}: not this version's; read the log with the version that wrote it")
    if own.get("engines") != first.get("engines"):
        raise SplitgymError(f"{file}: engines: others than in the files before; keep a folder for each cluster")


def _decision(row: Mapping[str, Any], machines: int) -> LoggedDecision:
    changes = row["role_changes"]
    view = ClusterView(
        kind=DECISION_KINDS.index(row["kind"]),
        time_s=row["time_s"],
        machines=np.array(row["machines"]).reshape(machines, len(MACHINE_FEATURES)),
        request=np.array(row["request"]),
        cluster=np.array(row["cluster"]),
        prompt_mask=_mask(row["prompt_mask"]),
        token_mask=_mask(row["token_mask"]),
        role_mask=_mask(row["role_mask"]).reshape(machines, len(ROLES)),
    )
    return LoggedDecision(
        view=view,
        decision=Decision(
            row["prompt_machine"], row["token_machine"], tuple(zip(changes[::2], changes[1::2], strict=True))
        ),
        policy=row["policy"],
        fallback=row["fallback"],
        propensity=row["propensity"],
        request_id=row["request_id"],
        attempt=row["attempt"],
        status=row["status"],
        ttft_s=_or_nan(row["ttft_s"]),
        e2e_s=_or_nan(row["e2e_s"]),
        output_tokens=row["output_tokens"],
    )


def _mask(values: list[bool]) -> npt.NDArray[np.bool_]:
    return np.array(values, dtype=np.bool_)


def _or_nan(value: float | None) -> float:
    return float("nan") if value is None else value

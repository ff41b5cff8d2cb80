"""Operator tables: how long single kernels of a GPU take, smoothed to be monotone and interpolated.

A folder holds ``<gpu>.<operator>.parquet`` in the layout of aiconfigurator's measurements (Apache-2.0), times
in ms: ``gemm`` (m, n, k), ``allreduce`` (num_gpus, message_size in elements, backend), ``prefill_attention``
(batch_size, isl) and ``decode_attention`` (batch_size, context = isl + step), the last two by num_heads and
num_key_value_heads. Only bfloat16 rows are read.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow
import pyarrow.parquet

from splitgym.errors import SplitgymError, did_you_mean

FloatArray = npt.NDArray[np.float64]
Columns = dict[str, npt.NDArray[Any]]

ELEMENT = "bfloat16"
BACKEND = "vllm_graph"
"""All-reduce as captured in a CUDA graph; eager, the host's time to launch it hides the kernel's."""

_COLUMNS = {
    "gemm": ("gemm_dtype", "m", "n", "k"),
    "allreduce": ("allreduce_dtype", "backend", "num_gpus", "message_size"),
    "prefill_attention": ("num_heads", "num_key_value_heads", "head_dim", "batch_size", "isl", "step"),
    "decode_attention": ("num_heads", "num_key_value_heads", "head_dim", "batch_size", "isl", "step"),
}


@dataclass(frozen=True)
class Surface:
    """Times over a grid: linear between its places in log-log.

    Below the first place of an axis the time is that of the first, beyond the last it grows in proportion.
    """

    axes: tuple[FloatArray, ...]  # each increasing
    seconds: FloatArray  # (len(axis), …) over all axes, positive; trailing axes beyond them are carried along

    def __call__(self, *places: npt.ArrayLike) -> FloatArray:
        """Seconds at ``places``, one array for each axis, all of one shape (num_places,)."""
        from scipy.interpolate import RegularGridInterpolator

        wanted = np.stack(np.broadcast_arrays(*(np.asarray(place, dtype=np.float64) for place in places)), axis=-1)
        least = np.array([axis[0] for axis in self.axes])
        most = np.array([axis[-1] for axis in self.axes])
        table = RegularGridInterpolator([np.log(axis) for axis in self.axes], np.log(self.seconds))
        inside = np.exp(table(np.log(np.clip(wanted, least, most))))
        beyond = np.prod(np.maximum(wanted / most, 1.0), axis=-1)
        seconds: FloatArray = inside * beyond.reshape(beyond.shape + (1,) * (inside.ndim - beyond.ndim))
        return seconds

    @property
    def monotone(self) -> Surface:
        """The nearest times, in log, that never fall along any axis.

        Least squares along one axis keeps the order along the others, so one pass over the axes is enough.
        """
        from scipy.optimize import isotonic_regression

        logs = np.log(self.seconds)
        for axis in range(logs.ndim):
            logs = np.apply_along_axis(lambda line: isotonic_regression(line).x, axis, logs)
        return Surface(self.axes, np.exp(logs))


@dataclass(frozen=True)
class Operators:
    """The tables of one GPU."""

    folder: Path
    gpu: str  # as in the files' names
    columns: dict[str, Columns]  # operator -> column -> (num_rows,)

    def gemm(self, n: int, k: int) -> Surface:
        """A matrix product (m, k) x (k, n): seconds over m."""
        by_shape = self.gemms()
        return Surface(by_shape.axes[2:], Surface(by_shape.axes[:2], by_shape.seconds)([n], [k])[0]).monotone

    def gemms(self) -> Surface:
        """All matrix products, as measured: seconds over (n, k, m)."""
        return _grid(self._rows("gemm", gemm_dtype=ELEMENT), ("n", "k", "m"))

    def group_sizes(self) -> list[int]:
        """Tensor parallelisms there are all-reduce times for; 1 needs none."""
        return [1, *np.unique(self.columns["allreduce"]["num_gpus"]).tolist()]

    def all_reduce(self, gpus: int) -> Surface:
        """A sum over ``gpus`` GPUs: seconds over elements."""
        table = self._rows("allreduce", allreduce_dtype=ELEMENT, backend=BACKEND, num_gpus=gpus)
        return _grid(table, ("message_size",)).monotone

    def prefill_attention(self, heads: int, kv_heads: int) -> Surface:
        """Causal attention of whole prompts of equal length: seconds over (prompts, tokens of each)."""
        return self._attention("prefill_attention", "isl", heads, kv_heads)

    def decode_attention(self, heads: int, kv_heads: int) -> Surface:
        """One token for each sequence: seconds over (sequences, tokens attended by each)."""
        return self._attention("decode_attention", "context", heads, kv_heads)

    def _attention(self, operator: str, length: str, heads: int, kv_heads: int) -> Surface:
        """Where these heads were not measured, those of the same ratio that were stand in, in larger batches."""
        table = self._rows(operator, head_dim=128)
        table["context"] = table["isl"] + table["step"]
        alike = table["num_heads"] * kv_heads == heads * table["num_key_value_heads"]
        known = [count for count in np.unique(table["num_key_value_heads"][alike]).tolist() if count <= kv_heads]
        if not known:
            raise SplitgymError(
                f"{self._file(operator)}: no rows for {heads} heads over {kv_heads} KV heads, nor fewer of the same"
                " ratio; choose another tensor parallelism"
            )
        chosen = _where(table, alike & (table["num_key_value_heads"] == known[-1]))
        surface = _grid(chosen, ("batch_size", length))
        sequences = surface.axes[0] * known[-1] / kv_heads
        return Surface((sequences, surface.axes[1]), surface.seconds).monotone

    def _rows(self, operator: str, **equal: object) -> Columns:
        table = self.columns[operator]
        kept = np.logical_and.reduce([table[name] == value for name, value in equal.items()])
        if not kept.any():
            wanted = ", ".join(f"{name} {value}" for name, value in equal.items())
            raise SplitgymError(f"{self._file(operator)}: no rows with {wanted}; give a table that has them")
        return _where(table, kept)

    def _file(self, operator: str) -> Path:
        return self.folder / f"{self.gpu}.{operator}.parquet"


def read_operators(folder: Path, gpu: str) -> Operators:
    """The tables of ``gpu``: ``h100`` or ``h100-sxm`` for ``h100_sxm.*.parquet``.

    Raises:
        SplitgymError: if the folder has no tables, none of this GPU, or one is missing or malformed.
    """
    if not folder.is_dir():
        raise SplitgymError(f"{folder}: no such folder; give the one with the operator tables")
    gpus = sorted({path.name.split(".")[0] for path in folder.glob("*.parquet")})
    if not gpus:
        raise SplitgymError(f"{folder}: no operator tables (<gpu>.<operator>.parquet) in it; give their folder")
    stem = gpu.replace("-", "_")
    found = next((name for name in gpus if name in (stem, f"{stem}_sxm")), None)
    if found is None:
        names = [name.removesuffix("_sxm").replace("_", "-") for name in gpus]
        raise SplitgymError(f"gpu: no operator tables of {gpu!r} in {folder}{did_you_mean(gpu, names)}")
    return Operators(folder, found, {name: _read(folder / f"{found}.{name}.parquet", name) for name in _COLUMNS})


def _read(path: Path, operator: str) -> Columns:
    try:
        table = pyarrow.parquet.read_table(path)
    except FileNotFoundError:
        raise SplitgymError(f"{path}: no such file; all of {', '.join(_COLUMNS)} are needed") from None
    except (OSError, pyarrow.ArrowException) as error:
        raise SplitgymError(f"{path}: cannot be read ({str(error).splitlines()[0]}); give a Parquet file") from None
    for column in (*_COLUMNS[operator], "latency_ms"):
        if column not in table.column_names:
            raise SplitgymError(f"{path}: no column {column!r}{did_you_mean(column, table.column_names)}")
    columns = {name: table[name].to_numpy() for name in (*_COLUMNS[operator], "latency_ms")}
    if not (table.num_rows and np.all(columns["latency_ms"] > 0)):
        raise SplitgymError(f"{path}: latency_ms: rows are missing or not positive; give measured times")
    return columns


def _where(table: Columns, kept: npt.NDArray[np.bool_]) -> Columns:
    return {name: column[kept] for name, column in table.items()}


def _grid(table: Columns, names: tuple[str, ...]) -> Surface:
    """The rows as a full grid; what is missing is in proportion to the place before it on the first axis it can."""
    places = [np.unique(table[name], return_inverse=True) for name in names]
    axes = tuple(values.astype(np.float64) for values, _ in places)
    seconds = np.full([len(axis) for axis in axes], np.nan)
    seconds[tuple(inverse for _, inverse in places)] = table["latency_ms"] / 1000
    for dimension, axis in enumerate(axes):
        lines = np.moveaxis(seconds, dimension, 0)  # a view
        for place in range(1, len(axis)):
            in_proportion = lines[place - 1] * (axis[place] / axis[place - 1])
            lines[place] = np.where(np.isnan(lines[place]), in_proportion, lines[place])
    return Surface(axes, seconds)

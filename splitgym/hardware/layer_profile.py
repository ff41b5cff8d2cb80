"""Profiles of one layer at a time, as taken on vLLM: reading the tables and composing whole iterations from them."""

from __future__ import annotations

import csv
import dataclasses
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, Field

from splitgym.errors import SplitgymError, did_you_mean
from splitgym.hardware.measurements import parsed_number
from splitgym.hardware.models import Count
from splitgym.yaml_file import read_model

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]
IntArray = npt.NDArray[np.int64]

ATTENTION_COLUMNS = ("prefill_chunk", "kv_prefill", "n_decode", "kv_decode", "time_us")
"""One prompt's chunk and the context it finds, decodes and the context of *each*; one layer's attention."""

TIMES_IN_A_LAYER = {
    "layernorm": 2,  # before attention and before the feed-forward part
    "qkv_proj": 1,
    "qk_norm": 1,  # queries and keys together
    "rotary_emb": 1,
    "o_proj": 1,
    "gate_up_proj": 1,
    "act_fn": 1,
    "down_proj": 1,
}
"""How often a dense operation runs in each layer of the model."""

ONCE = ("embedding", "final_layernorm")
"""Dense operations that run once an iteration."""

BY_SEQUENCE = ("lm_head", "sampler")
"""Operations once an iteration whose time goes by the sequences that yield a token."""

LEAST_ROWS = 4
"""Fewest rows of each kind of iteration: half of them are kept from the fit that tells its error."""


class ProfileMeta(BaseModel):
    """``profile_meta.yaml``, as far as it is needed."""

    model: str
    hardware: str
    tp_degrees: Annotated[tuple[Count, ...], Field(min_length=1)]
    gpu: str = ""
    vllm_version: str = ""


@dataclass(frozen=True)
class Table:
    """Time of an operation by size, sizes increasing."""

    sizes: FloatArray  # (num_rows,)
    seconds: FloatArray  # (num_rows,)

    def at(self, sizes: FloatArray) -> FloatArray:
        """Interpolated linearly; flat below the first row, in proportion to the size above the last."""
        seconds: FloatArray = np.interp(sizes, self.sizes, self.seconds) * np.maximum(sizes / self.sizes[-1], 1.0)
        return seconds


@dataclass(frozen=True)
class Iterations:
    """Iterations of at most one prompt's chunk and decodes of equal context; arrays (num_iterations,)."""

    chunk_tokens: FloatArray
    prefill_context: FloatArray
    decodes: FloatArray
    context_each: FloatArray  # of each decode
    seconds: FloatArray

    def of(self, which: BoolArray | IntArray) -> Iterations:
        """Some of them."""
        return Iterations(*(values[which] for values in vars(self).values()))

    def taking(self, seconds: FloatArray) -> Iterations:
        """The same iterations with other times."""
        return dataclasses.replace(self, seconds=seconds)

    def and_also(self, others: Iterations) -> Iterations:
        """These and others."""
        pairs = zip(vars(self).values(), vars(others).values(), strict=True)
        return Iterations(*(np.concatenate(pair) for pair in pairs))

    @property
    def batch_tokens(self) -> FloatArray:
        """Tokens the dense operations see."""
        return self.chunk_tokens + self.decodes

    @property
    def decode_context(self) -> FloatArray:
        """Summed over the decodes."""
        return self.decodes * self.context_each

    @property
    def kinds(self) -> dict[str, BoolArray]:
        """Which are prompts alone, decodes alone, and both."""
        prompt, decode = self.chunk_tokens > 0, self.decodes > 0
        return {"prompt": prompt & ~decode, "decode": decode & ~prompt, "mixed": prompt & decode}


@dataclass(frozen=True)
class LayerProfile:
    """One model on one GPU of a tensor-parallel group, an operation at a time."""

    folder: Path
    meta: ProfileMeta
    attention: Iterations  # one layer's attention alone
    dense: dict[str, Table]  # by tokens
    per_sequence: dict[str, Table]  # by sequences

    def compose(self, layers: int) -> Iterations:
        """Whole iterations of a model of ``layers`` layers, one for each row of the attention table.

        layers · (attention + dense) + embedding + final norm + head + sampler, communication not included.
        """
        return self._whole(self.attention, layers)

    def prompts_between(self, layers: int) -> Iterations:
        """Whole iterations of one prompt's chunk alone, no context found, at every size of the dense tables.

        The attention table leaves gaps of hundreds of tokens between its chunks, in which the dense operations
        climb several steps; attention is interpolated there, as time per token, which a square law makes linear.
        """
        rows = self.attention
        alone = rows.of(rows.kinds["prompt"] & (rows.prefill_context == 0))
        chunks, first = np.unique(alone.chunk_tokens, return_index=True)
        if not len(chunks):
            return rows.of(np.zeros(len(rows.seconds), dtype=np.bool_))
        sizes = self.dense_sizes
        sizes = sizes[(sizes >= chunks[0]) & (sizes <= chunks[-1])]
        seconds = sizes * np.interp(sizes, chunks, alone.seconds[first] / chunks)
        zero = np.zeros_like(sizes)
        return self._whole(Iterations(sizes, zero, zero, zero, seconds), layers)

    def _whole(self, rows: Iterations, layers: int) -> Iterations:
        sequences = rows.decodes + (rows.chunk_tokens > 0)
        seconds = layers * rows.seconds + self.dense_s(rows.batch_tokens, layers)
        for table in self.per_sequence.values():
            seconds = seconds + table.at(sequences)
        return rows.taking(seconds)

    def dense_s(self, batch_tokens: FloatArray, layers: int) -> FloatArray:
        """Time of all dense operations of an iteration."""
        seconds = np.zeros_like(batch_tokens)
        for name, table in self.dense.items():
            seconds += (1 if name in ONCE else layers * TIMES_IN_A_LAYER[name]) * table.at(batch_tokens)
        return seconds

    @property
    def dense_sizes(self) -> FloatArray:
        """Every number of tokens in the dense tables, increasing, and a quarter more than the last.

        There the tables go on in proportion, which the last two rows, perhaps on either side of a step, would not.
        """
        sizes = np.unique(np.concatenate([table.sizes for table in self.dense.values()]))
        return np.append(sizes, np.ceil(1.25 * sizes[-1]))


def read_layer_profile(folder: Path) -> LayerProfile:
    """Read ``attention.csv``, ``dense.csv``, ``per_sequence.csv`` and ``profile_meta.yaml`` of a folder.

    Raises:
        SplitgymError: if a file is missing or malformed; the message names file, line and mend.
    """
    meta = read_model(folder / "profile_meta.yaml", ProfileMeta)
    dense = _read_tables(folder / "dense.csv", "tokens", (*TIMES_IN_A_LAYER, *ONCE))
    per_sequence = _read_tables(folder / "per_sequence.csv", "sequences", BY_SEQUENCE)
    return LayerProfile(folder, meta, _read_attention(folder / "attention.csv"), dense, per_sequence)


def _read_attention(path: Path) -> Iterations:
    rows = []
    for place, row in _rows(path, ATTENTION_COLUMNS):
        sizes = [_size(place, name, row[name], least=0) for name in ATTENTION_COLUMNS[:-1]]
        if sizes[0] == 0 and sizes[2] == 0:
            raise SplitgymError(f"{place}: neither prefill_chunk nor n_decode; give one of them")
        rows.append((*sizes, _seconds(place, row["time_us"])))
    attention = Iterations(*np.array(rows, dtype=np.float64).T)
    for name, which in attention.kinds.items():
        if which.sum() < LEAST_ROWS:
            raise SplitgymError(
                f"{path}: {which.sum()} rows of {name} iterations; prompts, decodes and both need {LEAST_ROWS} each"
            )
    return attention


def _read_tables(path: Path, size: str, known: tuple[str, ...]) -> dict[str, Table]:
    rows: dict[str, dict[float, float]] = defaultdict(dict)
    for place, row in _rows(path, ("layer", size, "time_us")):
        layer = str(row["layer"])
        if layer not in known:
            raise SplitgymError(f"{place}: layer: unknown {layer!r}{did_you_mean(layer, known)}")
        rows[layer][_size(place, size, row[size], least=1)] = _seconds(place, row["time_us"])
    missing = [name for name in known if name not in rows and name != "qk_norm"]
    if missing:
        raise SplitgymError(f"{path}: no rows of layer {missing[0]!r}; add them")
    return {layer: Table(*np.array(sorted(times.items())).T) for layer, times in rows.items()}


def _rows(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[str, dict[str, str | None]]]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            present = list(reader.fieldnames or ())
            for column in columns:
                if column not in present:
                    raise SplitgymError(f"{path}:1: no column {column!r}{did_you_mean(column, present)}")
            empty = True
            for row in reader:
                empty = False
                yield f"{path}:{reader.line_num}", row
    except FileNotFoundError:
        raise SplitgymError(f"{path}: no such file; a layer profile needs it") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise SplitgymError(f"{path}: cannot be read ({error}); give a CSV file") from None
    if empty:
        raise SplitgymError(f"{path}: no rows under the header; give at least one")


def _size(place: str, column: str, text: str | None, *, least: int) -> float:
    value = parsed_number(place, column, text)
    if value < least or value != int(value):
        raise SplitgymError(f"{place}: {column}: {text!r} is no count; give a whole number ≥ {least}")
    return value


def _seconds(place: str, text: str | None) -> float:
    value = parsed_number(place, "time_us", text)
    if value <= 0:
        raise SplitgymError(f"{place}: time_us: {text!r} is no duration; give microseconds > 0")
    return value * 1e-6

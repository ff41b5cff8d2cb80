"""Measuring a shard: the grid, what many readings of one time come to, and the folder that `fit` takes.

The folder has ``dense.csv`` (layer, tokens, time_us: an operator, once), ``attention.csv`` (prefill_chunk,
kv_prefill, n_decode, kv_decode, time_us: one layer), ``per_sequence.csv`` (layer, sequences, time_us),
``profile_meta.yaml``, and ``iterations.csv``, laid out like ``attention.csv``: whole iterations of all layers,
to check a fit against; there only if the whole shard fits the GPU.
"""

from __future__ import annotations

import csv
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from splitgym.yaml_file import write_yaml

if TYPE_CHECKING:
    from splitgym.hardware.shard import Shard


@dataclass(frozen=True)
class Work:
    """Something to time: ``run`` does the same operator ``times`` times over, on other weights or caches."""

    run: Callable[[], None]
    times: int


@dataclass(frozen=True)
class Mix:
    """An iteration's batch, as in the columns of ``attention.csv``: one prompt's chunk, and equal decodes."""

    prefill_chunk: int
    kv_prefill: int  # tokens of the prompt already in the cache
    n_decode: int
    kv_decode: int  # tokens each decode attends to, its own included

    @property
    def tokens(self) -> int:
        """Tokens that go through the dense layers."""
        return self.prefill_chunk + self.n_decode

    @property
    def sequences(self) -> int:
        """Sequences that go through the head."""
        return self.n_decode + (self.prefill_chunk > 0)

    @property
    def cached_tokens(self) -> int:
        """Keys and values attended to, those of this iteration included."""
        return self.prefill_chunk + self.kv_prefill + self.n_decode * self.kv_decode


Timer = Callable[[Work], list[float]]
"""Seconds of several runs of some work."""

MOST_SPREAD = 0.05
"""Interquartile range over median above which readings are taken again."""

MOST_TAKES = 3

ONCE_BY_TOKENS = ("embedding", "final_layernorm")
ONCE_BY_SEQUENCES = ("lm_head", "sampler")


@dataclass(frozen=True)
class Reading:
    """What several readings of one time come to."""

    seconds: float  # the median, which no single outlier moves
    spread: float  # interquartile range over median


@dataclass(frozen=True)
class Grid:
    """What is measured."""

    tokens: tuple[int, ...]
    sequences: tuple[int, ...]
    mixes: tuple[Mix, ...]


def grid(max_tokens: int = 8192, max_sequences: int = 256, max_context: int = 16_384) -> Grid:
    """Powers of two, and what lies halfway between them where kernels change most; prompts, decodes, and both.

    Args:
        max_tokens: of a batch, at least 16.
        max_sequences: of a batch.
        max_context: of one sequence.
    """
    chunks, numbers = _powers(16, max_tokens), _powers(1, max_sequences)
    lengths = _powers(16, max_context)
    mixes = [
        *(Mix(chunk, context, 0, 0) for chunk in chunks for context in (0, *lengths[3::2])),
        *(Mix(0, 0, number, length) for number in numbers for length in lengths),
        *(
            Mix(chunk, context, number, length)
            for chunk in chunks[::2]
            for context in (0, *lengths[5::4])
            for number in numbers[::2]
            for length in lengths[3::2]
        ),
    ]
    halfway = (3 * tokens // 2 for tokens in _powers(16, max_tokens))
    return Grid(
        tokens=tuple(sorted({*_powers(1, max_tokens), *(tokens for tokens in halfway if tokens <= max_tokens)})),
        sequences=tuple(numbers),
        mixes=tuple(
            mix
            for mix in mixes
            if mix.prefill_chunk + mix.kv_prefill <= max_context
            and mix.tokens <= max_tokens
            and mix.sequences <= max_sequences
        ),
    )


def settled(work: Work, timer: Timer) -> Reading:
    """The steadiest of up to ``MOST_TAKES`` takes; one within ``MOST_SPREAD`` is enough."""
    takes: list[Reading] = []
    while len(takes) < MOST_TAKES and not (takes and takes[-1].spread <= MOST_SPREAD):
        takes.append(_reading(timer(work), work.times))
    return min(takes, key=lambda take: take.spread)


def measure_shard(
    shard: Shard, timer: Timer, points: Grid, folder: Path, meta: dict[str, Any], done: Callable[[str], object]
) -> None:
    """Time every point that fits the shard's cache and write the folder's files into ``folder``.

    Args:
        shard: what is timed.
        timer: how.
        points: where.
        folder: an existing folder.
        meta: what ``profile_meta.yaml`` says beside the figures of the readings.
        done: told the name of each file as it is written.
    """
    spreads: list[float] = []

    def micros(work: Work) -> float:
        reading = settled(work, timer)
        spreads.append(reading.spread)
        return round(reading.seconds * 1e6, 4)

    def dense() -> Iterator[tuple[object, ...]]:
        for name in shard.layer_operators:
            yield from ((name, tokens, micros(shard.dense(name, tokens))) for tokens in points.tokens)
        for name in ONCE_BY_TOKENS:
            yield from ((name, tokens, micros(shard.once(name, tokens))) for tokens in points.tokens)

    def per_sequence() -> Iterator[tuple[object, ...]]:
        for name in ONCE_BY_SEQUENCES:
            yield from ((name, number, micros(shard.once(name, number))) for number in points.sequences)

    def over_mixes(work: Callable[[Mix], Work], mixes: Iterable[Mix]) -> Iterator[tuple[object, ...]]:
        yield from ((*astuple(mix), micros(work(mix))) for mix in mixes)

    fitting = [mix for mix in points.mixes if mix.cached_tokens <= shard.cache_tokens]
    files: dict[str, tuple[tuple[str, ...], Iterator[tuple[object, ...]]]] = {
        "dense.csv": (("layer", "tokens"), dense()),
        "per_sequence.csv": (("layer", "sequences"), per_sequence()),
        "attention.csv": (tuple(Mix.__dataclass_fields__), over_mixes(shard.attention, fitting)),
    }
    if shard.layers == shard.widths.spec.layers:
        files["iterations.csv"] = (tuple(Mix.__dataclass_fields__), over_mixes(shard.iteration, fitting[::3]))
    for name, (columns, rows) in files.items():
        _write_csv(folder / name, (*columns, "time_us"), rows)
        done(name)
    readings = {
        "readings": len(spreads),
        "spread_median": round(statistics.median(spreads), 5),
        "spread_max": round(max(spreads), 5),
        "points_left_out": len(points.mixes) - len(fitting),
    }
    write_yaml(folder / "profile_meta.yaml", {**meta, "statistics": readings})


def _powers(least: int, most: int) -> list[int]:
    return [least << power for power in range((most // least).bit_length())]


def _reading(runs_s: Sequence[float], times: int) -> Reading:
    median = statistics.median(runs_s)
    first, _, third = statistics.quantiles(runs_s, n=4, method="inclusive")
    return Reading(median / times, (third - first) / median)


def _write_csv(path: Path, columns: tuple[str, ...], rows: Iterable[tuple[object, ...]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(rows)

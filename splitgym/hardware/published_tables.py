"""Latency and memory as the published Splitwise simulator sees them: tables of medians over batch tokens."""

from __future__ import annotations

import csv
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from statistics import median
from typing import Any

import yaml

from splitgym.errors import SplitgymError, did_you_mean

TENSOR_PARALLEL = 8
"""The published clusters run every replica on the eight GPUs of one machine."""

GPU_BYTES = 80 * 2**30
"""Memory of one GPU: 80 GiB on all the hardware of the published simulator, with nothing set aside."""

MIXED_BATCH_FACTOR = 1.1
"""On the prompt table, for a batch that holds both phases."""


class LatencyTable:
    """Piecewise-linear iteration time over batch tokens, extrapolated linearly at both ends.

    Args:
        batch_tokens: (num_knots,) increasing, at least two.
        seconds: (num_knots,) iteration time at each knot.
    """

    def __init__(self, batch_tokens: Sequence[int], seconds: Sequence[float]) -> None:
        self._batch_tokens = batch_tokens
        self._seconds = seconds
        self._known: dict[int, float] = {}

    def __call__(self, batch_tokens: int) -> float:
        """Seconds one iteration over ``batch_tokens`` tokens takes."""
        if batch_tokens not in self._known:
            self._known[batch_tokens] = self._interpolate(batch_tokens)
        return self._known[batch_tokens]

    def _interpolate(self, batch_tokens: int) -> float:
        # The order of operations is scipy's interp1d's: overload is chaotic, a last bit would show.
        high = min(max(bisect_left(self._batch_tokens, batch_tokens), 1), len(self._batch_tokens) - 1)
        low = high - 1
        rise, run = (
            self._seconds[high] - self._seconds[low],
            self._batch_tokens[high] - self._batch_tokens[low],
        )
        return rise / run * (batch_tokens - self._batch_tokens[low]) + self._seconds[low]


@dataclass(frozen=True)
class PublishedLatency:
    """Iteration times of a model on one hardware."""

    prompt_s: LatencyTable
    decode_s: LatencyTable

    def iteration_s(self, num_prompts: int, num_decodes: int, batch_tokens: int) -> float:
        """Seconds an iteration takes over ``batch_tokens``: the prompts' lengths, and 1 per decode."""
        if num_prompts == 0:
            return self.decode_s(batch_tokens)  # its knots are prompt size x batch size: batching is free
        if num_decodes == 0:
            return self.prompt_s(batch_tokens)
        return self.prompt_s(batch_tokens) * MIXED_BATCH_FACTOR


@dataclass(frozen=True)
class PublishedModel:
    """What a model costs, in the published simulator's terms."""

    kv_bytes_per_token: int  # without grouped-query attention: eight times too much for Llama-2-70B
    capacity_tokens: float  # KV tokens that fit on a machine beside the weights
    latency: dict[str, PublishedLatency]  # by hardware


def load_published_models() -> dict[str, PublishedModel]:
    """The shipped tables, by model name."""
    shipped = yaml.safe_load(resources.files(__package__).joinpath("published_tables.yaml").read_text("utf-8"))
    models = {}
    for name, facts in shipped["models"].items():
        kv_bytes_per_token = 2 * facts["hidden_size"] * facts["layers"] * facts["bytes_per_element"]
        free_bytes = TENSOR_PARALLEL * GPU_BYTES - facts["weight_bytes"]
        models[name] = PublishedModel(
            kv_bytes_per_token=kv_bytes_per_token,
            capacity_tokens=free_bytes / kv_bytes_per_token,
            latency={
                hardware: PublishedLatency(
                    LatencyTable(table["batch_tokens"], table["prompt_s"]),
                    LatencyTable(table["batch_tokens"], table["decode_s"]),
                )
                for hardware, table in shipped["tables"][name].items()
            },
        )
    return models


def load_published_model(model: str) -> PublishedModel:
    """The shipped tables of one model.

    Raises:
        SplitgymError: if the published simulator has no tables for ``model``.
    """
    models = load_published_models()
    if model not in models:
        raise SplitgymError(f"model: unknown {model!r}{did_you_mean(model, models)}")
    return models[model]


def derive_tables(profile: Path) -> dict[str, dict[str, dict[str, Any]]]:
    """The medians by batch tokens (prompt size x batch size) that ``published_tables.yaml`` ships.

    Args:
        profile: the profile of the published simulator (``perf_model.csv``), times in milliseconds.

    Returns:
        model -> hardware -> ``batch_tokens``, ``prompt_s``, ``decode_s``, each (num_knots,).
    """
    times: defaultdict[tuple[str, str], defaultdict[int, list[tuple[float, float]]]]
    times = defaultdict(lambda: defaultdict(list))
    with profile.open(newline="", encoding="utf-8") as lines:
        for row in csv.DictReader(lines):
            if int(row["tensor_parallel"]) == TENSOR_PARALLEL:
                batch_tokens = int(row["prompt_size"]) * int(row["batch_size"])
                seconds = float(row["prompt_time"]) / 1000, float(row["token_time"]) / 1000
                times[row["model"], row["hardware"]][batch_tokens].append(seconds)
    tables: dict[str, dict[str, dict[str, Any]]] = {}
    for (model, hardware), knots in sorted(times.items()):
        tables.setdefault(model, {})[hardware] = {
            "batch_tokens": sorted(knots),
            "prompt_s": [median(prompt_s for prompt_s, _ in knots[tokens]) for tokens in sorted(knots)],
            "decode_s": [median(decode_s for _, decode_s in knots[tokens]) for tokens in sorted(knots)],
        }
    return tables

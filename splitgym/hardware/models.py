"""What is known of models and machines before any profiling: sizes, power, cost, links."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import ConfigDict, Field

from splitgym.errors import SplitgymError, did_you_mean
from splitgym.yaml_file import read_model

Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]

FACTS_FILE = Path(__file__).with_name("facts.yaml")
"""The shipped facts; a user's own file of the same form adds to them."""


@dataclass(frozen=True)
class ModelSpec:
    """A transformer, as far as memory goes."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    name: str
    layers: Count
    kv_heads: Count  # fewer than attention heads with grouped-query attention
    head_dim: Count
    bytes_per_element: Count
    weight_bytes: Count

    @property
    def kv_bytes_per_token(self) -> int:
        """One token's keys and values: 2 · layers · kv_heads · head_dim · bytes per element."""
        return 2 * self.layers * self.kv_heads * self.head_dim * self.bytes_per_element

    def kv_capacity_tokens(self, hbm_bytes: int) -> int:
        """⌊(0.9 · HBM − weights) / KV bytes per token⌋: tokens whose keys and values fit beside the weights."""
        return (9 * hbm_bytes - 10 * self.weight_bytes) // (10 * self.kv_bytes_per_token)


@dataclass(frozen=True)
class ModelShape:
    """The matrices of a transformer, beside what `ModelSpec` says."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    name: str  # of its model
    hidden: Count
    heads: Count  # of queries
    feed_forward: Count
    vocabulary: Count
    gated: bool = True  # two matrices into the feed-forward layer, not one
    query_key_norm: bool = False


@dataclass(frozen=True)
class MachineSpec:
    """A whole machine; a tensor-parallel group of t GPUs has t / gpus of it."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    name: str
    gpus: Count
    tdp_w: Positive
    uncapped_tdp_w: Positive
    cost_usd_per_hour: Positive
    hbm_bytes_per_gpu: Count
    hbm_bytes_per_s_per_gpu: Positive
    link_bytes_per_s: Positive
    all_reduce_overhead_s: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    all_reduce_bytes_per_s: Positive | None = None  # of the message, between two GPUs
    note: str = ""


@dataclass(frozen=True)
class Facts:
    """The content of a facts file."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    models: tuple[ModelSpec, ...] = ()
    machines: tuple[MachineSpec, ...] = ()
    shapes: tuple[ModelShape, ...] = ()

    def model(self, name: str) -> ModelSpec:
        """The model ``name``; the last one, so that a user's facts come before the shipped."""
        return {model.name: model for model in self.models}[_known("model", name, [m.name for m in self.models])]

    def machine(self, name: str) -> MachineSpec:
        """The machine ``name``; the last one, so that a user's facts come before the shipped."""
        names = [machine.name for machine in self.machines]
        return {machine.name: machine for machine in self.machines}[_known("hardware", name, names)]

    def shape(self, name: str) -> ModelShape:
        """The matrices of the model ``name``; the last ones, likewise."""
        names = [shape.name for shape in self.shapes]
        return {shape.name: shape for shape in self.shapes}[_known("model", name, names, of="matrices")]


def load_facts(path: Path | None = None) -> Facts:
    """The shipped facts, and those of ``path`` if given.

    Raises:
        SplitgymError: if the file is missing or malformed.
    """
    shipped = read_model(FACTS_FILE, Facts)
    if path is None:
        return shipped
    own = read_model(path, Facts)
    return Facts(shipped.models + own.models, shipped.machines + own.machines, shipped.shapes + own.shapes)


def model_spec(name: str) -> ModelSpec:
    """A shipped model.

    Raises:
        SplitgymError: if there is none of this name.
    """
    return load_facts().model(name)


def _known(field: str, name: str, names: list[str], of: str = "facts") -> str:
    if name not in names:
        raise SplitgymError(f"{field}: no {of} of {name!r}{did_you_mean(name, names)}; or add them in a facts file")
    return name

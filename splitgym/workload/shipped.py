"""The workloads that ship: figures of production traces, as quantile tables and arrival statistics."""

from __future__ import annotations

from functools import cache
from importlib import resources
from typing import Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field

from splitgym.workload.arrivals import ShapedArrivals
from splitgym.workload.lengths import TabulatedLengths

ShippedName = Literal["azure-coding", "azure-conversation"]


class ShippedWorkload(BaseModel):
    """Figures of one trace, with where they come from."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: ShippedName
    description: str
    source: str
    licence: str
    citation: str
    derived_by: str
    rate_rps: float = Field(gt=0)
    arrivals: ShapedArrivals
    lengths: TabulatedLengths


@cache
def shipped_workload(name: ShippedName) -> ShippedWorkload:
    """The shipped figures called ``name``."""
    text = resources.files("splitgym.workload").joinpath("figures", f"{name}.yaml").read_text("utf-8")
    return ShippedWorkload.model_validate(yaml.safe_load(text))


def list_traces() -> dict[str, str]:
    """The shipped workloads, name to one-line description."""
    return {name: shipped_workload(name).description for name in get_args(ShippedName)}

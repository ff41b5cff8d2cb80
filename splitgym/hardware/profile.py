"""Hardware profiles: what one model on one tensor-parallel group takes in time, memory, power and money."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import ConfigDict, Field

from splitgym.errors import SplitgymError, did_you_mean
from splitgym.hardware.latency import LatencyLaw
from splitgym.hardware.models import Count, ModelSpec, Positive
from splitgym.hardware.power import PowerLaw
from splitgym.hardware.uncertainty import LawUncertainty
from splitgym.yaml_file import read_model, write_yaml

NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]

_SHIPPED = Path(__file__).parent / "profiles"


@dataclass(frozen=True)
class ValidRange:
    """What was measured, (least, most); outside it the law extrapolates."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    prompt_tokens: tuple[int, int]  # of one prompt
    batch_tokens: tuple[int, int]  # of a batch of prompts
    decodes: tuple[int, int]
    decode_context_tokens: tuple[int, int]  # summed over a batch


@dataclass(frozen=True)
class FitError:
    """Relative error of the law, |law / measured − 1|.

    Against the medians it was fitted to or, where ``provenance.fitted`` says so, against measurements kept from it;
    of mixed iterations, and 95th percentiles, where the measurements have them.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    prompt_mean: NonNegative
    prompt_max: NonNegative
    decode_mean: NonNegative
    decode_max: NonNegative
    prompt_p95: NonNegative | None = None
    decode_p95: NonNegative | None = None
    mixed_mean: NonNegative | None = None
    mixed_p95: NonNegative | None = None
    mixed_max: NonNegative | None = None


@dataclass(frozen=True)
class Provenance:
    """Where a profile's figures come from."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    source: str
    licence: str
    fitted: str
    left_out: tuple[str, ...]
    assumptions: tuple[str, ...]


@dataclass(frozen=True)
class HardwareProfile:
    """One model replica on one tensor-parallel group; every figure is the group's, not the GPU's.

    Raises:
        ValueError: if the model's weights leave no memory for a KV-cache.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    model: ModelSpec
    hardware: str
    tensor_parallel: Count
    law: LatencyLaw
    power: PowerLaw
    cost_usd_per_hour: NonNegative
    hbm_bytes: Count
    link_bytes_per_s: Positive
    valid_range: ValidRange
    error: FitError
    provenance: Provenance
    kv_capacity_override_tokens: Count | None = None
    uncertainty: LawUncertainty | None = None

    def __post_init__(self) -> None:
        if self.kv_capacity_tokens < 1:
            raise ValueError(
                f"hbm_bytes: 0.9 x {self.hbm_bytes} bytes hold no KV-cache beside {self.model.weight_bytes}"
                " bytes of weights"
            )

    @property
    def name(self) -> str:
        """For people and file names: ``llama2-70b.h100-80gb.tp8``."""
        return profile_name(self.model.name, self.hardware, self.tensor_parallel)

    @property
    def kv_capacity_tokens(self) -> int:
        """⌊(0.9 · HBM − weights) / KV bytes per token⌋, unless the profile says otherwise."""
        if self.kv_capacity_override_tokens is not None:
            return self.kv_capacity_override_tokens
        return (9 * self.hbm_bytes - 10 * self.model.weight_bytes) // (10 * self.model.kv_bytes_per_token)

    def write(self, path: Path) -> None:
        """Write the profile as YAML, whole or not at all.

        Raises:
            SplitgymError: if the file cannot be written.
        """
        write_yaml(path, _plain(dataclasses.asdict(self)))


def profile_name(model: str, hardware: str, tensor_parallel: int) -> str:
    """The name of a profile, also its file's: ``llama2-70b.h100-80gb.tp8``."""
    return f"{model}.{hardware}.tp{tensor_parallel}"


def load_profile_file(path: Path | str) -> HardwareProfile:
    """Read a profile from a YAML file.

    Raises:
        SplitgymError: if the file is missing or malformed; the message names file, field and mend.
    """
    return read_model(Path(path), HardwareProfile)


def list_profiles() -> list[tuple[str, str, int]]:
    """The shipped profiles: (model, hardware, tensor parallelism), sorted."""
    names = (path.stem.rsplit(".", 2) for path in _SHIPPED.glob("*.yaml"))
    return sorted((model, hardware, int(group.removeprefix("tp"))) for model, hardware, group in names)


def load_profile(model: str, hardware: str, tensor_parallel: int = 8) -> HardwareProfile:
    """A shipped profile.

    Raises:
        SplitgymError: if there is none for this model, hardware or tensor parallelism.
    """
    known = list_profiles()
    if model not in {key[0] for key in known}:
        raise SplitgymError(f"model: unknown {model!r}{did_you_mean(model, {key[0] for key in known})}")
    hardwares = {key[1] for key in known if key[0] == model}
    if hardware not in hardwares:
        raise SplitgymError(f"hardware: unknown {hardware!r} for {model}{did_you_mean(hardware, hardwares)}")
    groups = [key[2] for key in known if key[:2] == (model, hardware)]
    if tensor_parallel not in groups:
        raise SplitgymError(
            f"tensor_parallel: no profile of {model} on {hardware} for {tensor_parallel}; "
            f"one of: {', '.join(map(str, groups))}"
        )
    return load_profile_file(_SHIPPED / f"{profile_name(model, hardware, tensor_parallel)}.yaml")


def _plain(value: Any) -> Any:
    """Tuples as lists, which YAML knows; what is None is left out."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items() if item is not None}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value

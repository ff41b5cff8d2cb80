"""What `splitgym serve` is told: a YAML file, checked before anything starts."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from splitgym.errors import SplitgymError
from splitgym.hardware import HardwareProfile, load_profile_file
from splitgym.machines import Hardware, cached_profile
from splitgym.sim.cluster import Cluster, Machine, Transfer
from splitgym.view import ROLES
from splitgym.yaml_file import read_model

Seconds = Annotated[PositiveFloat, FiniteFloat]


def _is_url(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment or parts.username:
        raise ValueError(f"{url!r}: not an engine's address; write http://HOST:PORT")
    return url.rstrip("/")


def _is_key(text: str) -> str:
    """A key, or ``env:NAME``: that of the environment variable."""
    name = text.removeprefix("env:")
    key = os.environ.get(name, "") if text.startswith("env:") else text
    if not key:
        raise ValueError(f"{text!r}: no key there; set the environment variable {name}, or write the key")
    return key


def _is_name(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,64}", text):
        raise ValueError(f"{text!r}: not a name; use up to 64 letters, digits, '.', '_' and '-'")
    return text


Url = Annotated[str, AfterValidator(_is_url)]
Key = Annotated[str, AfterValidator(_is_key)]
Name = Annotated[str, AfterValidator(_is_name)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class EngineConfig(_Strict):
    """One engine, and the machine it runs on: shipped ``hardware``, or a ``profile`` of one's own."""

    name: Name
    url: Url
    role: Literal["prompt", "token", "mixed"]
    hardware: Hardware | None = None
    profile: Path | None = None
    api_key: Key | None = None  # else the client's Authorization is passed on
    bootstrap_host: str | None = None  # SGLang's prompt engines
    bootstrap_port: PositiveInt = 8998

    @model_validator(mode="after")
    def _one_machine(self) -> Self:
        if (self.hardware is None) == (self.profile is None):
            raise ValueError("give either hardware, a shipped one, or profile, a file's path")
        return self


class PolicyConfig(_Strict):
    """Who decides, and who does where that fails."""

    name: str = "splitwise-tuned"
    fallback: str = "lmetric"
    shadow: str | None = None  # decides, too, and is only logged
    timeout_ms: PositiveFloat = 50.0
    tick_s: PositiveFloat | None = 5.0
    seed: int = Field(default=0, ge=0)
    python_files: bool = False  # whether the admin interface may load FILE.py:CLASS


class PredictionConfig(_Strict):
    """Lengths that only the engines know. Prompts given as tokens are counted, texts by their bytes."""

    bytes_per_token: PositiveFloat = 4.0
    prompt_edges_tokens: tuple[PositiveFloat, ...] = ()
    mean_output_tokens: tuple[PositiveFloat, ...] = (256.0,)  # of prompts up to each edge, and beyond the last
    cap_at_max_tokens: bool = True

    @model_validator(mode="after")
    def _steps(self) -> Self:
        if len(self.mean_output_tokens) != len(self.prompt_edges_tokens) + 1:
            raise ValueError(
                f"{len(self.mean_output_tokens)} mean_output_tokens for {len(self.prompt_edges_tokens)} "
                "prompt_edges_tokens; give one more than edges"
            )
        if list(self.prompt_edges_tokens) != sorted(set(self.prompt_edges_tokens)):
            raise ValueError("prompt_edges_tokens: must increase")
        return self


class SafetyConfig(_Strict):
    """When the router gives up on an engine, a cache or a request."""

    attempts: PositiveInt = 3
    connect_timeout_s: Seconds = 2.0
    silence_timeout_s: Seconds = 60.0  # of an engine, before the first token and between tokens
    gone_timeout_s: Seconds = 5.0  # the same, of one that is down and takes no connections
    lease_s: Seconds = 30.0  # how long prompt engines keep a cache (vLLM's NIXL connector)
    lease_margin_s: NonNegativeFloat = 5.0
    failures_to_open: PositiveInt = 3
    drain_timeout_s: Seconds = 60.0

    @model_validator(mode="after")
    def _lease(self) -> Self:
        if self.lease_margin_s >= self.lease_s:
            raise ValueError(f"lease_margin_s: {self.lease_margin_s:g}; give less than lease_s, {self.lease_s:g}")
        return self


class LimitsConfig(_Strict):
    """What one client may ask for."""

    body_bytes: PositiveInt = 2_097_152
    body_timeout_s: Seconds = 30.0
    header_bytes: PositiveInt = 16_384
    requests_per_client: PositiveInt = 4096  # at the same time; a client is a key, or else an address


class TelemetryConfig(_Strict):
    """How the engines' metrics are read."""

    interval_s: Seconds = 1.0
    timeout_s: Seconds = 2.0


class LogConfig(_Strict):
    """Where decisions are logged, as Parquet files."""

    folder: Path
    rows_per_file: PositiveInt = 4096
    seconds_per_file: Seconds = 60.0


class RouterConfig(_Strict):
    """All of it."""

    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65_535)
    model: str  # whose profiles time the engines
    served_model: str | None = None  # what clients call it; the same by default
    tensor_parallel: PositiveInt = 8
    baseline: Hardware = "a100-80gb"
    protocol: Literal["vllm-nixl", "sglang", "plain"] = "vllm-nixl"
    engines: tuple[EngineConfig, ...] = Field(min_length=1, max_length=10_000)
    policy: PolicyConfig = PolicyConfig()
    prediction: PredictionConfig = PredictionConfig()
    safety: SafetyConfig = SafetyConfig()
    limits: LimitsConfig = LimitsConfig()
    telemetry: TelemetryConfig = TelemetryConfig()
    log: LogConfig | None = None
    client_keys: tuple[Key, ...] = ()  # none: everybody may ask
    admin_key: Key | None = None  # none: no admin interface
    switch_s: NonNegativeFloat = 0.0  # what a role change costs, for the view
    transfer_overhead_s: NonNegativeFloat = 0.0
    time_scale: Seconds = 1.0  # of emulated engines: their seconds in one of the clock

    @property
    def name(self) -> str:
        """What clients call the model."""
        return self.served_model or self.model

    @field_validator("engines")
    @classmethod
    def _no_twins(cls, engines: tuple[EngineConfig, ...]) -> tuple[EngineConfig, ...]:
        for what in ("name", "url"):
            seen: set[str] = set()
            for engine in engines:
                value = getattr(engine, what)
                if value in seen:
                    raise ValueError(f"two engines have the {what} {value!r}; give each its own")
                seen.add(value)
        return engines

    @model_validator(mode="after")
    def _both_phases(self) -> Self:
        roles = [engine.role for engine in self.engines]
        if self.protocol == "plain" and set(roles) != {"mixed"}:
            raise ValueError("engines: protocol plain has no split; give every engine the role mixed")
        if self.protocol == "sglang" and "mixed" in roles:
            raise ValueError("engines: SGLang's engines have one phase; give each the role prompt or token")
        for phase in ("prompt", "token"):
            if not {phase, "mixed"} & set(roles):
                raise ValueError(f"engines: none serves the {phase} phase; give one the role {phase} or mixed")
        return self


def read_config(path: Path) -> RouterConfig:
    """The configuration in a YAML file.

    Raises:
        SplitgymError: one line for each mistake in it.
    """
    return read_model(path, RouterConfig)


def cluster_of(config: RouterConfig, folder: Path = Path()) -> Cluster:
    """The engines as the policies know them.

    Args:
        config: whose engines.
        folder: what the profiles' paths are relative to.

    Raises:
        SplitgymError: for machines without a profile.
    """
    machines = []
    for index, engine in enumerate(config.engines):
        try:
            profile = _profile_of(engine, config, folder)
        except SplitgymError as error:
            raise SplitgymError(f"engines[{index}]: {error}") from None
        machines.append(Machine(ROLES.index(engine.role), profile))
    return Cluster(
        machines=tuple(machines),
        model=machines[0].profile.model,
        baseline=cached_profile(config.model, config.baseline, config.tensor_parallel),
        transfer=Transfer(overhead_s=config.transfer_overhead_s),
        switch_s=config.switch_s,
    )


def _profile_of(engine: EngineConfig, config: RouterConfig, folder: Path) -> HardwareProfile:
    if engine.profile is not None:
        return load_profile_file(folder / engine.profile)
    assert engine.hardware is not None
    return cached_profile(config.model, engine.hardware, config.tensor_parallel)

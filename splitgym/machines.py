"""Groups of machines: ``machines:`` of a card and ``--machines`` of the command line, which mean the same."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, FiniteFloat, PositiveFloat, PositiveInt

from splitgym.errors import SplitgymError, did_you_mean
from splitgym.hardware import HardwareProfile, list_profiles, load_profile
from splitgym.sim.cluster import Batching, Machine, VllmBatching
from splitgym.view import ROLES


def _known_hardware(hardware: str) -> str:
    known = {profile[1] for profile in list_profiles()}
    if hardware not in known:
        raise ValueError(f"unknown {hardware!r}{did_you_mean(hardware, known)}")
    return hardware


Hardware = Annotated[str, AfterValidator(_known_hardware)]
"""The name of hardware that a shipped profile describes."""


class MachineGroup(BaseModel):
    """Like machines in one role, with settings of their own where discipline `vllm` is the cluster's."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    role: Literal["prompt", "token", "mixed"]
    hardware: Hardware
    count: int = Field(default=1, ge=1, le=10_000)
    max_num_seqs: PositiveInt | None = None
    max_num_batched_tokens: PositiveInt | None = None
    block_size: PositiveInt | None = None
    power_cap_w: Annotated[PositiveFloat, FiniteFloat] | None = None

    def batching(self, common: Batching | VllmBatching | None) -> VllmBatching | None:
        """Their settings in place of the cluster's ``common`` ones; None where they have none.

        Raises:
            ValueError: if the settings are of another discipline than the cluster's, or cannot be.
        """
        own = self.model_dump(include={"max_num_seqs", "max_num_batched_tokens", "block_size"}, exclude_none=True)
        if not own:
            return None
        if not isinstance(common, VllmBatching):
            raise ValueError(f"machines: {next(iter(own))} needs batching.discipline vllm; set it or leave this out")
        return replace(common, **own)


def parse_machines(text: str) -> tuple[MachineGroup, ...]:
    """Groups from ``prompt=25:h100-80gb,token=15:h100-80gb``; a role may occur more than once.

    Raises:
        SplitgymError: for a group that is not ROLE=COUNT:HARDWARE, an unknown role or hardware, a count below
            1, or a phase that no machine serves.
    """
    groups = tuple(_parse_group(group.strip()) for group in text.split(",") if group.strip())
    try:
        return check_phases(groups)
    except ValueError as error:
        raise SplitgymError(f"--machines {text!r}: {error}") from None


def check_phases(groups: tuple[MachineGroup, ...]) -> tuple[MachineGroup, ...]:
    """``groups`` themselves, if both phases have a machine.

    Raises:
        ValueError: if one has none.
    """
    if not groups:
        raise ValueError("no machines; give at least one")
    for phase in ("prompt", "token"):
        if not any(group.role in (phase, "mixed") for group in groups):
            raise ValueError(f"no machine serves the {phase} phase; add one of role {phase} or mixed")
    return groups


def build_machines(
    groups: tuple[MachineGroup, ...],
    model: str,
    tensor_parallel: int,
    batching: Batching | VllmBatching | None = None,
    power_cap_w: float | None = None,
) -> tuple[Machine, ...]:
    """The machines, numbered in the order of their groups; ``power_cap_w`` is that of groups without one.

    Raises:
        SplitgymError: if there is no profile of a group's hardware for this model and tensor parallelism.
        ValueError: if a group's settings do not go with the cluster's ``batching``.
    """
    return tuple(
        Machine(
            ROLES.index(group.role),
            cached_profile(model, group.hardware, tensor_parallel),
            group.batching(batching),
            group.power_cap_w or power_cap_w,
        )
        for group in groups
        for _ in range(group.count)
    )


@cache
def cached_profile(model: str, hardware: str, tensor_parallel: int) -> HardwareProfile:
    """A shipped profile, read once."""
    return load_profile(model, hardware, tensor_parallel)


def _parse_group(text: str) -> MachineGroup:
    place = f"--machines: {text!r}"
    role, equals, rest = text.partition("=")
    count, colon, hardware = rest.partition(":")
    if not equals or not colon:
        raise SplitgymError(f"{place}: not ROLE=COUNT:HARDWARE; write prompt=25:h100-80gb, for example")
    if role not in ROLES:
        raise SplitgymError(f"{place}: unknown role {role!r}{did_you_mean(role, ROLES)}")
    if not count.isdecimal() or not 1 <= int(count) <= 10_000:
        raise SplitgymError(f"{place}: {count!r} machines; give a whole number from 1 to 10000")
    try:
        _known_hardware(hardware)
    except ValueError as error:
        raise SplitgymError(f"{place}: hardware: {error}") from None
    return MachineGroup.model_validate({"role": role, "hardware": hardware, "count": int(count)})

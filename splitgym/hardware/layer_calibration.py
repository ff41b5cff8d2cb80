"""From the folder of a layer profile to a hardware profile: the law, its error on rows kept from it, provenance."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from splitgym.errors import SplitgymError, did_you_mean
from splitgym.hardware.latency import LatencyLaw
from splitgym.hardware.layer_engine import read_engine_settings
from splitgym.hardware.layer_fit import ErrorOf, error_of, fit_layers, refits
from splitgym.hardware.layer_profile import BoolArray, FloatArray, Iterations, LayerProfile, read_layer_profile
from splitgym.hardware.models import Facts, MachineSpec, ModelSpec, load_facts
from splitgym.hardware.power_fit import declared_assumptions, declared_power
from splitgym.hardware.profile import FitError, HardwareProfile, Provenance, ValidRange
from splitgym.hardware.uncertainty import spread_of
from splitgym.randomness import Streams

SEED = 0
"""Of the streams ``layer-fit-halves`` and ``layer-fit-refits``."""

HOST_SPREAD = 0.5
"""Relative standard deviation of ``host_s``: declared. One run tells its size, not how it differs among machines."""


def fit_layer_profile(
    folder: Path | str,
    out_path: Path | str | None = None,
    *,
    model: str | None = None,
    hardware: str | None = None,
    tensor_parallel: int | None = None,
    host_s: float = 0.0,
    facts_path: Path | str | None = None,
    source: str | None = None,
    licence: str = "not stated",
) -> HardwareProfile:
    """Fit the law to a layer profile, and write the hardware profile if ``out_path`` is given.

    Args:
        folder: with ``attention.csv``, ``dense.csv``, ``per_sequence.csv``, ``profile_meta.yaml`` and, if there was
            a run, ``run_meta.json``, which gives tensor parallelism and KV capacity.
        out_path: the YAML file to write, if any; it appears whole or not at all.
        model: name among the facts, if the profile's own is not found there.
        hardware: likewise.
        tensor_parallel: if neither the run nor the profile says which.
        host_s: the host's time between iterations, which a profile of layers cannot show.
        facts_path: a YAML like the shipped ``facts.yaml``, for models and machines that are not in that one.
        source: where the measurements come from; the folder's name if not given.
        licence: of the measurements.

    Raises:
        SplitgymError: if a file cannot be read or written or is malformed, or model, machine or tensor parallelism
            are unknown.
    """
    folder = Path(folder)
    measured = read_layer_profile(folder)
    engine = read_engine_settings(folder)
    facts = load_facts(Path(facts_path) if facts_path is not None else None)
    spec = facts.model(model or _alike(measured.meta.model, "model", [known.name for known in facts.models]))
    names = [known.name for known in facts.machines]
    machine = facts.machine(hardware or _alike(measured.meta.hardware, "hardware", names))
    run_group = None if engine is None else engine.engine_kwargs.tensor_parallel_size
    group = _group(measured, tensor_parallel or run_group)
    share = group / machine.gpus

    fitted = fit_law_of_layers(measured, spec, facts, machine, group)
    law = dataclasses.replace(fitted.law, host_s=host_s)
    prompt, decode, mixed = (fitted.held_out[kind] for kind in ("prompt", "decode", "mixed"))
    profile = HardwareProfile(
        model=spec,
        hardware=machine.name,
        tensor_parallel=group,
        law=law,
        power=declared_power(machine, share),
        cost_usd_per_hour=round(machine.cost_usd_per_hour * share, 4),
        hbm_bytes=group * machine.hbm_bytes_per_gpu,
        link_bytes_per_s=machine.link_bytes_per_s * share,
        valid_range=_valid_range(measured.attention),
        error=FitError(
            *_rounded(prompt.mean, prompt.largest, decode.mean, decode.largest),
            *_rounded(prompt.p95, decode.p95, mixed.mean, mixed.p95, mixed.largest),
        ),
        provenance=Provenance(
            source=source or folder.name,
            licence=licence,
            fitted=_how_fitted(fitted),
            left_out=(),
            assumptions=_assumptions(measured, machine, group, host_s),
        ),
        kv_capacity_override_tokens=None if engine is None else engine.kv_capacity_tokens,
        uncertainty=spread_of(law, fitted.refits, decode.mean, max(prompt.mean, mixed.mean), HOST_SPREAD),
    )
    if out_path is not None:
        profile.write(Path(out_path))
    return profile


@dataclasses.dataclass(frozen=True)
class LayerFit:
    """A law fitted to all iterations, the errors of one fitted to half of them on the other half, and refits."""

    law: LatencyLaw
    held_out: Mapping[str, ErrorOf]  # by kind of iteration
    refits: list[LatencyLaw]
    num_iterations: int


def fit_law_of_layers(
    measured: LayerProfile, spec: ModelSpec, facts: Facts, machine: MachineSpec, group: int
) -> LayerFit:
    """Compose the profile's iterations, communication included, and fit the law to them."""
    sizes = measured.dense_sizes
    composed, between = measured.compose(spec.layers), measured.prompts_between(spec.layers)
    dense_s = measured.dense_s(sizes, spec.layers)
    if group > 1:
        link = _AllReduce(spec, facts.shape(spec.name).hidden, machine, group)
        composed, between = (part.taking(part.seconds + link.s(part.batch_tokens)) for part in (composed, between))
        dense_s = dense_s + link.s(sizes)
    half = half_of_each_kind(composed, Streams(SEED).generator("layer-fit-halves"))
    half_law, _ = fit_layers(composed.of(half).and_also(between), sizes, dense_s)
    law, places = fit_layers(composed.and_also(between), sizes, dense_s)
    return LayerFit(
        law,
        error_of(half_law, composed.of(~half)),
        refits(composed, between, places, Streams(SEED).generator("layer-fit-refits")),
        len(composed.seconds),
    )


def half_of_each_kind(iterations: Iterations, rng: np.random.Generator) -> BoolArray:
    """A random half of the prompts alone, of the decodes alone, and of both: a mask (num_iterations,)."""
    chosen = np.zeros(len(iterations.seconds), dtype=np.bool_)
    for which in iterations.kinds.values():
        rows = rng.permutation(np.flatnonzero(which))
        chosen[rows[: len(rows) // 2]] = True
    return chosen


@dataclasses.dataclass(frozen=True)
class _AllReduce:
    """Two all-reduces a layer of one vector of ``hidden`` elements a token."""

    spec: ModelSpec
    hidden: int
    machine: MachineSpec
    group: int

    def s(self, batch_tokens: FloatArray) -> FloatArray:
        """Time in an iteration: a ring's traffic, with that of two GPUs as 1."""
        rate = self.machine.all_reduce_bytes_per_s
        if rate is None:
            raise SplitgymError(
                f"hardware: no all_reduce_bytes_per_s of {self.machine.name!r}, which tensor parallelism {self.group}"
                " needs; add it in a facts file"
            )
        bytes_per_token = 2 * (self.group - 1) / self.group * self.spec.bytes_per_element * self.hidden
        return 2 * self.spec.layers * (self.machine.all_reduce_overhead_s + bytes_per_token * batch_tokens / rate)


def _alike(name: str, field: str, known: list[str]) -> str:
    """The known name that equals the last part of ``name`` but for case and punctuation."""

    def letters(text: str) -> str:
        return re.sub(r"[^a-z0-9]", "", text.rsplit("/", 1)[-1].lower())

    for candidate in known:
        if letters(candidate) == letters(name):
            return candidate
    raise SplitgymError(
        f"{field}: no facts of {name!r}{did_you_mean(name, known)}; choose with --{field}, or add it in a facts file"
    )


def _group(measured: LayerProfile, chosen: int | None) -> int:
    degrees = measured.meta.tp_degrees
    if chosen is None and len(degrees) > 1:
        raise SplitgymError(
            f"{measured.folder / 'profile_meta.yaml'}: tp_degrees: {len(degrees)} of them and no run_meta.json;"
            " choose with --tensor-parallel"
        )
    group = degrees[0] if chosen is None else chosen
    if group not in degrees:
        listed = ", ".join(map(str, degrees))
        raise SplitgymError(f"tensor_parallel: no profile for {group}; one of: {listed}")
    return group


def _valid_range(attention: Iterations) -> ValidRange:
    prompted, decoding = attention.chunk_tokens > 0, attention.decodes > 0

    def ends(values: FloatArray) -> tuple[int, int]:
        return int(values.min()), int(values.max())

    chunks = ends(attention.chunk_tokens[prompted])
    return ValidRange(
        prompt_tokens=chunks,
        batch_tokens=chunks,
        decodes=ends(attention.decodes[decoding]),
        decode_context_tokens=ends(attention.decode_context[decoding]),
    )


def _rounded(*values: float) -> Iterable[float]:
    return (round(value, 5) for value in values)


def _how_fitted(fitted: LayerFit) -> str:
    return (
        f"least absolute relative errors over {fitted.num_iterations} whole iterations, one for each row of the"
        " attention table: layers x (attention + dense) + embedding + final norm + head + sampler; errors are those"
        " of a law fitted to a random half of the iterations, on the other half"
    )


def _assumptions(measured: LayerProfile, machine: MachineSpec, group: int, host_s: float) -> tuple[str, ...]:
    version = f", vLLM {measured.meta.vllm_version}" if measured.meta.vllm_version else ""
    rate = machine.all_reduce_bytes_per_s or 0.0
    communication = (
        f"two all-reduces a layer, between two GPUs {1e6 * machine.all_reduce_overhead_s:.3g} µs and {rate:.4g}"
        " bytes/s each, are not measured with the layers but declared"
    )
    return (
        f"measured an operation at a time, eager mode{version}; CUDA graphs pad batches, which is not modelled",
        "decodes had equal contexts in each measurement; unequal ones take somewhat longer",
        *([communication] if group > 1 else []),
        f"host_s = {host_s:g}: "
        + ("the host's time is not in a profile of layers" if host_s == 0 else "one scalar, fitted on a run"),
        "per_prompt_s = 0: no iteration had more than one prompt",
        *declared_assumptions(machine),
        f"the group has its share of a machine of {machine.gpus} GPUs in power, cost and link",
    )

"""From profiled runs to a hardware profile: the fitted law, machine facts, and where figures come from."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from splitgym.hardware.latency import LatencyLaw
from splitgym.hardware.law_fit import DECODE_CAP, PROMPT_CAP, fit_law, report_fit, rounded
from splitgym.hardware.measurements import (
    OperatingPoint,
    Run,
    choose_runs,
    medians,
    read_runs,
    without_corrupt,
)
from splitgym.hardware.models import MachineSpec, load_facts
from splitgym.hardware.power_fit import measured_assumptions, measured_power
from splitgym.hardware.profile import HardwareProfile, Provenance, ValidRange
from splitgym.hardware.uncertainty import LawUncertainty, spread_of
from splitgym.randomness import Streams

NUM_REFITS = 40
"""Refits to resampled runs that tell the coefficients' spread."""


def fit_profile(
    csv_path: Path | str,
    out_path: Path | str,
    *,
    model: str | None = None,
    hardware: str | None = None,
    tensor_parallel: int | None = None,
    facts_path: Path | str | None = None,
    source: str | None = None,
    licence: str = "not stated",
) -> HardwareProfile:
    """Fit the law to one set of a profile and write the hardware profile.

    Args:
        csv_path: profiled runs, with the columns of `measurements.COLUMNS`, times in ms; with
            ``average_power`` and ``peak_power``, shares of the GPUs' TDP, the power law is taken from them.
        out_path: the YAML file to write; it appears whole or not at all.
        model: which set, where the file holds several.
        hardware: likewise.
        tensor_parallel: likewise.
        facts_path: a YAML like the shipped ``facts.yaml``, for models and machines that are not in that one.
        source: where the runs come from; the file's name if not given.
        licence: of the runs.

    Raises:
        SplitgymError: if a file cannot be read or written, a row is malformed, the choice is not one set,
            or the model or machine is unknown.
    """
    csv_path, out_path = Path(csv_path), Path(out_path)
    every_run = read_runs(csv_path)
    runs = choose_runs(csv_path, every_run, model, hardware, tensor_parallel)
    model_name, hardware_name, group = runs[0].key
    facts = load_facts(Path(facts_path) if facts_path is not None else None)
    spec, machine = facts.model(model_name), facts.machine(hardware_name)
    share = group / machine.gpus

    points, corrupt = without_corrupt(medians(runs))
    least_context_s = rounded(spec.kv_bytes_per_token / (group * machine.hbm_bytes_per_s_per_gpu))
    law = fit_law(points, least_context_s)
    alike = [run for run in every_run if (run.model, run.tensor_parallel) == (model_name, group)]
    profile = HardwareProfile(
        model=spec,
        hardware=hardware_name,
        tensor_parallel=group,
        law=law,
        power=measured_power(machine, share, alike),
        cost_usd_per_hour=round(machine.cost_usd_per_hour * share, 4),
        hbm_bytes=group * machine.hbm_bytes_per_gpu,
        link_bytes_per_s=machine.link_bytes_per_s * share,
        valid_range=_valid_range(points),
        error=report_fit(law, points).error,
        provenance=Provenance(
            source=source or csv_path.name,
            licence=licence,
            fitted=_how_fitted(len(runs), len(points)),
            left_out=tuple(
                f"prompt {point.prompt_tokens}, batch {point.batch_size}: corrupt, over twice as fast as a"
                " smaller batch"
                for point in corrupt
            ),
            assumptions=_assumptions(machine, alike),
        ),
        uncertainty=_uncertainty(law, runs, points, least_context_s),
    )
    profile.write(out_path)
    return profile


def _uncertainty(
    law: LatencyLaw, runs: Sequence[Run], points: Sequence[OperatingPoint], least_context_s: float
) -> LawUncertainty:
    """From refits to runs resampled within each operating point."""
    runs_of: dict[tuple[int, int], list[Run]] = defaultdict(list)
    for run in runs:
        runs_of[run.prompt_tokens, run.batch_size].append(run)
    rng = Streams(0).generator("fit-refits")
    refits = []
    for _ in range(NUM_REFITS):
        drawn: list[Run] = []
        for point in points:
            group = runs_of[point.prompt_tokens, point.batch_size]
            drawn += (group[number] for number in rng.integers(len(group), size=len(group)))
        refits.append(fit_law(medians(drawn), least_context_s))
    error = report_fit(law, points).error
    return spread_of(law, refits, error.decode_mean, error.prompt_mean)


def _valid_range(points: Sequence[OperatingPoint]) -> ValidRange:
    def ends(values: list[int]) -> tuple[int, int]:
        return min(values), max(values)

    return ValidRange(
        prompt_tokens=ends([point.prompt_tokens for point in points]),
        batch_tokens=ends([point.prompt_tokens * point.batch_size for point in points]),
        decodes=ends([point.batch_size for point in points]),
        decode_context_tokens=ends([point.decode_context_tokens for point in points]),
    )


def _how_fitted(num_runs: int, num_points: int) -> str:
    return (
        f"linear programme over medians by (prompt, batch) of {num_runs} runs, {num_points} points kept,"
        " output sizes pooled: least mean relative error, the largest kept within"
        f" {PROMPT_CAP:g} (prompt) and {DECODE_CAP:g} (decode) where possible"
    )


def _assumptions(machine: MachineSpec, powered: Sequence[Run]) -> tuple[str, ...]:
    return (
        *([machine.note] if machine.note else []),
        "mixed batches were not measured: mixed_context_s = decode_context_s, and mixed_decode_s is the least"
        " with which a prompt never shortens an iteration",
        "decode_context_s is at least the time to read one token's KV-cache at full memory bandwidth; batch"
        " and context are not crossed in the runs, which leaves it weakly identified",
        "host_s = 0: the runs time whole iterations, the host's share included",
        "prefill_context_s = 0: no chunked prompts were measured",
        *measured_assumptions(machine, powered),
        f"the group has its share of a machine of {machine.gpus} GPUs in power, cost and link",
    )

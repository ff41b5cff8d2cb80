"""From a model's composed iterations to a hardware profile: the law that fits them, its error, its provenance."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from splitgym.hardware.compose import LEAST_KERNEL_S, NUM_PARTS, Batches, Composition, IntArray
from splitgym.hardware.latency import LatencyLaw, Points, iteration_s, least_mixed_decode_s
from splitgym.hardware.law_fit import rounded
from splitgym.hardware.models import MachineSpec, load_facts
from splitgym.hardware.operators import FloatArray, read_operators
from splitgym.hardware.power_fit import declared_assumptions, declared_power
from splitgym.hardware.profile import FitError, HardwareProfile, Provenance, ValidRange
from splitgym.hardware.uncertainty import spread_of
from splitgym.randomness import Streams

NUM_REFITS, KERNEL_SPREAD = 20, 0.1
"""Refits that tell the coefficients' spread, and how far each kernel's times are off in one (standard deviation)."""

NUM_BATCHES = 2000
"""Batches of each kind that are drawn to fit the law, and as many others to tell its error."""

SEED = 0
"""Of the streams ``compose-fit``, ``compose-errors`` and ``compose-refits``."""

DECODE_KNOTS = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 80, 96, 128, 160, 192, 256, 384, 512, 768, 1024, 2048)
BATCH_KNOTS = (*DECODE_KNOTS[3:-1], *(1024 * thousands for thousands in (2, 3, 4, 6, 8, 16)))
MAX_PROMPTS, MAX_CONTEXT = 16, 16_384


def compose_profile(
    model: str,
    gpu: str,
    tensor_parallel: int,
    operators_folder: Path | str,
    out_path: Path | str,
    *,
    facts_path: Path | str | None = None,
    source: str | None = None,
    licence: str = "not stated",
) -> HardwareProfile:
    """Compose a model's iterations from operator tables, fit the law to them and write the hardware profile.

    Args:
        model: a model of the facts, matrices included.
        gpu: as the tables are called: ``h100`` or ``h100-sxm`` for ``h100_sxm.*.parquet``.
        tensor_parallel: GPUs that share the model.
        operators_folder: see `splitgym.hardware.operators`.
        out_path: the YAML file to write; it appears whole or not at all.
        facts_path: a YAML like the shipped ``facts.yaml``, for models and machines that are not in that one.
        source: where the tables come from; the folder's name if not given.
        licence: of the tables.

    Raises:
        SplitgymError: if the model or GPU is unknown, the model does not fit, or a file cannot be read or written.
    """
    folder = Path(operators_folder)
    facts = load_facts(Path(facts_path) if facts_path is not None else None)
    spec, shape = facts.model(model), facts.shape(model)
    operators = read_operators(folder, gpu)
    machine = facts.machine(operators.gpu.replace("_", "-"))
    times = Composition(operators, spec, shape, machine, tensor_parallel)
    share = tensor_parallel / machine.gpus
    hbm_bytes = tensor_parallel * machine.hbm_bytes_per_gpu
    capacity = spec.kv_capacity_tokens(hbm_bytes)

    drawn, others = draw_batches("compose-fit", capacity), draw_batches("compose-errors", capacity)
    parts = [times.parts(kind) for kind in drawn]
    law = fit_composed(drawn, [part.sum(axis=0) for part in parts])
    error = error_of(law, times, others)
    normal = Streams(SEED).generator("compose-refits").standard_normal((NUM_REFITS, NUM_PARTS))
    refits = [fit_composed(drawn, [factors @ part for part in parts]) for factors in np.exp(KERNEL_SPREAD * normal)]
    profile = HardwareProfile(
        model=spec,
        hardware=machine.name,
        tensor_parallel=tensor_parallel,
        law=law,
        power=declared_power(machine, share),
        cost_usd_per_hour=round(machine.cost_usd_per_hour * share, 4),
        hbm_bytes=hbm_bytes,
        link_bytes_per_s=machine.link_bytes_per_s * share,
        valid_range=_valid_range(others),
        error=error,
        provenance=Provenance(
            source=source or folder.name,
            licence=licence,
            fitted=f"relative least squares over {3 * NUM_BATCHES} composed batches; errors are over as many others",
            left_out=("the host's time", "embedding", "gathering of logits", "sampler"),
            assumptions=_assumptions(machine),
        ),
        uncertainty=spread_of(law, refits, error.decode_mean, max(error.prompt_mean, error.mixed_mean or 0.0)),
    )
    profile.write(Path(out_path))
    return profile


class Drawn(NamedTuple):
    """Batches of three kinds, log-uniform in the range, that fit the memory."""

    prompt: Batches
    decode: Batches
    mixed: Batches


def draw_batches(stream: str, capacity_tokens: int, num_batches: int = NUM_BATCHES) -> Drawn:
    """Draw ``num_batches`` of each kind from a named stream.

    Half of the prompts are whole, half are chunks of longer ones; a mixed batch has one of either beside decodes.
    """
    rng = Streams(SEED).generator(stream)
    zero = np.zeros(num_batches, dtype=np.int64)

    def upto(most: IntArray | int, least: int = 1) -> IntArray:
        drawn = np.exp(rng.uniform(np.log(least), np.log(np.maximum(most, least) + 0.999), num_batches))
        return np.minimum(drawn, np.maximum(most, least)).astype(np.int64)

    def chunks(tokens_left: IntArray | int) -> tuple[IntArray, IntArray, IntArray]:
        prompts = upto(MAX_PROMPTS)
        chunk = upto(np.maximum(tokens_left // prompts, 1), least=8)
        most = np.minimum(MAX_CONTEXT - chunk, capacity_tokens // prompts - chunk)
        context = np.where(rng.random(num_batches) < 0.5, 0, upto(most))
        return prompts, chunk, np.maximum(np.minimum(context, most), 0)

    def decodes() -> tuple[IntArray, IntArray]:
        number = upto(min(DECODE_KNOTS[-1], capacity_tokens // 32))
        return number, upto(np.minimum(MAX_CONTEXT, capacity_tokens // number), least=32)

    prompt = Batches(*chunks(BATCH_KNOTS[-1]), zero, zero)
    decode = Batches(zero, zero, zero, *decodes())
    number, context = decodes()
    mixed = Batches(*chunks(BATCH_KNOTS[-1] - number), number, context)
    return Drawn(prompt, decode, mixed)


def fit_composed(drawn: Drawn, seconds: Sequence[FloatArray]) -> LatencyLaw:
    """The law with the least relative squares, its coefficients ≥ 0 and its functions monotone.

    Args:
        drawn: batches.
        seconds: their times, kind by kind, each (num_batches,).
    """
    prompt_s, decode_s, mixed_s = seconds
    decodes = drawn.decode.features[:, 4:].astype(np.float64)
    decode_points, (decode_context_s,) = _relative_least_squares(
        DECODE_KNOTS, decodes[:, 0], decodes[:, 1:], decode_s, np.zeros(1)
    )
    prompts = np.concatenate([drawn.prompt.features, drawn.mixed.features]).astype(np.float64)
    prompts[:, 2] /= 2  # pairs are doubled, to stay integer
    batch_points, coefficients = _relative_least_squares(
        BATCH_KNOTS,
        prompts[:, 0] + prompts[:, 4],
        prompts[:, 1:],
        np.concatenate([prompt_s, mixed_s]),
        np.array([0.0, 0.0, 0.0, 0.0, decode_context_s]),
    )
    per_prompt_s, attention_s, prefill_context_s, mixed_decode_s, mixed_context_s = coefficients
    batch_points = _above_decodes(batch_points, decode_points, per_prompt_s, mixed_decode_s)
    least_s = least_mixed_decode_s(decode_points, batch_points, per_prompt_s) * (1 + 1e-6)
    return LatencyLaw(
        decode_points=decode_points,
        batch_points=batch_points,
        decode_context_s=decode_context_s,
        mixed_context_s=mixed_context_s,
        mixed_decode_s=max(mixed_decode_s, rounded(least_s)),
        attention_s=attention_s,
        per_prompt_s=per_prompt_s,
        prefill_context_s=prefill_context_s,
    )


def _above_decodes(batch_points: Points, decode_points: Points, per_prompt_s: float, mixed_decode_s: float) -> Points:
    """H_p raised, where it is a little too low, to what as many decodes alone take, where H_d is known.

    Or the little would be made up for by ``mixed_decode_s``, many times over in large batches.
    """
    places, seconds = np.array(decode_points).T
    alone_s = seconds - per_prompt_s - mixed_decode_s * places
    numbers = np.arange(1, places[-1] + 1)
    least_s = np.maximum.accumulate(np.interp(numbers, places, alone_s))  # (most decodes,)
    return tuple(
        (tokens, max(batch_s, rounded(float(least_s[min(tokens, len(least_s)) - 1]))))
        for tokens, batch_s in batch_points
    )


def _relative_least_squares(
    knots: tuple[int, ...], places: FloatArray, features: FloatArray, seconds: FloatArray, least: FloatArray
) -> tuple[Points, tuple[float, ...]]:
    """A monotone function of ``places`` through ``knots``, and coefficients of ``features``, at least ``least``."""
    from scipy.optimize import nnls

    hats = np.array([np.interp(places, knots, unit) for unit in np.eye(len(knots))]).T
    increments = hats @ np.tril(np.ones((len(knots), len(knots))))
    scale = features.max(axis=0)
    design = np.column_stack([increments, features / scale]) / seconds[:, None]
    solution, _ = nnls(design, 1 - features @ least / seconds)
    values = np.cumsum(solution[: len(knots)])
    coefficients = least + solution[len(knots) :] / scale
    return (
        tuple((knot, rounded(float(value))) for knot, value in zip(knots, values, strict=True)),
        tuple(rounded(float(value)) for value in coefficients),
    )


def error_of(law: LatencyLaw, times: Composition, drawn: Drawn) -> FitError:
    """|law / composed − 1| over the batches of each kind."""
    row, figures = law.packed(), dict[str, float]()
    for kind, batches in drawn._asdict().items():
        predicted = [iteration_s(row, *features) for features in batches.features.tolist()]
        errors = np.abs(predicted / times(batches) - 1)
        figures |= {
            f"{kind}_mean": errors.mean(),
            f"{kind}_p95": np.quantile(errors, 0.95),
            f"{kind}_max": errors.max(),
        }
    return FitError(**{name: round(float(figure), 5) for name, figure in figures.items()})


def _valid_range(drawn: Drawn) -> ValidRange:
    def ends(values: IntArray) -> tuple[int, int]:
        return int(values.min()), int(values.max())

    return ValidRange(
        prompt_tokens=ends(drawn.prompt.chunk),
        batch_tokens=ends(drawn.prompt.prompt_tokens),
        decodes=ends(drawn.decode.decodes),
        decode_context_tokens=ends(drawn.decode.features[:, 5]),
    )


def _assumptions(machine: MachineSpec) -> tuple[str, ...]:
    return (
        *([machine.note] if machine.note else []),
        "composed, never run as a whole: kernels measured one by one and added, so host_s = 0; the error is the law's"
        " against the composed times, not against a machine",
        f"uncertainty: refits with each kernel's times off by a common factor, {KERNEL_SPREAD:g} in log, declared:"
        " other versions, clocks and caches, interpolation",
        "no mixed batches and no chunks with context were measured: attention of prompts and of decodes is added, a"
        " chunk takes what a prompt with as many (query, key) pairs does",
        "beyond the sizes of the tables a kernel's time grows in proportion",
        "weights and caches are never read faster than the memory's bandwidth, though the tables' own may have been"
        " warm in the cache",
        f"norms, rotation, cache writes, activation: {LEAST_KERNEL_S * 1e6:g} µs each and their bytes at full memory"
        " bandwidth, declared",
        *declared_assumptions(machine),
        f"the group has its share of a machine of {machine.gpus} GPUs in power, cost and link",
    )

"""Compose the hardware profiles that ship from operator tables, compare them with measured ones, test the tables.

    python experiments/compose_profiles.py ../shared/data/operators
    python experiments/compose_profiles.py --compare
    python experiments/compose_profiles.py ../shared/data/operators --leave-out

The tables are those of aiconfigurator (https://github.com/ai-dynamo/aiconfigurator, Apache-2.0). Every model is
composed for the smallest group of each GPU that leaves room for a useful KV-cache, and for twice that group.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Column, Table

from splitgym.hardware import load_profile, profile_name
from splitgym.hardware.compose_fit import compose_profile
from splitgym.hardware.models import load_facts
from splitgym.hardware.operators import Surface, read_operators

PROFILES = Path(__file__).resolve().parents[1] / "splitgym" / "hardware" / "profiles"
GPUS = ("a100-sxm", "h100-sxm", "h200-sxm", "b200-sxm", "l40s")
GROUPS = (1, 2, 4, 8)
LEAST_CAPACITY = 65_536
"""KV tokens below which a group is not worth its GPUs."""

COMPARED = ("llama2-70b", "bloom-176b")
PROMPTS = (128, 512, 1024, 2048, 4096, 8192)
DECODES = (1, 8, 16, 32, 64)
DECODE_CONTEXT = 576
"""Context of each decode: the Splitwise profile sweeps the batch at prompts of 512, with 128 tokens of output."""


def groups(model: str, gpu: str) -> list[int]:
    """The smallest useful group and twice it, as far as a machine goes."""
    facts = load_facts()
    spec, machine = facts.model(model), facts.machine(gpu)
    useful = [t for t in GROUPS if spec.kv_capacity_tokens(t * machine.hbm_bytes_per_gpu) >= LEAST_CAPACITY]
    return useful[:2]


def compose(operators: Path, out: Path) -> None:
    """Write every profile and print the errors of its law."""
    table = Table(
        Column("profile", no_wrap=True), "prompt mean %", "max %", "decode mean %", "max %", "KV capacity, tokens"
    )
    for model in (shape.name for shape in load_facts().shapes):
        for gpu in GPUS:
            for tensor_parallel in groups(model, gpu):
                profile = compose_profile(
                    model,
                    gpu,
                    tensor_parallel,
                    operators,
                    out / f"{profile_name(model, gpu, tensor_parallel)}.yaml",
                    source=f"aiconfigurator, vLLM kernels of {gpu}: composed from tables of single operators",
                    licence="Apache-2.0",
                )
                error = profile.error
                figures = (error.prompt_mean, error.prompt_max, error.decode_mean, error.decode_max)
                percents = (f"{100 * figure:.2f}" for figure in figures)
                table.add_row(profile.name, *percents, f"{profile.kv_capacity_tokens:,}")
    Console().print(table)


def compare() -> None:
    """Print composed against measured times on eight A100 and eight H100, as the docs show them."""
    for model in COMPARED:
        for measured_on, composed_on in (("a100-80gb", "a100-sxm"), ("h100-80gb", "h100-sxm")):
            measured, composed = load_profile(model, measured_on).law, load_profile(model, composed_on).law
            print(f"\n{model}, 8 x {measured_on}\n\n| iteration | measured 2023, ms | composed, ms | ratio |")
            print("|---|---:|---:|---:|")
            rows = [(f"prompt, {n} tokens", measured.prompt_s(n), composed.prompt_s(n)) for n in PROMPTS]
            contexts = [(n, n * DECODE_CONTEXT) for n in DECODES]
            rows += [(f"decode, batch {n}", measured.decode_s(n, c), composed.decode_s(n, c)) for n, c in contexts]
            for name, then_s, now_s in rows:
                print(f"| {name} | {1000 * then_s:.1f} | {1000 * now_s:.1f} | {now_s / then_s:.2f} |")


def leave_out(operators: Path) -> None:
    """Print how far interpolation is off for a width taken out of the tables, and how much smoothing moves."""
    table = Table("GPU", "interpolated width: mean %", "95th %", "smoothing over tokens: mean %", "95th %")
    for gpu in GPUS:
        widths, depths, tokens = (full := read_operators(operators, gpu).gemms()).axes
        large = [place for place, size in enumerate(widths) if 1024 <= size <= 16_384 and size in depths]
        interpolated, smoothed = [], []
        for k in large:
            for n in large:
                measured, others = full.seconds[n, k], np.arange(len(widths)) != n
                guessed = Surface((widths[others],), full.seconds[others, k])([widths[n]])[0]
                smooth = Surface((tokens,), measured).monotone.seconds
                interpolated.append(np.abs(Surface((tokens,), guessed).monotone.seconds / smooth - 1))
                smoothed.append(np.abs(smooth / measured - 1))
        figures = [
            of(errors) for errors in (interpolated, smoothed) for of in (np.mean, lambda x: np.quantile(x, 0.95))
        ]
        table.add_row(gpu, *(f"{100 * figure:.1f}" for figure in figures))
    Console().print(table)


def main() -> None:
    """Compose, or one of the checks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("operators", type=Path, nargs="?", help="folder of the operator tables")
    parser.add_argument("--out", type=Path, default=PROFILES, help="folder for the profiles")
    parser.add_argument("--compare", action="store_true", help="compare shipped profiles instead")
    parser.add_argument("--leave-out", action="store_true", help="tell the tables' interpolation error instead")
    args = parser.parse_args()
    if args.compare:
        compare()
    elif args.operators is None:
        parser.error("give the folder of the operator tables, or --compare")
    elif args.leave_out:
        leave_out(args.operators)
    else:
        compose(args.operators, args.out)


if __name__ == "__main__":
    main()

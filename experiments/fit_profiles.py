"""Fit every set of the published Splitwise profile and every layer profile, and write the profiles that ship.

    python experiments/fit_profiles.py ../shared/data/splitwise/perf_model.csv ../shared/data/vllm-runs/*

The CSV is the data/perf_model.csv of SplitwiseSim (https://github.com/Mutinifni/splitwise-sim, MIT); the folders are
profiles of vLLM's layers taken for LLMServingSim 2 (https://github.com/casys-kaist/LLMServingSim, MIT).
"""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console
from rich.table import Table

from splitgym.hardware import HardwareProfile, fit_layer_profile, fit_profile, profile_name
from splitgym.hardware.measurements import read_runs

PROFILES = Path(__file__).resolve().parents[1] / "splitgym" / "hardware" / "profiles"

T_CPU_S = 0.00165
"""The host's time in an iteration: fitted by experiments/fidelity.py --fit-t-cpu to one run of Llama-3.1-8B on an
RTX PRO 6000 (300 requests, vLLM 0.19), and carried to the other layer profiles unchanged."""


def fit_csv(path: Path, out: Path) -> list[HardwareProfile]:
    """Fit every set of a CSV of whole prompts and tokens."""
    return [
        fit_profile(
            path,
            out / f"{profile_name(model, hardware, tensor_parallel)}.yaml",
            model=model,
            hardware=hardware,
            tensor_parallel=tensor_parallel,
            source="SplitwiseSim, data/perf_model.csv: profiled runs of 2023 (Patel et al., ISCA 2024)",
            licence="MIT",
        )
        for model, hardware, tensor_parallel in sorted({run.key for run in read_runs(path)})
    ]


def main() -> None:
    """Fit, write, and print the errors."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("measured", type=Path, nargs="+", help="CSV of profiled runs, or folder of a layer profile")
    parser.add_argument("--out", type=Path, default=PROFILES, help="folder for the profiles")
    args = parser.parse_args()

    table = Table("profile", "prompt mean %", "max %", "decode mean %", "max %", "mixed mean %", "KV capacity, tokens")
    for path in args.measured:
        if path.is_dir():
            source = f"LLMServingSim 2, profile of vLLM 0.19's layers of 2026 ({path.name})"
            profiles = [fit_layer_profile(path, host_s=T_CPU_S, source=source, licence="MIT")]
            profiles[0].write(args.out / f"{profiles[0].name}.yaml")
        else:
            profiles = fit_csv(path, args.out)
        for profile in profiles:
            error = profile.error
            figures = (error.prompt_mean, error.prompt_max, error.decode_mean, error.decode_max, error.mixed_mean)
            cells = ("" if figure is None else f"{100 * figure:.2f}" for figure in figures)
            table.add_row(profile.name, *cells, f"{profile.kv_capacity_tokens:,}")
    Console().print(table)


if __name__ == "__main__":
    main()

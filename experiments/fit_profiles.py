"""Fit every set of the published Splitwise profile and write the hardware profiles that ship.

    python experiments/fit_profiles.py ../shared/data/splitwise/perf_model.csv

The CSV is the data/perf_model.csv of SplitwiseSim (https://github.com/Mutinifni/splitwise-sim, MIT).
"""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console
from rich.table import Table

from splitgym.hardware import fit_profile, profile_name
from splitgym.hardware.measurements import read_runs

PROFILES = Path(__file__).resolve().parents[1] / "splitgym" / "hardware" / "profiles"


def main() -> None:
    """Fit, write, and print the errors."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("csv", type=Path, help="profiled runs")
    parser.add_argument("--out", type=Path, default=PROFILES, help="folder for the profiles")
    args = parser.parse_args()

    table = Table("profile", "prompt mean %", "max %", "decode mean %", "max %", "KV capacity, tokens")
    for model, hardware, tensor_parallel in sorted({run.key for run in read_runs(args.csv)}):
        profile = fit_profile(
            args.csv,
            args.out / f"{profile_name(model, hardware, tensor_parallel)}.yaml",
            model=model,
            hardware=hardware,
            tensor_parallel=tensor_parallel,
            source="SplitwiseSim, data/perf_model.csv: profiled runs of 2023 (Patel et al., ISCA 2024)",
            licence="MIT",
        )
        error = profile.error
        figures = (error.prompt_mean, error.prompt_max, error.decode_mean, error.decode_max)
        table.add_row(profile.name, *(f"{100 * figure:.2f}" for figure in figures), f"{profile.kv_capacity_tokens:,}")
    Console().print(table)


if __name__ == "__main__":
    main()

"""Derive the figures that ship as splitgym/workload/figures from the Azure 2023 traces.

    python experiments/derive_workload_figures.py FOLDER_WITH_THE_CSVS --out splitgym/workload/figures

The traces are the Azure Public Dataset's AzureLLMInferenceTrace_code.csv and AzureLLMInferenceTrace_conv.csv
(CC-BY 4.0). Only quantiles and moments are written, no request.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml
from scipy.optimize import nnls

from splitgym.workload import Requests, TabulatedLengths, read_trace

CITATION = "Patel et al., Splitwise: Efficient Generative LLM Inference Using Phase Splitting, ISCA 2024"

FloatArray = npt.NDArray[np.float64]

LEVELS = np.array([0, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.999, 1])
PROMPT_EDGES = np.array([0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1])
SILENCE_S = 5.0  # a longer gap between two requests of the coding trace separates two bursts
WINDOWS_S = np.array([0.25, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 240])


def swings(arrival_s: FloatArray, length_s: float, windows_s: FloatArray, correlation_s: list[float]) -> list[Any]:
    """Swings with the given correlation times whose counts vary over windows as the measured ones do.

    The variance of an Ornstein-Uhlenbeck rate's mean over a window w is v · 2(x − 1 + e^−x)/x², where
    x = w/correlation_s. What it is over the whole trace cannot be seen in the trace and is taken off.
    """

    def shape(window_s: FloatArray | float, memory_s: float) -> Any:
        x = np.asarray(window_s) / memory_s
        return 2 * (x - 1 + np.exp(-x)) / x**2

    measured = []
    for window_s in windows_s:
        counts = np.histogram(arrival_s, np.arange(0, length_s, window_s))[0]
        measured.append((counts.var() - counts.mean()) / counts.mean() ** 2)
    basis = np.column_stack([shape(windows_s, memory_s) - shape(length_s, memory_s) for memory_s in correlation_s])
    weight = 1 / np.array(measured)
    variances = nnls(basis * weight[:, None], np.array(measured) * weight)[0]
    return [
        {"relative_sd": round(float(np.sqrt(variance)), 3), "correlation_s": memory_s}
        for variance, memory_s in zip(variances, correlation_s, strict=True)
    ]


def conversation_arrivals(arrival_s: FloatArray) -> dict[str, Any]:
    """Poisson with a rate that swings slowly, and a little at once."""
    return {"process": "swinging", "swings": swings(arrival_s, arrival_s[-1], WINDOWS_S, [1.0, 1200.0])}


def coding_arrivals(arrival_s: FloatArray) -> dict[str, Any]:
    """Bursts and silences; swings fitted to the bursts laid end to end."""
    gaps_s = np.diff(arrival_s)
    cuts = np.flatnonzero(gaps_s > SILENCE_S)
    begins, ends = np.r_[0, cuts + 1], np.r_[cuts, len(arrival_s) - 1]
    on_s, off_s = arrival_s[ends] - arrival_s[begins], gaps_s[cuts]
    off_variance = 2 * np.log(off_s.mean() / np.median(off_s))  # of a lognormal with this mean and median
    joined_s = np.concatenate([[0.0], np.cumsum(np.where(gaps_s > SILENCE_S, on_s.sum() / len(arrival_s), gaps_s))])
    return {
        "process": "on-off",
        "burst": {"mean_s": round(float(on_s.mean()), 2), "cv": round(float(on_s.std() / on_s.mean()), 3)},
        "silence": {
            "mean_s": round(float(off_s.mean()), 2),
            "cv": round(float(np.sqrt(np.expm1(off_variance))), 3),
            "law": "lognormal",
        },
        "swings": swings(joined_s, joined_s[-1], WINDOWS_S[WINDOWS_S <= 20], [1.0, 10.0]),
    }


def figures(name: str, file: str, description: str, requests: Requests, arrivals: dict[str, Any]) -> dict[str, Any]:
    """The content of one file of figures."""
    lengths = TabulatedLengths.fit(requests.prompt_tokens, requests.output_tokens, LEVELS, PROMPT_EDGES)
    return {
        "name": name,
        "description": description,
        "source": f"Azure Public Dataset, {file}, 2023; derived quantiles and moments",
        "licence": "CC-BY-4.0",
        "citation": CITATION,
        "derived_by": "experiments/derive_workload_figures.py",
        "rate_rps": round(len(requests) / float(requests.arrival_s[-1]), 4),
        "arrivals": arrivals,
        "lengths": lengths.model_dump(),
    }


def main() -> None:
    """Read both traces, write both files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the folder with the two CSVs")
    parser.add_argument("--out", type=Path, required=True, help="the folder to write the YAML files to")
    args = parser.parse_args()
    todo = [
        ("azure-coding", "AzureLLMInferenceTrace_code.csv", coding_arrivals,
         "code completion: prompts of 1,469 and outputs of 13 tokens (medians), in bursts, 2.6 a second"),
        ("azure-conversation", "AzureLLMInferenceTrace_conv.csv", conversation_arrivals,
         "chat: prompts of 1,020 and outputs of 129 tokens (medians), a slowly swinging rate, 5.5 a second"),
    ]  # fmt: skip
    for name, file, arrivals_of, description in todo:
        requests = read_trace(args.folder / file)
        content = figures(name, file, description, requests, arrivals_of(requests.arrival_s))
        path = args.out / f"{name}.yaml"
        path.write_text(yaml.safe_dump(content, sort_keys=False, default_flow_style=None, width=118))
        print(f"{path}: {len(requests)} requests, arrivals {content['arrivals']}")


if __name__ == "__main__":
    main()

"""How far the simulator is from a real engine: a run of vLLM replayed, request by request.

    python experiments/fidelity.py
    python experiments/fidelity.py --profile DIR --run DIR/requests.jsonl [--t-cpu 0.00165 | --fit-t-cpu] [--json]

DIR is laid out as ../shared/data/vllm-runs/*/: a profile of layers, and the settings of the run (run_meta.json). The
law is fitted to the profile alone; the one scalar that a run tells is t_cpu, the host's time in an iteration. Without
arguments the tables of docs/fidelity.md are printed.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from splitgym.cli.output import wide_console
from splitgym.errors import SplitgymError
from splitgym.hardware import HardwareProfile, fit_layer_profile, list_profiles, load_profile
from splitgym.hardware.layer_engine import read_engine_settings
from splitgym.learn.images import BLUE, VERMILLION, png
from splitgym.policies import make_policy
from splitgym.sim import Cluster, Machine, Scenario, VllmBatching, run
from splitgym.view import MIXED
from splitgym.workload import Requests

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

ROOT = Path(__file__).resolve().parents[1]
RUN = ROOT.parent / "shared" / "data" / "vllm-runs" / "rtxpro6000-llama-3.1-8b-tp1"
PICTURE = ROOT / "docs" / "images" / "fidelity.png"

BARS = {"ttft": 0.05, "tpot": 0.02, "e2e": 0.03}
"""Relative errors aimed at; fitting t_cpu makes the largest error, measured in these, small."""

STATISTICS: dict[str, Callable[[FloatArray], float]] = {
    "mean": lambda values: float(np.mean(values)),
    "p50": lambda values: float(np.quantile(values, 0.5)),
    "p90": lambda values: float(np.quantile(values, 0.9)),
}


@dataclasses.dataclass(frozen=True)
class Run:
    """A run's requests; times in seconds from the first one's arrival, arrays (num_requests,)."""

    arrival_s: FloatArray  # when the engine's scheduler took the request in
    prompt_tokens: IntArray
    output_tokens: IntArray
    first_token_s: FloatArray
    last_token_s: FloatArray

    def figures(self) -> dict[str, FloatArray]:
        """TTFT and E2E in seconds, and the mean time of an output token after the first where there is one."""
        more = self.output_tokens > 1
        decoding_s = (self.last_token_s - self.first_token_s)[more]
        return {
            "ttft": self.first_token_s - self.arrival_s,
            "tpot": decoding_s / (self.output_tokens[more] - 1),
            "e2e": self.last_token_s - self.arrival_s,
        }


def read_run(path: Path) -> Run:
    """Read requests.jsonl. All its times are the engine's own (``queued_ts`` and on): one clock.

    Raises:
        SplitgymError: if the file is missing, or a line is not a finished request.
    """
    names = ("queued_ts", "input_toks", "output_toks", "first_token_ts", "last_token_ts")
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SplitgymError(f"--run {path}: cannot be read ({error}); give a file of one request a line") from None
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            request = json.loads(line)
            rows.append([float(request[name]) for name in names])
        except (ValueError, KeyError, TypeError) as error:
            raise SplitgymError(
                f"{path}:{number}: no finished request ({error!r}); it needs {', '.join(names)}"
            ) from None
    if not rows:
        raise SplitgymError(f"--run {path}: no requests in it; give one a line")
    table = np.array(sorted(rows))
    queued, first, last = (table[:, column] - table[0, 0] for column in (0, 3, 4))
    return Run(queued, table[:, 1].astype(np.int64), table[:, 2].astype(np.int64), first, last)


def simulated(profile: HardwareProfile, folder: Path, measured: Run, t_cpu_s: float) -> Run:
    """The same arrivals and lengths through one simulated machine that does both phases."""
    settings = read_engine_settings(folder)
    if settings is None:
        raise SplitgymError(f"{folder / 'run_meta.json'}: no such file; a replay needs the engine's settings")
    arguments, cache = settings.engine_kwargs, settings.kv_cache
    batching = VllmBatching(
        arguments.max_num_seqs,
        arguments.max_num_batched_tokens,
        VllmBatching.block_size if cache is None else cache.block_size,
        prefix_caching=cache is None or cache.enable_prefix_caching,  # prompts have nothing known in common
    )
    profile = dataclasses.replace(profile, law=dataclasses.replace(profile.law, host_s=t_cpu_s))
    cluster = Cluster((Machine(MIXED, profile),), profile.model, baseline=profile, batching=batching)
    requests = Requests(
        measured.arrival_s, measured.prompt_tokens, measured.output_tokens, measured.output_tokens.astype(np.float64)
    )
    rows = run(Scenario(cluster, requests, tick_s=None), make_policy("jsq-tokens")).rows
    return dataclasses.replace(measured, first_token_s=rows.first_token_s, last_token_s=rows.finish_s)


def errors(measured: Run, ours: Run) -> dict[str, float]:
    """Simulated / measured − 1 of each statistic of each figure."""
    theirs = measured.figures()
    return {
        f"{name}_{label}": statistic(values) / statistic(theirs[name]) - 1
        for name, values in ours.figures().items()
        for label, statistic in STATISTICS.items()
    }


def fitted_t_cpu_s(profile: HardwareProfile, folder: Path, measured: Run) -> float:
    """The t_cpu with the smallest largest error, in `BARS`: by half milliseconds, then by a twentieth of one."""

    def worst(t_cpu_s: float) -> float:
        found = errors(measured, simulated(profile, folder, measured, t_cpu_s))
        return max(abs(error) / BARS[name.split("_")[0]] for name, error in found.items())

    coarse_s = min((0.5e-3 * step for step in range(11)), key=worst)
    fine_s = min((max(coarse_s + 0.05e-3 * step, 0.0) for step in range(-9, 10)), key=worst)
    return round(fine_s, 6)


def draw(measured: Run, ours: Run, title: str) -> Figure:
    """Cumulative distributions of TTFT, time per output token and E2E, measured and simulated."""
    figure = Figure(figsize=(9.2, 3.4), dpi=140, layout="constrained")
    panels = (("ttft", "TTFT, s", 1.0), ("tpot", "time per output token, ms", 1e3), ("e2e", "E2E, s", 1.0))
    runs = (("measured", measured, VERMILLION, "-"), ("simulated", ours, BLUE, "--"))
    for axes, (name, label, factor) in zip(figure.subplots(1, 3, sharey=True), panels, strict=True):
        for who, one, color, style in runs:
            values = factor * np.sort(one.figures()[name])
            shares = 100 * np.arange(1, len(values) + 1) / len(values)
            axes.plot(values, shares, color=color, linestyle=style, linewidth=1.8, label=who, drawstyle="steps-post")
        axes.set_xlabel(label)
        axes.set_ylim(0, 100)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("requests at or below, %")
    figure.axes[0].legend(frameon=False)
    figure.suptitle(title, fontsize=12, x=0.01, ha="left")
    return figure


def print_fits(console: Console) -> None:
    """Every shipped profile's errors."""
    table = Table(title="error of each law, %", box=SIMPLE)
    table.add_column("profile", no_wrap=True)
    for name in (f"{kind} {what}" for kind in ("prompt", "decode", "mixed") for what in ("mean", "p95", "max")):
        table.add_column(name, justify="right")
    for key in list_profiles():
        profile = load_profile(*key)
        cells = []
        for kind in ("prompt", "decode", "mixed"):
            for what in ("mean", "p95", "max"):
                value = getattr(profile.error, f"{kind}_{what}")
                cells.append("" if value is None else f"{100 * value:.1f}")
        table.add_row(profile.name, *cells)
    console.print(table)


def print_errors(console: Console, profile: HardwareProfile, measured: Run, ours: Run, t_cpu_s: float) -> None:
    """The run, measured and simulated."""
    table = Table("", "measured", "simulated", "error %", title=f"{profile.name}, t_cpu {1e3 * t_cpu_s:.2f} ms")
    found, theirs, own = errors(measured, ours), measured.figures(), ours.figures()
    for name in BARS:
        unit, factor = ("ms", 1e3) if name == "tpot" else ("s", 1.0)
        for label, statistic in STATISTICS.items():
            cells = (f"{factor * statistic(figures[name]):.2f}" for figures in (theirs, own))
            table.add_row(f"{name} {label}, {unit}", *cells, f"{100 * found[f'{name}_{label}']:+.1f}")
    console.print(table)


def main() -> None:
    """Fit, replay, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", type=Path, help="folder of a layer profile")
    parser.add_argument("--run", type=Path, help="requests.jsonl of a run")
    host = parser.add_mutually_exclusive_group()
    host.add_argument("--t-cpu", type=float, metavar="S", help="seconds; default: the shipped profiles'")
    host.add_argument("--fit-t-cpu", action="store_true", help="fit it to this run")
    parser.add_argument("--json", action="store_true", help="print the relative errors as JSON")
    parser.add_argument("--picture", type=Path, help="default: out/fidelity.png; without arguments, docs/images")
    args = parser.parse_args()
    if (args.profile is None) != (args.run is None):
        parser.error("--profile and --run go together")

    console = wide_console()
    folder, path = args.profile or RUN, args.run or RUN / "requests.jsonl"
    picture = args.picture or (PICTURE if args.profile is None else Path("out/fidelity.png"))
    try:
        if args.profile is None and not args.json:
            print_fits(console)
        measured = read_run(path)
        profile = fit_layer_profile(folder)
        if args.fit_t_cpu:
            t_cpu_s = fitted_t_cpu_s(profile, folder, measured)
        else:
            t_cpu_s = load_profile("llama3.1-8b", "rtxpro6000", 1).law.host_s if args.t_cpu is None else args.t_cpu
        ours = simulated(profile, folder, measured, t_cpu_s)
    except SplitgymError as error:
        parser.error(str(error))
    if args.json:
        print(json.dumps({**errors(measured, ours), "t_cpu_s": t_cpu_s}))
    else:
        print_errors(console, profile, measured, ours, t_cpu_s)
        print(picture)
    picture.parent.mkdir(parents=True, exist_ok=True)
    picture.write_bytes(png(draw(measured, ours, f"{profile.name}: {len(measured.arrival_s)} requests, vLLM"))[0])


if __name__ == "__main__":
    main()

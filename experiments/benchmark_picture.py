"""The picture of `experiments/benchmark.py`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from splitgym.learn.images import BLUE, GREEN, ORANGE, SKY, VERMILLION, png


def draw_scaling(found: Mapping[str, Any], path: Path, *, usual: int) -> None:
    """How it scales with machines, and memory with requests; ``usual``: the number of machines elsewhere."""

    def line(axes: Any, measurement: str, x: str, y: str, label: str, color: str, style: str, **asked: Any) -> None:
        rows = [row for row in found[measurement] if asked.items() <= row.items()]
        axes.plot([row[x] for row in rows], [row[y] for row in rows], f"o{style}", color=color, ms=4, label=label)

    sizes = sorted({row["machines"] for row in found["simulation"]})
    figure = Figure(figsize=(9.2, 6.6), dpi=140, layout="constrained")
    simulated, decided, trained, memory = figure.subplots(2, 2).flat
    x, y = "machines", "requests_per_s"
    for count, color in ((10_000, SKY), (100_000, BLUE), (1_000_000, GREEN)):
        line(simulated, "simulation", x, y, f"compiled, {count:,} requests", color, "-", requests=count)
    line(simulated, "simulation", x, f"reference_{y}", "reference", ORANGE, "-", requests=100_000)
    for kind, num_envs, color, style in (
        ("routing", 64, BLUE, "-"),
        ("joint", 64, ORANGE, "--"),
        ("repurposing", 64, VERMILLION, "-"),
        ("routing", 1, BLUE, ":"),
    ):
        asked: dict[str, Any] = {"kind": kind, "num_envs": num_envs}
        line(decided, "decisions", x, "decisions_per_s", f"{kind}, {num_envs}", color, style, **asked)
    for network, color in {"mlp": BLUE, "equivariant": VERMILLION}.items():
        for y, style, environment in (("steps_per_s", "-", ""), ("free_steps_per_s", ":", ", free environment")):
            asked = {"network": network, "algorithm": "maskable-ppo"}
            line(trained, "training", x, y, network + environment, color, style, **asked)
    for count, color, style in ((usual, BLUE, "-"), (1000, ORANGE, "--")):
        line(memory, "simulation", "requests", "peak_rss_mb", f"{count:,} machines", color, style, machines=count)

    panels = (
        (simulated, "Requests simulated per second", "center left"),
        (decided, "Decisions per second: kind, environments", "center left"),
        (trained, "Training steps per second: MaskablePPO", "lower left"),
        (memory, "Peak memory, libraries included, MB", "lower right"),
    )
    for axes, title, place in panels:
        axes.set_title(title, fontsize=10, fontweight="bold", loc="left")
        axes.legend(fontsize=8, frameon=False, loc=place)
        axes.set_xscale("log")
        if axes is memory:
            axes.set_xlabel("requests", fontsize=9)
            axes.set_ylim(bottom=0)
        else:
            axes.set_yscale("log")
            axes.set_xlabel("machines", fontsize=9)
            axes.set_xticks(sizes, labels=[f"{count:,}" for count in sizes])
            axes.minorticks_off()
            axes.margins(y=0.15)
        axes.yaxis.set_major_formatter("{x:,.0f}")
        axes.grid(color="#e8e8e8", linewidth=0.7)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
    path.write_bytes(png(figure)[0])

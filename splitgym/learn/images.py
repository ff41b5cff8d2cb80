"""Pictures: latency distributions of several policies, and what each machine did when (a Gantt chart)."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PolyCollection
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from splitgym.learn.watch import Watched
from splitgym.sim.recorder import Slice
from splitgym.view import ROLES

FloatArray = npt.NDArray[np.float64]

# Okabe and Ito's palette, which the colour-blind can tell apart: https://jfly.uni-koeln.de/color/
BLUE, ORANGE, GREEN, VERMILLION = "#0072B2", "#E69F00", "#009E73", "#D55E00"
SKY, PURPLE, YELLOW, BLACK = "#56B4E9", "#CC79A7", "#F0E442", "#222222"
LINE_COLORS = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY, BLACK)
LINE_STYLES = ("-", "--", "-.", ":")
GREY, PALE = "#6b6b6b", "#d5d5d5"

TOKEN_SHADES = LinearSegmentedColormap.from_list("token phase", ["#cfe6f5", "#56B4E9", "#0072B2", "#003a5c"])
ACTIVITY_COLORS = {"prompt phase": VERMILLION, "both phases": ORANGE, "switching": "#444444", "down": "#bbbbbb"}

GANTT_WINDOW_S = 20.0
SHADES_ACROSS = 200  # how finely a token phase's batch is shown
WIDTH_IN = 9.2
DPI = 140


def latency_cdfs(watched: Mapping[str, Watched], title: str, *, highlight: str | None = None) -> Figure:
    """Cumulative distributions of TTFT, TBT and E2E.

    Args:
        watched: policy → its run.
        title: above all.
        highlight: the one policy that is drawn in colour, before the others in grey.
    """
    figure = Figure(figsize=(7.6, 4.3), dpi=DPI, layout="constrained")
    panels = (("TTFT", "ttft_s", "s", 1.0), ("TBT", "tbt_s", "ms", 1e3), ("E2E", "e2e_s", "s", 1.0))
    for axes, (label, attribute, unit, factor) in zip(figure.subplots(1, 3, sharey=True), panels, strict=True):
        for number, (name, run) in enumerate(watched.items()):
            values = factor * np.sort(getattr(run, attribute)[~np.isnan(getattr(run, attribute))])
            style: dict[str, Any] = {
                "color": LINE_COLORS[number % len(LINE_COLORS)],
                "linestyle": LINE_STYLES[number // len(LINE_COLORS) % len(LINE_STYLES)],
                "linewidth": 1.8,
            }
            if highlight is not None:
                style = {"color": BLUE, "linewidth": 2.4, "zorder": 3} if name == highlight else {"color": PALE}
            axes.plot(values, _shares(len(values)), drawstyle="steps-post", label=name, **style)
        _scale(axes)
        axes.set_ylim(0, 100)
        axes.set_title(label, fontsize=12, fontweight="bold")
        axes.set_xlabel(f"{label}, {unit}", fontsize=11)
        for percent in (50, 90, 99):
            axes.axhline(percent, color=GREY, linewidth=0.6, linestyle=(0, (2, 3)), zorder=0)
        _plain(axes)
    figure.axes[0].set_ylabel("requests at or below, %", fontsize=11)
    figure.axes[0].set_yticks([0, 25, 50, 75, 90, 99], labels=["0", "25", "50", "75", "90", "99"])
    handles, labels = figure.axes[0].get_legend_handles_labels()
    if highlight is not None:
        others = next((i for i, name in enumerate(labels) if name != highlight), None)
        chosen = [labels.index(highlight)] + ([] if others is None else [others])
        handles = [handles[index] for index in chosen]
        labels = [highlight, "the others"][: len(chosen)]
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 4), frameon=False, fontsize=10)
    figure.suptitle(title, fontsize=13, x=0.01, ha="left")
    return figure


def gantt(run: Watched, title: str, *, window_s: tuple[float, float] | None = None) -> Figure:
    """What each machine did when, machines grouped by home role; the darker a token phase, the larger its batch.

    Args:
        run: a watched run.
        title: above all.
        window_s: stretch of simulated time; the last `GANTT_WINDOW_S` before the horizon for ``None``.
    """
    start_s, end_s = window_s or (max(run.counted_s[1] - GANTT_WINDOW_S, 0.0), run.counted_s[1])
    order = sorted(range(len(run.roles)), key=lambda machine: (ROLES.index(run.roles[machine]), machine))
    row_of = {machine: row for row, machine in enumerate(order)}
    seen = [slice_ for slice_ in run.slices if slice_.end_s > start_s and slice_.start_s < end_s]
    boxes, batches, colors = [], [], []
    for slice_ in seen:
        left_s, right_s = max(slice_.start_s, start_s), min(slice_.end_s, end_s)
        count = 1
        if slice_.activity == "token phase":  # its batch changes on the way
            count = max(round((right_s - left_s) / (end_s - start_s) * SHADES_ACROSS), 1)
        edges_s = np.linspace(left_s, right_s, count + 1)
        decodes = run.decodes(slice_.machine, (edges_s[:-1] + edges_s[1:]) / 2)
        row = row_of[slice_.machine]
        for left, right, batch in zip(edges_s[:-1], edges_s[1:], decodes, strict=True):
            boxes.append([(left, row - 0.42), (left, row + 0.42), (right, row + 0.42), (right, row - 0.42)])
            batches.append(batch if slice_.activity == "token phase" else 0)
            colors.append(ACTIVITY_COLORS.get(slice_.activity, ""))
    largest = int(max(batches, default=0)) or 1
    faces = [color or TOKEN_SHADES(batch / largest) for color, batch in zip(colors, batches, strict=True)]

    row_height = 0.23 if len(order) <= 24 else 0.15
    figure = Figure(figsize=(WIDTH_IN, max(row_height * len(order), 1.2) + 1.5), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    axes.add_collection(PolyCollection(boxes, facecolors=faces, edgecolors="none", antialiaseds=False))

    _group_by_role(axes, run, order)
    shares = _busy_shares(seen, len(order), start_s, end_s)
    size = 9 if len(order) <= 24 else 7
    beside: dict[str, Any] = {"transform": axes.get_yaxis_transform(), "va": "center", "fontsize": size}
    for machine, row in row_of.items():
        axes.text(1.008, row, f"{100 * shares[machine]:.0f} %", **beside)
    axes.text(1.008, -1.1, "busy", color=GREY, **beside)
    axes.set_xlim(start_s, end_s)
    axes.set_ylim(len(order) - 0.4, -0.6)
    axes.set_yticks(range(len(order)), labels=[f"{run.hardware[m].split('-')[0]}  {m}" for m in order], fontsize=size)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("simulated time, s", fontsize=11)
    _plain(axes)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")

    present = {slice_.activity for slice_ in seen}
    patches = [Patch(color=color, label=name) for name, color in ACTIVITY_COLORS.items() if name in present]
    if "token phase" in present:
        patches.append(Patch(color=TOKEN_SHADES(1 / largest), label="token phase, 1 request"))
        patches.append(Patch(color=TOKEN_SHADES(1.0), label=f"{largest} requests"))
    figure.legend(handles=patches, loc="outside lower center", ncols=len(patches) or 1, frameon=False, fontsize=10)
    figure.suptitle(title, fontsize=13, x=0.01, ha="left")
    return figure


def png(figure: Figure) -> tuple[bytes, int, int]:
    """The picture as PNG, its width and height in pixels. Equal figures give equal bytes."""
    canvas: Any = FigureCanvasAgg(figure)
    buffer = io.BytesIO()
    canvas.print_png(buffer, metadata={"Software": None})
    width, height = canvas.get_width_height()
    return buffer.getvalue(), width, height


def _group_by_role(axes: Any, run: Watched, order: Sequence[int]) -> None:
    """A line between pools, and each pool's name at the left edge."""
    first = 0
    for role in ROLES:
        count = sum(run.roles[machine] == role for machine in order)
        if not count:
            continue
        if first:
            axes.axhline(first - 0.5, color=BLACK, linewidth=1.0)
        axes.annotate(
            role,
            (0, first + (count - 1) / 2),
            xytext=(-62, 0),
            xycoords=axes.get_yaxis_transform(),
            textcoords="offset points",
            rotation=90,
            ha="center",
            va="center",
            fontsize=11,
            fontweight="bold",
        )
        first += count


def _busy_shares(slices: Sequence[Slice], num_machines: int, start_s: float, end_s: float) -> FloatArray:
    busy_s = np.zeros(num_machines)
    for slice_ in slices:
        if slice_.activity not in ("switching", "down"):
            busy_s[slice_.machine] += min(slice_.end_s, end_s) - max(slice_.start_s, start_s)
    return busy_s / (end_s - start_s)


def _scale(axes: Any) -> None:
    """Logarithmic where the figures span more than a decade."""
    low, high = axes.dataLim.intervalx
    if low > 0 and high / low > 10:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter("{x:g}")


def _shares(count: int) -> FloatArray:
    return np.asarray(100 * np.arange(1, count + 1) / max(count, 1))


def _plain(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e8e8e8", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=9)

"""Pictures of a running cluster: a table for the terminal, an image with the machines now and the pools over time."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from splitgym.envs.history import History
from splitgym.errors import SplitgymError
from splitgym.sim.outside import MachineState
from splitgym.view import ROLES

COLOURS = {"prompt": "#2a6fbb", "token": "#d9822b", "mixed": "#5b9a4b"}
GREY = "#9a9a9a"
_SIZE_IN, _DPI = (10.0, 6.4), 100
_MAX_POINTS = 600  # of a line: more cannot be told apart
_BAR = 12  # characters


def as_text(title: str, history: History) -> str:
    """One line per machine, bars for its queue, batch and KV-cache."""
    machines = history.machines
    most_queued = max([4, *(machine.queued_prompts for machine in machines)])
    most_running = max([8, *(machine.running_prompts + machine.decodes for machine in machines)])
    lines = [
        _headline(title, history),
        f"{'':>4} {'role':<6} {'state':<9}  {'prompts waiting':<{_BAR + 5}} "
        f"{'batch: prompts + decodes':<{_BAR + 13}} {'KV-cache reserved':<{_BAR + 6}}",
    ]
    for index, machine in enumerate(machines):
        running = machine.running_prompts + machine.decodes
        kv_use = machine.kv_used_tokens / machine.kv_capacity_tokens
        batch = f"{machine.running_prompts}p + {machine.decodes}d"
        lines.append(
            f"{index:>4} {machine.role:<6} {machine.lifecycle:<9}  "
            f"{_bar(machine.queued_prompts / most_queued)} {machine.queued_prompts:>3}  "
            f"{_bar(running / most_running)} {batch:<11} {_bar(kv_use)} {kv_use:>5.1%}"
        )
    return "\n".join(lines) + "\n"


def as_image(title: str, history: History) -> npt.NDArray[np.uint8]:
    """The image, (height, width, 3): on the left every machine as it is, on the right pools, queues and KV over time.

    Raises:
        SplitgymError: without matplotlib.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise SplitgymError(
            "render_mode: 'rgb_array' needs matplotlib; pip install 'splitgym[learn]', or use 'ansi'"
        ) from None
    figure = Figure(figsize=_SIZE_IN, dpi=_DPI, layout="constrained")
    canvas: Any = FigureCanvasAgg(figure)
    figure.suptitle(_headline(title, history), fontsize=10, x=0.01, ha="left")
    axes = figure.subplots(3, 2, sharex="col", width_ratios=(1.15, 1))
    _draw_machines(axes[:, 0], history.machines)
    _draw_history(axes[:, 1], history)
    handles = [_patch(COLOURS[role], role) for role in ROLES] + [_patch(GREY, "draining or switching")]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _headline(title: str, history: History) -> str:
    meters = history.meters
    now = history.samples[-1]
    counts = {**now.machines, "changing": now.changing}
    pools = ", ".join(f"{count} {role}" for role, count in counts.items() if count)
    return (
        f"{title}    t = {meters.time_s:.2f} s    machines: {pools}    "
        f"requests: {meters.arrived} arrived, {meters.finished} finished"
    )


def _bar(share: float) -> str:
    eighths = round(min(max(share, 0.0), 1.0) * _BAR * 8)
    full, rest = divmod(eighths, 8)
    return ("█" * full + (" ▏▎▍▌▋▊▉"[rest] if rest else "")).ljust(_BAR, "·")


def _draw_machines(axes: Any, machines: list[MachineState]) -> None:
    indices = np.arange(len(machines))
    colours = [COLOURS[machine.role] if machine.lifecycle == "ready" else GREY for machine in machines]
    queued = np.array([machine.queued_prompts for machine in machines])
    prompts = np.array([machine.running_prompts for machine in machines])
    decodes = np.array([machine.decodes for machine in machines])
    kv_percent = np.array([100 * machine.kv_used_tokens / machine.kv_capacity_tokens for machine in machines])
    axes[0].set_title("each machine now", fontsize=10, loc="left")
    axes[0].bar(indices, prompts, color=colours)
    axes[0].bar(indices, queued, bottom=prompts, color=colours, alpha=0.4)
    axes[1].bar(indices, decodes, color=colours)
    axes[2].bar(indices, kv_percent, color=colours)
    labels = ("prompts running\n(pale: waiting)", "decodes", "KV-cache\nreserved, %")
    heights = (queued + prompts, decodes, kv_percent)
    for axis, height, least, label in zip(axes, heights, (4, 8, 10), labels, strict=True):
        axis.set_ylim(0, max(least, 1.1 * height.max()))
        _dress(axis, label)
    axes[2].set_xlabel("machine", fontsize=8)
    axes[2].set_xlim(-0.6, len(machines) - 0.4)
    axes[2].xaxis.get_major_locator().set_params(integer=True)


def _draw_history(axes: Any, history: History) -> None:
    step = -(-len(history.samples) // _MAX_POINTS)
    samples = history.samples[::-1][::step][::-1]  # the last one stays
    times = np.array([sample.time_s for sample in samples])
    counts = {role: np.array([sample.machines[role] for sample in samples]) for role in ROLES}
    axes[0].set_title("over time", fontsize=10, loc="left")
    below = np.zeros(len(times))
    for role in ROLES:
        axes[0].fill_between(times, below, below + counts[role], step="post", color=COLOURS[role], linewidth=0)
        below = below + counts[role]
    everything = below + [sample.changing for sample in samples]
    axes[0].fill_between(times, below, everything, step="post", color=GREY, linewidth=0)
    axes[0].set_ylim(0, everything.max())
    prompts = [sample.prompts_waiting + sample.prompts_running for sample in samples]
    axes[1].plot(times, prompts, color=COLOURS["prompt"], lw=1.2)
    axes[1].set_ylim(0, max(4.0, 1.1 * max(prompts)))
    right = axes[1].twinx()
    decodes = [sample.decodes for sample in samples]
    right.plot(times, decodes, color=COLOURS["token"], lw=1.2)
    right.set_ylim(0, max(8.0, 1.1 * max(decodes)))
    for role in ROLES:
        if counts[role].any():
            use = [100 * sample.kv_use[role] for sample in samples]
            axes[2].plot(times, use, color=COLOURS[role], lw=1.2)
    axes[2].set_ylim(bottom=0)
    labels = ("machines\nin each pool", "prompts running\nand waiting", "KV-cache\nreserved, %")
    for axis, label in zip(axes, labels, strict=True):
        _dress(axis, label)
    _dress(right, "decodes")
    axes[1].yaxis.label.set_color(COLOURS["prompt"])
    right.yaxis.label.set_color(COLOURS["token"])
    right.spines["right"].set_visible(True)
    axes[2].set_xlabel("simulated time, s", fontsize=8)
    axes[2].set_xlim(times[0], max(times[-1], times[0] + 1.0))


def _dress(axis: Any, label: str) -> None:
    axis.set_ylabel(label, fontsize=8)
    axis.tick_params(labelsize=7)
    axis.spines[["top", "right"]].set_visible(False)
    axis.yaxis.get_major_locator().set_params(integer=True)


def _patch(colour: str, label: str) -> Any:
    from matplotlib.patches import Patch

    return Patch(color=colour, label=label)

"""The device's part of measuring: CUDA graphs and events, power, and how much of a model fits."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from splitgym.errors import SplitgymError
from splitgym.hardware.measure import Grid, Mix, Work, measure_shard
from splitgym.hardware.models import load_facts
from splitgym.hardware.widths import Widths

if TYPE_CHECKING:
    from splitgym.hardware.shard import Shard

READINGS, WARM_UPS = 20, 3
WEIGHT_SHARE, CACHE_SHARE = 0.6, 0.25
"""Shares of the free memory that weights and cache may take; the rest is for what is computed."""

POWER_S = 2.0
"""Seconds that work goes on while its power is read."""

POWERED = {"prompt_w": Mix(2048, 0, 0, 0), "decode_w": Mix(0, 0, 32, 1024)}


def measure_gpu(
    model: str,
    tensor_parallel: int,
    points: Grid,
    folder: Path,
    *,
    hardware: str | None = None,
    facts_path: Path | str | None = None,
    done: Callable[[str], object] = lambda name: None,
) -> dict[str, Any]:
    """Measure one rank's shard of a model on this machine's GPU and write the folder that `fit` takes.

    Args:
        model: a model of the facts, matrices included.
        tensor_parallel: how many ranks share it; one of them is measured, without the all-reduces.
        points: see `splitgym.hardware.measure.grid`.
        folder: an existing folder.
        hardware: which machine of the facts this is; what the GPU calls itself if not given.
        facts_path: a YAML like the shipped ``facts.yaml``, for a model or machine that is not in that one.
        done: told the name of each file as it is written.

    Returns:
        what ``profile_meta.yaml`` says of the run.

    Raises:
        SplitgymError: if the model or machine is unknown, torch is missing, there is no CUDA GPU, or it does not hold
            one layer.
    """
    facts = load_facts(Path(facts_path) if facts_path is not None else None)
    widths = Widths(facts.model(model), facts.shape(model), tensor_parallel)
    if hardware is not None:
        facts.machine(hardware)
    try:
        import torch
    except ImportError:
        raise SplitgymError("measure: torch is not installed; pip install torch on a machine with a GPU") from None
    if not torch.cuda.is_available():
        raise SplitgymError("measure: torch sees no CUDA GPU here; run it on a machine that has one, or use compose")
    from splitgym.hardware.shard import Shard

    free_bytes, _ = torch.cuda.mem_get_info()
    layers, cache_tokens = what_fits(widths, free_bytes)
    gpu = torch.cuda.get_device_name()
    meta = {
        "profiler": "splitgym calibrate measure",
        "gpu": gpu,
        "hardware": hardware or gpu,
        "model": model,
        "tensor_parallel": tensor_parallel,
        "tp_degrees": [tensor_parallel],
        "variant": "bf16",
        "torch_version": str(torch.__version__),
        "cuda_version": str(torch.version.cuda),
        "kernels": "torch's own, in CUDA graphs; weights random; no all-reduce",
        "layers_held": layers,
    }
    with torch.inference_mode():
        shard = Shard(widths, "cuda", layers, cache_tokens)
        meta["power"] = _power_w(shard)
        measure_shard(shard, time_in_graph, points, folder, meta, done)
    return meta


def what_fits(widths: Widths, free_bytes: int) -> tuple[int, int]:
    """Layers of weights, and tokens of one layer's cache, that fit a GPU with ``free_bytes`` free.

    Raises:
        SplitgymError: if not one layer fits beside the embedding and the head.
    """
    element = widths.spec.bytes_per_element
    ends = 2 * widths.vocabulary * widths.shape.hidden * element
    layers = min(widths.spec.layers, int(WEIGHT_SHARE * free_bytes - ends) // (widths.layer_elements * element))
    if layers < 1:
        raise SplitgymError(
            f"tensor_parallel: {widths.tensor_parallel}: not one layer of {widths.spec.name} fits"
            f" {WEIGHT_SHARE:g} x {free_bytes / 1e9:.1f} GB; give more ranks"
        )
    return layers, int(CACHE_SHARE * free_bytes) // (widths.cache_elements * element)


def time_in_graph(work: Work) -> list[float]:
    """Seconds of each of ``READINGS`` replays of the work, captured as a CUDA graph after a warm-up."""
    import torch

    graph = _captured(work)
    event = functools.partial(torch.cuda.Event, enable_timing=True)
    events = [(event(), event()) for _ in range(READINGS)]
    graph.replay()
    for start, end in events:
        start.record()
        graph.replay()
        end.record()
    torch.cuda.synchronize()
    return [start.elapsed_time(end) / 1000 for start, end in events]


def _captured(work: Work) -> Any:
    import torch

    aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(WARM_UPS):
            work.run()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work.run()
    return graph


def _power_w(shard: Shard) -> dict[str, float]:
    """Watts of the GPU idle, with prompts and with decodes; empty where its driver's library cannot be asked."""
    import torch

    try:
        watts = {"idle_w": torch.cuda.power_draw() / 1000}
    except Exception:  # without NVML, or refused by it in one of several ways; power is optional
        return {}
    for name, mix in POWERED.items():
        graph = _captured(shard.iteration(mix))
        until = time.monotonic() + POWER_S
        while time.monotonic() < until:
            graph.replay()
            torch.cuda.synchronize()
        graph.replay()
        watts[name] = torch.cuda.power_draw() / 1000
        torch.cuda.synchronize()
    return watts

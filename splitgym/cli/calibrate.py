"""``splitgym calibrate``: latency laws from measurements."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from splitgym.cli import calibrate_gpu
from splitgym.cli.output import print_records
from splitgym.errors import SplitgymError

app = typer.Typer(help="Fit hardware profiles to measurements.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    pass


@app.command()
def fit(
    measured: Annotated[
        Path,
        typer.Argument(
            metavar="PROFILE", help="Measured runs (CSV, as perf_model.csv), or the folder of a profile of layers."
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="PROFILE.yaml", help="Where the profile goes.")],
    model: Annotated[str | None, typer.Option(help="Which model, where the file has several.")] = None,
    hardware: Annotated[str | None, typer.Option(help="Which hardware, where the file has several.")] = None,
    tensor_parallel: Annotated[int | None, typer.Option(help="Which group size, where the file has several.")] = None,
    facts: Annotated[
        Path | None, typer.Option(help="YAML with the facts of models and machines that do not ship.")
    ] = None,
    t_cpu: Annotated[
        float | None, typer.Option(metavar="S", min=0, help="The host's time in an iteration, for a profile of layers.")
    ] = None,
    source: Annotated[str | None, typer.Option(help="Where the measurements come from, for the provenance.")] = None,
    licence: Annotated[str, typer.Option(help="Their licence.")] = "not stated",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Fit the latency law to one (model, hardware, tensor parallelism) of a profile and write it as YAML."""
    from splitgym.hardware import HardwareProfile, fit_layer_profile, fit_profile

    fit_measured: Callable[..., HardwareProfile] = fit_profile
    if measured.is_dir():
        fit_measured = partial(fit_layer_profile, host_s=t_cpu or 0.0)
    elif t_cpu is not None:
        raise SplitgymError(f"--t-cpu {t_cpu:g}: {measured} times whole iterations, the host included; leave it out")
    profile = fit_measured(
        measured,
        out,
        model=model,
        hardware=hardware,
        tensor_parallel=tensor_parallel,
        facts_path=facts,
        source=source,
        licence=licence,
    )
    error = profile.error
    record = {
        "profile": profile.name,
        "prompt_mean_error": error.prompt_mean,
        "prompt_max_error": error.prompt_max,
        "decode_mean_error": error.decode_mean,
        "decode_max_error": error.decode_max,
        "mixed_mean_error": error.mixed_mean,
        "kv_capacity_tokens": profile.kv_capacity_tokens,
        "file": str(out),
    }
    print_records([record], as_json=as_json)


calibrate_gpu.register(app)

"""``splitgym calibrate``: latency laws from measurements."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from splitgym.cli.output import print_records

app = typer.Typer(help="Fit hardware profiles to measurements.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    pass


@app.command()
def fit(
    profile_csv: Annotated[Path, typer.Argument(metavar="PROFILE.csv", help="Measured runs, as in perf_model.csv.")],
    out: Annotated[Path, typer.Option(metavar="PROFILE.yaml", help="Where the profile goes.")],
    model: Annotated[str | None, typer.Option(help="Which model, where the file has several.")] = None,
    hardware: Annotated[str | None, typer.Option(help="Which hardware, where the file has several.")] = None,
    tensor_parallel: Annotated[int | None, typer.Option(help="Which group size, where the file has several.")] = None,
    facts: Annotated[
        Path | None, typer.Option(help="YAML with the facts of models and machines that do not ship.")
    ] = None,
    source: Annotated[str | None, typer.Option(help="Where the measurements come from, for the provenance.")] = None,
    licence: Annotated[str, typer.Option(help="Their licence.")] = "not stated",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Fit the latency law to one (model, hardware, tensor parallelism) of a profile and write it as YAML."""
    from splitgym.hardware import fit_profile

    profile = fit_profile(
        profile_csv,
        out,
        model=model,
        hardware=hardware,
        tensor_parallel=tensor_parallel,
        facts_path=facts,
        source=source,
        licence=licence,
    )
    record = {
        "profile": profile.name,
        "prompt_mean_error": profile.error.prompt_mean,
        "prompt_max_error": profile.error.prompt_max,
        "decode_mean_error": profile.error.decode_mean,
        "decode_max_error": profile.error.decode_max,
        "kv_capacity_tokens": profile.kv_capacity_tokens,
        "file": str(out),
    }
    print_records([record], as_json=as_json)

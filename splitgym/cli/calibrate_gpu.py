"""``splitgym calibrate compose | measure``: profiles from operator tables, and profiles of one's own GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from splitgym.cli.output import output_folder, print_records

Model = Annotated[str, typer.Option(help="Which model of the facts.")]
TensorParallel = Annotated[int, typer.Option(min=1, help="GPUs that share the model.")]
FactsFile = Annotated[Path | None, typer.Option(help="YAML with the facts of models and machines that do not ship.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def compose(
    model: Model,
    gpu: Annotated[str, typer.Option(help="As the tables are called: h100 for h100_sxm.*.parquet.")],
    operators: Annotated[Path, typer.Option(metavar="DIR", help="The operator tables, <gpu>.<operator>.parquet.")],
    out: Annotated[Path, typer.Option(metavar="PROFILE.yaml", help="Where the profile goes.")],
    tensor_parallel: TensorParallel = 1,
    facts: FactsFile = None,
    source: Annotated[str | None, typer.Option(help="Where the tables come from, for the provenance.")] = None,
    licence: Annotated[str, typer.Option(help="Their licence.")] = "not stated",
    as_json: AsJson = False,
) -> None:
    """Compose a model's iteration times from tables of single operators, and fit the latency law to them."""
    from splitgym.hardware.compose_fit import compose_profile

    profile = compose_profile(
        model, gpu, tensor_parallel, operators, out, facts_path=facts, source=source, licence=licence
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


def measure(
    model: Model,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the tables go; `calibrate fit DIR` reads them.")],
    tensor_parallel: TensorParallel = 1,
    hardware: Annotated[str | None, typer.Option(help="Which machine of the facts this is, for `fit`.")] = None,
    facts: FactsFile = None,
    max_tokens: Annotated[int, typer.Option(min=16, help="Most tokens of a batch.")] = 8192,
    max_sequences: Annotated[int, typer.Option(min=1, help="Most sequences of a batch.")] = 256,
    max_context: Annotated[int, typer.Option(min=16, help="Longest context of a sequence.")] = 16_384,
    as_json: AsJson = False,
) -> None:
    """Time one rank's share of a model, random weights, on this machine's CUDA GPU; torch is all it needs."""
    from splitgym.hardware.measure import grid
    from splitgym.hardware.measure_gpu import measure_gpu

    points = grid(max_tokens, max_sequences, max_context)
    with output_folder(out) as folder:
        meta = measure_gpu(
            model,
            tensor_parallel,
            points,
            folder,
            hardware=hardware,
            facts_path=facts,
            done=lambda name: typer.echo(f"measured: {name}", err=True),
        )
    record = {name: meta[name] for name in ("gpu", "hardware", "model", "tensor_parallel", "layers_held")}
    print_records([{**record, "folder": str(out)}], as_json=as_json)


def register(app: typer.Typer) -> None:
    """Add both to the ``calibrate`` commands."""
    app.command()(compose)
    app.command()(measure)

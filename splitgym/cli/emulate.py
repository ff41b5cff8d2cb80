"""``splitgym emulate``: engines without GPUs."""

from __future__ import annotations

from typing import Annotated

import typer

from splitgym.errors import SplitgymError


def emulate(
    machines: Annotated[str, typer.Option(help="What runs: prompt=2:h100-80gb,token=2:h100-80gb")],
    model: Annotated[str, typer.Option(help="Whose profiles time the engines.")] = "llama2-70b",
    tensor_parallel: Annotated[int, typer.Option(min=1, help="The profiles' group size.")] = 8,
    time_scale: Annotated[float, typer.Option(help="Emulated seconds in one of the clock.")] = 1.0,
    first_port: Annotated[int, typer.Option(min=1, max=65_000, help="The first engine's; the others follow.")] = 9001,
    control_port: Annotated[int, typer.Option(min=1, max=65_535, help="GET /engines, POST /engines/NAME/kill.")] = 9000,
    lease_s: Annotated[float, typer.Option(help="How long a prompt engine keeps a cache, emulated.")] = 30.0,
    recompute: Annotated[bool, typer.Option(help="Process a prompt again whose cache cannot be fetched.")] = False,
) -> None:
    """Run engines on loopback that answer like vLLM and take as long as the calibrated latency law says."""
    try:
        from splitgym.emulator import Fleet, run_fleet
    except ImportError as error:
        raise SplitgymError(f"{error}; the emulator needs pip install 'splitgym[router]'") from None
    from splitgym.machines import build_machines, parse_machines

    for name, value in (("--time-scale", time_scale), ("--lease-s", lease_s)):
        if not 0 < value < float("inf"):
            raise SplitgymError(f"{name} {value:g}: give a number above 0")
    built = build_machines(parse_machines(machines), model, tensor_parallel)
    if first_port + len(built) > 65_535 or first_port <= control_port < first_port + len(built):
        last = first_port + len(built) - 1
        raise SplitgymError(f"--first-port {first_port}: engines would take the ports to {last}; choose others")
    fleet = Fleet(built, model, time_scale=time_scale, lease_s=lease_s, recompute=recompute, first_port=first_port)
    try:
        run_fleet(fleet, control_port)
    except OSError as error:
        raise SplitgymError(f"--first-port {first_port}: {error.strerror}; choose another") from None

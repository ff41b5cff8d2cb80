"""``splitgym simulate``: one run of one policy."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from splitgym.cli.output import figure, output_folder, print_json, wide_console, write_json
from splitgym.errors import SplitgymError, did_you_mean

if TYPE_CHECKING:
    from splitgym.cards import Card
    from splitgym.sim.cluster import Scenario
    from splitgym.sim.ledger import Meters
    from splitgym.sim.recorder import Recorder
    from splitgym.sim.rows import RequestRows

    Played = tuple[RequestRows, Meters | None, Recorder | None, tuple[str, ...], dict[str, int]]
    """Rows, meters, recorder (the published simulator has neither), where laws were extrapolated, and counts of lost
    caches."""

SETTINGS = ("calibrated", "published")
LATEST_START_S = 1e7
"""A trace that begins later counts its seconds from another day, and the wait until then would be simulated."""


def simulate(
    card: Annotated[str, typer.Argument(metavar="CARD", help="A shipped card's name, or a card's path.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the results go.")],
    policy: Annotated[
        str, typer.Option(help="Who decides: a name, ROUTING+POOL, FILE.py:CLASS, a trained run.")
    ] = "splitwise",
    machines: Annotated[str | None, typer.Option(help="Other machines: prompt=25:h100-80gb,token=15:h100-80gb")] = None,
    model: Annotated[str | None, typer.Option(help="Another model, llama2-70b for example.")] = None,
    trace: Annotated[
        Path | None, typer.Option(metavar="FILE", help="What arrives; the run lasts until all is done.")
    ] = None,
    rate: Annotated[float | None, typer.Option(help="Requests per second on average.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of everything random.")] = 0,
    setting: Annotated[
        str, typer.Option(help="calibrated, or published: the Splitwise simulator, exactly.")
    ] = "calibrated",
    engine: Annotated[str | None, typer.Option(help="compiled, the default, or reference: equal.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON instead of a table.")] = False,
) -> None:
    """Run a policy on a card; write summary.json, requests.parquet and timeline.json into DIR."""
    from splitgym.cards import load_card
    from splitgym.metrics import summary
    from splitgym.sim.run import DEFAULT_ENGINE, ENGINES
    from splitgym.sim.timeline import machine_names, timeline, write_timeline
    from splitgym.workload import read_trace

    if setting not in SETTINGS:
        raise SplitgymError(f"--setting: unknown {setting!r}{did_you_mean(setting, SETTINGS)}")
    engine = engine or DEFAULT_ENGINE
    if engine not in ENGINES:
        raise SplitgymError(f"--engine: unknown {engine!r}{did_you_mean(engine, ENGINES)}")
    loaded = load_card(card)
    requests = None if trace is None else read_trace(trace)
    if requests is not None and requests.arrival_s[0] > LATEST_START_S:
        first_s = float(requests.arrival_s[0])
        raise SplitgymError(f"{trace}: the first request arrives at {first_s:.0f} s; count from the trace's start")
    scenario = loaded.scenario(seed, requests=requests, rate_rps=rate, machines=machines, model=model)
    with output_folder(out) as folder:
        started_s = perf_counter()
        if setting == "published":
            rows, meters, recorder, notes, lost = _published(loaded, scenario, policy)
        else:
            rows, meters, recorder, notes, lost = _calibrated(scenario, policy, loaded, engine)
        results = summary(rows, scenario, meters) | {
            **lost,
            "extrapolations": list(notes),
            "wall_s": perf_counter() - started_s,
        }
        write_json(results, folder / "summary.json")
        rows.write_parquet(folder / "requests.parquet")
        names = machine_names(scenario.cluster)
        write_timeline(timeline(recorder, rows, names), folder / "timeline.json")
    for note in notes:
        Console(stderr=True).print(f"note: {note}", highlight=False, soft_wrap=True)
    if as_json:
        print_json(results)
    else:
        _print_summary(results, f"{loaded.name}, {policy}, seed {seed}", out)


def _calibrated(scenario: Scenario, policy: str, card: Card, engine: str) -> Played:
    from splitgym.policies import make_policy
    from splitgym.sim.run import run

    warmup = card.defaults.warmup_policy
    warmup_policy = None if warmup is None else make_policy(warmup, card.folder)
    result = run(scenario, make_policy(policy), warmup_policy=warmup_policy, engine=engine, record=True)
    lost = {"preemptions": result.preemptions, "recomputations": result.recomputations}
    lost |= {"migrations": result.migrations} if scenario.cluster.migrate else {}
    lost |= {"restarts": result.restarts} if scenario.is_disturbed else {}
    lost |= {"prefix_hit_tokens": result.prefix_hit_tokens} if scenario.caches_prefixes else {}
    return result.rows, result.meters, result.recorder, result.extrapolations, lost


def _published(card: Card, scenario: Scenario, policy: str) -> Played:
    from splitgym.sim.published import PublishedMachine, simulate_published

    if card.cluster.tensor_parallel != 8:
        group = card.cluster.tensor_parallel
        raise SplitgymError(f"--setting published: {card.name} has tensor_parallel {group}; it knows only 8")
    cluster = scenario.cluster
    machines = [PublishedMachine(machine.role_name, machine.profile.hardware) for machine in cluster.machines]
    rows = simulate_published(machines, cluster.model.name, scenario.requests, policy)
    if cluster.classes:
        rows = replace(rows, slo_class=scenario.requests.slo_class[: len(rows)], class_names=cluster.class_names)
    return rows, None, None, (), {}


def _print_summary(results: dict[str, Any], title: str, out: Path) -> None:
    table = Table(title=title, title_justify="left", header_style="bold")
    for name in ("", "mean", "p50", "p90", "p99"):
        table.add_column(name, justify="right" if name else "left")
    slo = results["slo"]
    for name in ("ttft", "tbt", "e2e"):
        table.add_row(f"{name.upper()} (s)", *map(figure, results[f"{name}_s"].values()))
    table.add_section()
    for name in ("ttft", "tbt", "e2e"):
        cells = []
        for statistic, value in results["slowdown"][name].items():
            met = slo.get(f"{name}_{statistic}", True)
            cells.append(figure(value) if met else f"[red]{figure(value)} ✗[/red]")
        table.add_row(f"{name.upper()} slowdown", *cells)
    for kind, figures in results.get("classes", {}).items():
        table.add_section()
        for name in ("ttft", "tbt", "e2e"):
            table.add_row(f"{kind}: {name.upper()} (s)", *map(figure, figures[f"{name}_s"].values()))
    console = wide_console()
    console.print(table)
    requests = results["requests"]
    others = ", ".join(f"{requests[name]} {name.replace('_', ' ')}" for name in ("failed", "abandoned", "in_flight"))
    console.print(f"{requests['arrived']} requests: {requests['completed']} completed, {others}", highlight=False)
    counted = {"preemptions": "decodes preempted", "recomputations": "prompts computed again"}
    counted |= {"migrations": "moves of requests from machines that changed their role"}
    counted |= {"restarts": "requests begun again", "prefix_hit_tokens": "prompt tokens found in memory"}
    for name, text in counted.items():
        if results.get(name):
            console.print(f"{results[name]} {text}", highlight=False)
    kept = sum(bool(value) for name, value in slo.items() if name != "met")
    console.print(
        f"{kept} of 9 SLOs hold; goodput {figure(results['goodput_rps'])} requests/s; "
        f"energy {figure(results['energy_kwh'])} kWh; cost ${figure(results['cost_usd'])}",
        highlight=False,
    )
    energy, cost = results["energy"], results["cost"]
    if energy["idle_kwh"] is not None:
        by_phase = ", ".join(f"{name} {figure(energy[f'{name}_kwh'])}" for name in ("prompt", "token", "idle"))
        console.print(
            f"kWh by phase: {by_phase}; "
            f"a request {figure(energy['per_request_j'])} J, ${figure(cost['per_request_usd'])}; "
            f"an output token {figure(energy['per_output_token_j'])} J, "
            f"a million ${figure(cost['per_million_output_tokens_usd'])}",
            highlight=False,
        )
    for kind, figures in results.get("classes", {}).items():
        share = "–" if figures["kept"] is None else f"{figures['kept']:.1%}"
        console.print(
            f"{kind}: {share} of {figures['requests']} requests keep their SLO; "
            f"goodput {figure(figures['goodput_rps'])} requests/s",
            highlight=False,
        )
    console.print(f"{results['wall_s']:.2f} s of computing; results in {out}", highlight=False, soft_wrap=True)

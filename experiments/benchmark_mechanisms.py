"""What each mechanism of the simulator costs: a run with it beside a plain one, in time per request and per event.

    python experiments/benchmark_mechanisms.py                    # 40 machines, 20,000 requests, a few minutes
    python experiments/benchmark_mechanisms.py --requests 5000 --json

The load is that of `benchmark.py`: 70 requests/s on 40 machines, Splitwise's scheduler. Times are medians of several
repeats in which all take turns, in seconds that the core has worked, after a first turn in which what is missing is
compiled. A mechanism may change what happens (a shared network holds caches up, so that batches are smaller): time per
event of the simulation's clock says what it costs by itself.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import replace
from typing import Any

import numpy as np
from benchmark import CARD, POLICY, USUAL, clock_events, machine_groups, offered  # beside this file
from rich.box import SIMPLE
from rich.table import Table

from splitgym.cards import load_card
from splitgym.cli.output import wide_console
from splitgym.policies import make_policy
from splitgym.sim.cluster import Cluster, RequestClass, Scenario, Slo, SloSeconds, Telemetry, VllmBatching
from splitgym.sim.faults import Faults, Outage, Straggler
from splitgym.sim.run import run
from splitgym.workload import Prefixes, Requests

BLOCK_TOKENS = 512  # of named blocks of prompts, as in Mooncake's traces
FOLLOW_UPS = 4  # prompts that begin alike
DEADLINE_S = 60.0


def main() -> None:
    """Measure, tell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    arguments = parser.parse_args()
    found = measure(scenarios(arguments.requests), arguments.repeats)
    if arguments.json:
        print(json.dumps(found, indent=2))
    else:
        show(found)


def scenarios(count: int) -> dict[str, Scenario]:
    """The plain run, each mechanism by itself, and all together, by name."""
    card = load_card(CARD)
    plain, (requests, _) = card.build_cluster(machine_groups(USUAL)), offered(card, USUAL, count)
    chunked = replace(plain, batching=VllmBatching())
    caching = replace(plain, batching=VllmBatching(prefix_caching=True))
    alike, hasty = with_prefixes(requests), replace(requests, deadline_s=np.full(count, DEADLINE_S))
    all_asked = with_class_numbers(replace(alike, deadline_s=hasty.deadline_s))
    faults = faults_until(float(requests.arrival_s[-1]))
    return {
        "plain": Scenario(plain, requests),
        "network: shared": Scenario(with_transfer(plain, network="shared"), requests),
        "layer-wise transfers": Scenario(with_transfer(plain, mode="layerwise"), requests),
        "kv_lease_s": Scenario(with_transfer(plain, kv_lease_s=30.0), requests),
        "first token at token machines": Scenario(replace(plain, first_token="token_machine"), requests),
        "migrate": Scenario(replace(plain, migrate=True), requests),
        "telemetry": Scenario(with_telemetry(plain), requests),
        "request classes": Scenario(with_classes(plain), with_class_numbers(requests)),
        "power caps": Scenario(with_caps(plain), requests),
        "outages, stragglers": Scenario(plain, requests, faults=faults),
        "client deadlines": Scenario(plain, hasty),
        "all of these": Scenario(everything(plain), with_class_numbers(hasty), faults=faults),
        "token machines chosen late": Scenario(chosen_late(plain), requests),
        "all, chosen late": Scenario(chosen_late(everything(plain)), with_class_numbers(hasty), faults=faults),
        "vllm": Scenario(chunked, requests),
        "vllm, prefix caching": Scenario(caching, alike),
        "vllm, all": Scenario(everything(caching), all_asked, faults=faults),
        "vllm, all, chosen late": Scenario(chosen_late(everything(caching)), all_asked, faults=faults),
    }


def measure(asked: dict[str, Scenario], repeats: int) -> dict[str, Any]:
    """For each scenario requests/s, and time per request and per event as multiples of the plain run's."""
    seconds: dict[str, list[float]] = {name: [] for name in asked}
    for _ in range(1 + repeats):  # the first is the warm-up
        for name, scenario in asked.items():
            began_s = time.process_time()
            run(scenario, make_policy(POLICY))
            seconds[name].append(time.process_time() - began_s)
    took_s = {name: statistics.median(times[1:]) for name, times in seconds.items()}
    events = {name: clock_events(scenario) for name, scenario in asked.items()}
    return {
        name: {
            "requests_per_s": len(scenario.requests) / took_s[name],
            "time_per_request": took_s[name] / took_s["plain"],
            "time_per_event": took_s[name] / took_s["plain"] * events["plain"] / events[name],
        }
        for name, scenario in asked.items()
    }


def everything(cluster: Cluster) -> Cluster:
    """All of it but layer-wise transfers, which neither discipline `vllm` nor a late choice of token machines has."""
    own = with_transfer(replace(cluster, first_token="token_machine", migrate=True), network="shared", kv_lease_s=30.0)
    return with_telemetry(with_classes(with_caps(own)))


def chosen_late(cluster: Cluster) -> Cluster:
    """Token machines named at prompt ends."""
    return replace(cluster, token_choice="prompt_end")


def with_transfer(cluster: Cluster, **changed: Any) -> Cluster:
    """Other ways to send caches."""
    return replace(cluster, transfer=replace(cluster.transfer, **changed))


def with_telemetry(cluster: Cluster) -> Cluster:
    """Reports as old as a scraper's."""
    return replace(cluster, telemetry=Telemetry(scrape_interval_s=1.0, jitter_s=0.1, loss=0.01))


def with_classes(cluster: Cluster) -> Cluster:
    """Two promises."""
    return replace(cluster, classes=(RequestClass("chat", SloSeconds(1.0, 0.1)), RequestClass("batch", Slo())))


def with_class_numbers(requests: Requests) -> Requests:
    """Every second request of the second class."""
    return replace(requests, slo_class=np.arange(len(requests)) % 2)


def with_caps(cluster: Cluster) -> Cluster:
    """Every second machine at 0.7 of what its GPUs may draw."""
    most_w = max(watts for _, watts in cluster.machines[0].profile.power.prompt_points)
    capped = (replace(m, power_cap_w=0.7 * most_w) if n % 2 else m for n, m in enumerate(cluster.machines))
    return replace(cluster, machines=tuple(capped))


def with_prefixes(requests: Requests) -> Requests:
    """Prompts that come in groups which begin alike, as far as they have whole blocks."""
    counts = requests.prompt_tokens // BLOCK_TOKENS
    first = np.concatenate([[0], np.cumsum(counts)])
    place = np.arange(first[-1]) - np.repeat(first[:-1], counts)
    group = np.repeat(np.arange(len(requests)) // FOLLOW_UPS, counts)
    return replace(requests, prefixes=Prefixes(BLOCK_TOKENS, first, group * (1 + int(counts.max())) + place))


def faults_until(last_s: float) -> Faults:
    """A machine down for 10 s in each minute, and another slow."""
    begun_s = np.arange(10.0, max(last_s, 11.0), 60.0).tolist()
    return Faults(
        outages=tuple(Outage(n % USUAL, at_s, at_s + 10.0) for n, at_s in enumerate(begun_s)),
        stragglers=tuple(Straggler((n + 7) % USUAL, at_s, at_s + 20.0, 1.5) for n, at_s in enumerate(begun_s)),
    )


def show(found: dict[str, Any]) -> None:
    """A line for each."""
    table = Table(box=SIMPLE, title="beside the plain run")
    for column in ("mechanism", "requests/s", "time per request", "time per event"):
        table.add_column(column, justify="left" if column == "mechanism" else "right")
    for name, one in found.items():
        ratios = (f"{one[figure]:.2f}" for figure in ("time_per_request", "time_per_event"))
        table.add_row(name, f"{one['requests_per_s']:,.0f}", *ratios)
    wide_console().print(table)


if __name__ == "__main__":
    main()

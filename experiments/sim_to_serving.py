"""The same trace through the simulator, and through the router before emulated engines: how far are they apart?

    python experiments/sim_to_serving.py                    # eight policies, about half an hour on a quiet machine
    python experiments/sim_to_serving.py --quick --json     # three policies, a few minutes

Eight machines (card Quickstart) answer a trace of conversations. The simulator has `first_token: token_machine`, as
vLLM's NIXL connector streams, and `frontend_s`: what router and HTTP add to the first token, measured beforehand on
requests that have the engines to themselves. Engines, router and load are processes of their own on loopback; TTFT, TBT
and E2E are what the client sees. Policies are ranked by the mean slowdown of either side. Every view that the router's
policy saw is replayed to the simulator's policy object, which must decide the same.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.box import SIMPLE
from rich.table import Table
from scipy.stats import kendalltau
from serving_processes import work_elsewhere_s  # beside this file
from serving_side import SCRAPE_S, InVirtualTime, Side, in_processes

from splitgym.cards import Card, load_card
from splitgym.cli.output import wide_console
from splitgym.metrics.summary import scorecard
from splitgym.offline import Logged
from splitgym.policies import make_policy
from splitgym.sim.cluster import Scenario, Telemetry
from splitgym.sim.run import run
from splitgym.workload import Requests

FloatArray = npt.NDArray[np.float64]

CARD, SEED, RATE_RPS = "Quickstart", 1, 18.0
POLICIES = (
    "lmetric", "jsq-requests", "least-kv", "power-of-two", "size-interval", "fullest-feasible", "round-robin", "random",
)  # fmt: skip

QUICK_POLICIES = ("lmetric", "size-interval", "round-robin")
BARRED = ("ttft_p50_s", "ttft_p90_s", "tbt_p50_s", "tbt_p90_s")
COMPARED = (*BARRED, "e2e_p50_s", "e2e_p90_s", "slowdown")
SHOWN = (*BARRED, "e2e_p90_s", "slowdown")  # what fits a terminal
BAR, TAU_BAR = 0.05, 0.9


def main() -> None:
    """Measure, simulate, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="three policies, fewer requests")
    parser.add_argument("--check", action="store_true", help="exit code 1 where a bar is missed")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--policy", action="append", help="in place of the eight, such as mine.zip; repeat for several")
    parser.add_argument("--requests", type=int, help="how many; 900, or 200 with --quick")
    parser.add_argument("--time-scale", type=float, default=0.5, help="emulated seconds in one of the clock")
    parser.add_argument("--virtual", action="store_true", help="in virtual time, where computing takes none")
    parser.add_argument("--port", type=int, default=19_300, help="the router's; the engines have those above")
    arguments = parser.parse_args()
    policies = arguments.policy or (QUICK_POLICIES if arguments.quick else POLICIES)
    count = arguments.requests or (200 if arguments.quick else 900)
    gc.freeze()  # what is loaded

    card = load_card(CARD)
    scenario = trace(card, count)
    started_s, elsewhere_s = time.monotonic(), work_elsewhere_s()
    with side_of(arguments, card, scenario) as side:
        frontend_s = 0.0 if arguments.virtual else measured_frontend_s(scenario, side)
        scenario = replace(scenario, cluster=replace(scenario.cluster, frontend_s=frontend_s))
        compared = [compare(scenario, side, policy) for policy in policies]
    took_s = time.monotonic() - started_s
    figures: dict[str, Any] = {
        "requests": count,
        "rate_rps": RATE_RPS,
        "clock": "virtual" if arguments.virtual else f"real, {arguments.time_scale:g} emulated seconds in one",
        "frontend_s": frontend_s,
        "took_s": took_s,
        "cores_busy_elsewhere": (work_elsewhere_s() - elsewhere_s) / took_s,
        **verdict(compared),
        "policies": compared,
    }
    if arguments.json:
        print(json.dumps(figures, indent=2))
    else:
        show(figures)
    if arguments.check and not is_met(figures):
        sys.exit(1)


def side_of(arguments: argparse.Namespace, card: Card, scenario: Scenario) -> AbstractContextManager[Side]:
    """Where the trace is served."""
    if arguments.virtual:
        return nullcontext(InVirtualTime(card))
    return in_processes(card, scenario.cluster, arguments.time_scale, arguments.port)


def is_met(figures: dict[str, Any]) -> bool:
    """Whether every bar is."""
    ranked = figures["same_winner"] and figures["kendall_tau"] >= TAU_BAR
    return bool(figures["within_bar"] and ranked and not figures["replayed_otherwise"] and not figures["wrong_answers"])


# --- both sides -----------------------------------------------------------------------------------------------------


def trace(card: Card, count: int) -> Scenario:
    """The card's test workload; no control ticks, whose phase the router's clock would set."""
    drawn = card.scenario(SEED, rate_rps=RATE_RPS).requests
    telemetry = Telemetry(scrape_interval_s=SCRAPE_S)
    cluster = replace(card.default_cluster, first_token="token_machine", telemetry=telemetry)
    return Scenario(cluster, first(drawn, count), tick_s=None, seed=SEED)


def first(requests: Requests, count: int) -> Requests:
    """The first ``count`` of them."""
    return Requests(
        requests.arrival_s[:count],
        requests.prompt_tokens[:count],
        requests.output_tokens[:count],
        requests.predicted_output_tokens[:count],
    )


def compare(scenario: Scenario, side: Side, policy: str) -> dict[str, Any]:
    """One policy on both sides."""
    simulated = run(scenario, make_policy(policy), engine="reference").rows
    rows, logged, wrong = side.play(scenario, policy)
    ours, theirs = scorecard(simulated, scenario, None), scorecard(rows, scenario, None)
    decided = np.array([(one.decision.prompt_machine, one.decision.token_machine) for one in logged.decisions])
    alike = decided == np.stack([simulated.prompt_machine, simulated.token_machine], axis=1)
    return {
        "policy": logged.decisions[0].policy,
        "simulator": {name: ours[name] for name in COMPARED},
        "serving": {name: theirs[name] for name in COMPARED},
        "error": {name: theirs[name] / ours[name] - 1 for name in COMPARED},
        "routed_alike": float(alike.all(axis=1).mean()),
        "decisions": len(logged.decisions),
        "replayed_otherwise": replayed_otherwise(logged, scenario, policy),
        "wrong_answers": wrong,
    }


def replayed_otherwise(logged: Logged, scenario: Scenario, policy: str) -> int:
    """How many recorded views the simulator's policy object answers otherwise than the router did."""
    decider = make_policy(policy)
    decider.reset(scenario.cluster, scenario.seed)
    return sum(bool(one.fallback) or decider.decide(one.view) != one.decision for one in logged.decisions)


def verdict(compared: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The bars of this experiment."""
    slowdowns = {side: [one[side]["slowdown"] for one in compared] for side in ("simulator", "serving")}
    errors = {name: max(abs(one["error"][name]) for one in compared) for name in BARRED}
    tau = float(kendalltau(slowdowns["simulator"], slowdowns["serving"]).statistic) if len(compared) > 1 else 1.0
    return {
        "largest_errors": errors,
        "within_bar": max(errors.values()) <= BAR,
        "same_winner": int(np.argmin(slowdowns["simulator"])) == int(np.argmin(slowdowns["serving"])),
        "kendall_tau": tau,
        "replayed_otherwise": sum(one["replayed_otherwise"] for one in compared),
        "wrong_answers": sum(one["wrong_answers"] for one in compared),
    }


def measured_frontend_s(scenario: Scenario, side: Side) -> float:
    """What router, HTTP and client add to TTFT where nobody waits: the median, in emulated seconds."""
    count, output_tokens = 48, 8
    sizes = np.resize([256, 512, 1024, 2048], count), np.full(count, output_tokens)
    alone = replace(
        scenario, requests=Requests(np.arange(count, dtype=np.float64), *sizes, np.full(count, float(output_tokens)))
    )
    simulated = run(alone, make_policy("round-robin"), engine="reference").rows
    rows, _, _ = side.play(alone, "round-robin")
    more_s: FloatArray = rows.ttft_s - simulated.ttft_s
    return float(np.median(more_s[scenario.cluster.num_machines :]))  # the first open connections


# --- what is shown --------------------------------------------------------------------------------------------------


def show(figures: dict[str, Any]) -> None:
    """A line for each policy, then the verdict."""
    table = Table(box=SIMPLE, title="simulator / serving, and the error", pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("policy", no_wrap=True)
    for name in SHOWN:
        unit = "ms" if name in BARRED else "s" if name.endswith("_s") else ""
        table.add_column(f"{name.removesuffix('_s')}\n{unit}", justify="right", no_wrap=True)
    table.add_column("routed\nalike", justify="right")
    for one in sorted(figures["policies"], key=lambda one: one["simulator"]["slowdown"]):
        cells = []
        for name in SHOWN:
            here, there = (
                f"{(1000 if name in BARRED else 1) * one[side][name]:.3g}" for side in ("simulator", "serving")
            )
            cells.append(f"{here} / {there}\n{100 * one['error'][name]:+.1f} %")
        table.add_row(one["policy"], *cells, f"{100 * one['routed_alike']:.0f} %")
    console = wide_console()
    console.print(table)
    errors = [f"{name.removesuffix('_s')} {100 * error:.1f} %" for name, error in figures["largest_errors"].items()]
    winner = "the same winner" if figures["same_winner"] else "ANOTHER WINNER"
    console.print(f"largest errors: {', '.join(errors)} (bar {100 * BAR:g} %)")
    console.print(f"ranked by slowdown: {winner}, Kendall's tau {figures['kendall_tau']:.2f} (bar {TAU_BAR:g})")
    console.print(f"recorded views that the simulator's policies answer otherwise: {figures['replayed_otherwise']}")
    console.print(f"wrong answers: {figures['wrong_answers']}")
    console.print(
        f"{figures['requests']} requests at {RATE_RPS:g}/s, clock {figures['clock']}, "
        f"frontend {1000 * figures['frontend_s']:.1f} ms; took {figures['took_s']:.0f} s beside "
        f"{figures['cores_busy_elsewhere']:.1f} other busy cores"
    )


if __name__ == "__main__":
    main()

"""The router before emulated engines and the simulator are one thing, seen in virtual time; the experiment runs."""

from __future__ import annotations

import importlib
import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from splitgym.cards import load_card
from splitgym.policies import make_policy
from splitgym.sim.cluster import Batching, Cluster, Machine, Scenario, Telemetry, Transfer
from splitgym.sim.run import run
from splitgym.view import MIXED, PROMPT, TOKEN
from splitgym.workload import Requests

FOLDER = Path(__file__).parents[1] / "experiments"
SCRIPT = FOLDER / "sim_to_serving.py"
CARD = load_card("Quickstart")
SCRAPE_S = 0.05  # of `serving_side`


@pytest.fixture(scope="module")
def side() -> Iterator[Any]:
    """The module `serving_side`, which lies beside the script."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        yield importlib.import_module("serving_side")


def scenario(cluster: Cluster, count: int, rate_rps: float, most_output: int) -> Scenario:
    drawn = CARD.scenario(0, rate_rps=rate_rps).requests
    outputs = np.minimum(drawn.output_tokens[:count], most_output)
    outputs[::7] = 1
    requests = Requests(
        drawn.arrival_s[:count], drawn.prompt_tokens[:count], outputs, drawn.predicted_output_tokens[:count]
    )
    return Scenario(replace(cluster, first_token="token_machine"), requests, tick_s=None, seed=3)


def small(cluster: Cluster, capacity_tokens: int) -> Cluster:
    """Machines with little memory, in all roles."""
    profile = replace(cluster.machines[0].profile, kv_capacity_override_tokens=capacity_tokens)
    return replace(cluster, machines=tuple(Machine(role, profile) for role in (PROMPT, PROMPT, MIXED, TOKEN)))


CASES = {
    "booked features": ("lmetric", CARD.default_cluster),
    "draws": ("random", CARD.default_cluster),
    "booked memory": ("least-kv", CARD.default_cluster),
    "times": ("least-e2e", replace(CARD.default_cluster, transfer=Transfer(overhead_s=0.01))),
    "caches wait for room": ("round-robin", small(CARD.default_cluster, 6000)),
    "small batches": ("round-robin", replace(CARD.default_cluster, batching=Batching(1024, 4, 2))),
}


@pytest.mark.parametrize("case", CASES)
def test_in_virtual_time_they_are_one(side: Any, case: str) -> None:
    """Every request's TTFT and E2E and every decision are the same, up to rounding of the clock."""
    policy, cluster = CASES[case]
    played = scenario(cluster, 60, 30.0, 24)
    simulated = run(played, make_policy(policy), engine="reference").rows
    served, logged, wrong = side.InVirtualTime(CARD).play(played, policy)
    assert wrong == 0
    decided = np.array([(one.decision.prompt_machine, one.decision.token_machine) for one in logged.decisions])
    np.testing.assert_array_equal(decided[:, 0], simulated.prompt_machine)
    np.testing.assert_array_equal(decided[:, 1], simulated.token_machine)
    np.testing.assert_allclose(served.first_token_s, simulated.first_token_s, rtol=0, atol=1e-9)
    np.testing.assert_allclose(served.finish_s, simulated.finish_s, rtol=0, atol=1e-9)


def test_with_roles_that_change_and_reports_as_old(side: Any) -> None:
    """At a load at which it does not matter that a router looks every 20 ms only whether a phase is over."""
    assert side.SCRAPE_S == SCRAPE_S
    played = scenario(replace(CARD.default_cluster, telemetry=Telemetry(SCRAPE_S)), 60, 18.0, 24)
    simulated = run(played, make_policy("splitwise-tuned"), engine="reference").rows
    _, logged, _ = side.InVirtualTime(CARD).play(played, "splitwise-tuned")
    assert sum(bool(one.decision.role_changes) for one in logged.decisions) >= 2
    decided = np.array([(one.decision.prompt_machine, one.decision.token_machine) for one in logged.decisions])
    np.testing.assert_array_equal(decided[:, 0], simulated.prompt_machine)
    np.testing.assert_array_equal(decided[:, 1], simulated.token_machine)


def figures(*arguments: str) -> Any:
    command = [sys.executable, str(SCRIPT), "--json", *arguments]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def test_the_experiment_in_virtual_time() -> None:
    found = figures("--virtual", "--check", "--requests", "12", "--policy", "round-robin", "--policy", "lmetric")
    assert found["within_bar"] and found["same_winner"] and found["kendall_tau"] == 1.0
    assert max(found["largest_errors"].values()) < 1e-9
    assert (found["replayed_otherwise"], found["wrong_answers"], found["frontend_s"]) == (0, 0, 0.0)
    assert [one["routed_alike"] for one in found["policies"]] == [1.0, 1.0]


def test_the_experiment_by_the_clock() -> None:
    """In processes of their own and fast; how close both sides are is left to a machine that is quiet."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    found = figures("--requests", "12", "--policy", "random", "--time-scale", "20", "--port", str(port))
    assert (found["replayed_otherwise"], found["wrong_answers"]) == (0, 0)
    assert found["frontend_s"] > 0
    (one,) = found["policies"]
    assert one["policy"] == "random" and one["decisions"] == 12 and one["routed_alike"] == 1.0

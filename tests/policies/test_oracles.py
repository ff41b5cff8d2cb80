"""Oracles, and the best static split in hindsight."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from splitgym.errors import SplitgymError
from splitgym.policies import best_static_split, make_policy
from splitgym.policies.static_split import candidate_roles
from splitgym.sim.cluster import Scenario
from splitgym.sim.run import run
from splitgym.view import PROMPT, TOKEN
from tests.policies.views import view
from tests.sim.build import cluster, law, requests


def unpredicted(scenario: Scenario, tokens: float) -> Scenario:
    """The same arrivals, each output predicted to be ``tokens`` long."""
    predicted = np.full(len(scenario.requests), tokens)
    return dataclasses.replace(
        scenario, requests=dataclasses.replace(scenario.requests, predicted_output_tokens=predicted)
    )


def two_speeds() -> Scenario:
    """Two mixed machines, one fast at prompts, one at decodes, a slow link between them; long and short outputs."""
    machines = cluster("mm").machines
    laws = (law(prompt_s=0.5, decode_s=0.2), law(prompt_s=1.0, decode_s=0.1))
    machines = tuple(
        dataclasses.replace(machine, profile=dataclasses.replace(machine.profile, law=one, link_bytes_per_s=1e8))
        for machine, one in zip(machines, laws, strict=True)
    )
    arrivals = requests((0.0, 100, 2), (50.0, 100, 100), (100.0, 100, 2), (100.0, 200, 100))
    return Scenario(dataclasses.replace(cluster("mm"), machines=machines), arrivals, tick_s=None)


def test_oracle_knows_the_true_length():
    scenario = unpredicted(two_speeds(), 2.0)
    blind = run(scenario, make_policy("least-e2e")).rows
    knowing = run(scenario, make_policy("oracle-length")).rows
    assert blind.token_machine.tolist()[:2] == [0, 0]
    assert knowing.token_machine.tolist()[:2] == [0, 1]
    assert knowing.token_machine.tolist()[3] == 1
    assert knowing.e2e_s.sum() < blind.e2e_s.sum()


def test_oracles_must_see_the_scenario():
    for name in ("oracle-length", "oracle-lookahead"):
        policy = make_policy(name)
        policy.reset(cluster("pt"), 0)
        with pytest.raises(SplitgymError, match="observe_scenario"):
            policy.decide(view("pt"))


def test_lookahead_sees_what_the_queues_do_not_show():
    """It knows which request will decode long and puts it where decodes are fast."""
    scenario = two_speeds()
    chosen = run(scenario, make_policy("oracle-lookahead"))
    heuristic = run(scenario, make_policy("lmetric"))
    assert (chosen.rows.status == 1).all()
    assert chosen.meters.slowdown < heuristic.meters.slowdown


def test_lookahead_must_decide_from_the_start():
    scenario = dataclasses.replace(two_speeds(), warmup_s=10.0)
    with pytest.raises(SplitgymError, match="must decide from the start"):
        run(scenario, make_policy("oracle-lookahead"), warmup_policy=make_policy("lmetric"))


def test_best_static_split_follows_the_work():
    """Prompts take a second, decodes nearly nothing: with three machines two must process prompts."""
    machines = cluster("ptt", latency=law(prompt_s=1.0, decode_s=0.01))
    arrivals = requests(*[(0.55 * n, 2000, 2) for n in range(40)])
    best, tried = best_static_split(Scenario(machines, arrivals), make_policy("lmetric"))
    assert best.roles == (PROMPT, PROMPT, TOKEN)
    assert [split.prompt_machines for split in tried] == [1, 2]
    assert best.score == min(split.score for split in tried)


def test_best_static_split_needs_two_machines():
    with pytest.raises(SplitgymError, match="at least 2 machines"):
        best_static_split(Scenario(cluster("m"), requests((0.0, 1, 1))), make_policy("lmetric"))


def test_many_splits_are_thinned_evenly():
    wide = cluster("p" * 40)
    assert len(list(candidate_roles(wide, 64))) == 39
    few = [roles.count(PROMPT) for roles in candidate_roles(wide, 10)]
    assert few == [4, 8, 12, 16, 20, 24, 28, 32, 36]

"""What holds for every built-in policy, whatever it sees."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from splitgym.errors import SplitgymError
from splitgym.features import MACHINE_COLUMN, MACHINE_FEATURES, NUM_CLUSTER_FEATURES
from splitgym.policies import BUILTINS, CompiledPolicy
from splitgym.sim.cluster import Scenario
from splitgym.sim.run import run
from splitgym.view import ARRIVAL, MIXED, PROMPT, TICK, TOKEN, ClusterView
from tests.policies.views import permitted, view
from tests.sim.build import cluster, requests

NAMES = sorted(BUILTINS)
ROUTING = [name for name in NAMES if BUILTINS[name].kind != "pool"]
COUNTS = MACHINE_COLUMN["pending_prompts"]


@st.composite
def views(draw, kinds=(ARRIVAL, TICK)):
    """Any roles that serve both phases, any features, machines that are not ready."""
    roles = "".join(draw(st.lists(st.sampled_from("ptm"), min_size=1, max_size=6)))
    if "m" not in roles and ("p" not in roles or "t" not in roles):
        roles += "m"
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    coarse = draw(st.booleans())  # many ties
    seen = view(roles, kind=draw(st.sampled_from(kinds)), time_s=draw(st.floats(0, 1e4)))
    shape = (len(roles), len(MACHINE_FEATURES) - COUNTS)
    scales = np.array([feature.scale for feature in MACHINE_FEATURES[COUNTS:]])
    values = rng.integers(0, 3, shape).astype(float) if coarse else rng.exponential(2.0, shape)
    seen.machines[:, COUNTS:] = values * scales
    seen.machines[:, MACHINE_COLUMN["prompt_tokens_per_s"]] = rng.uniform(1e3, 3e4, len(roles))
    seen.machines[:, MACHINE_COLUMN["decode_iteration_s"]] = rng.uniform(0.02, 0.1, len(roles))
    seen.machines[:, MACHINE_COLUMN["kv_capacity_tokens"]] = rng.uniform(2e3, 2e6, len(roles))
    seen.request[:] = rng.exponential([2000, 300, 0.1, 0.04, 0.5, 0.08])
    seen.cluster[:] = rng.exponential(1e4, NUM_CLUSTER_FEATURES)
    keep = rng.random(len(roles)) < 0.8
    for mask in (seen.prompt_mask, seen.token_mask):
        if (mask & keep).any():
            mask &= keep
    seen.role_mask[rng.random((len(roles), 3)) < draw(st.sampled_from([0.0, 0.5, 1.0]))] = False
    return seen


def roles_of(seen: ClusterView) -> list[int]:
    return [int(np.argmax(row[:3])) for row in seen.machines]


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=150, deadline=None)
@given(sequence=st.data())
def test_every_decision_is_permitted(name, sequence):
    policy = CompiledPolicy(BUILTINS[name])
    seen = sequence.draw(views())
    count = seen.num_machines
    policy.reset(cluster("m" * count), 0)
    kind = TICK if BUILTINS[name].kind == "pool" else seen.kind
    seen = dataclasses.replace(seen, kind=kind)
    before = [array.copy() for array in (seen.machines, seen.request, seen.cluster, seen.prompt_mask, seen.token_mask)]
    decision = policy.decide(seen)

    roles = roles_of(seen)
    for machine, role in decision.role_changes:
        assert seen.role_mask[machine, role], "a masked change"
        assert permitted(roles)[machine, role] or role == MIXED, "changes that leave a phase without a machine"
        roles[machine] = role
    assert any(role != TOKEN for role in roles)
    assert any(role != PROMPT for role in roles)
    if kind == TICK:
        assert (decision.prompt_machine, decision.token_machine) == (-1, -1)
    else:
        opened = {machine for machine, role in decision.role_changes if role == MIXED}
        closed = {machine for machine, role in decision.role_changes if role != MIXED}
        assert seen.prompt_mask[decision.prompt_machine] or decision.prompt_machine in opened
        assert seen.token_mask[decision.token_machine] or decision.token_machine in opened
        assert not closed & {decision.prompt_machine, decision.token_machine}
    after = (seen.machines, seen.request, seen.cluster, seen.prompt_mask, seen.token_mask)
    assert all(np.array_equal(x, y) for x, y in zip(before, after, strict=True)), "the view is not the policy's"


def test_a_view_of_another_cluster_is_refused():
    policy = CompiledPolicy(BUILTINS["splitwise"])
    with pytest.raises(SplitgymError, match=r"the view has 4 machines; reset\(\) was given a cluster of 0"):
        policy.decide(view("pptt"))


@pytest.mark.parametrize("name", NAMES)
def test_equal_resets_give_equal_decisions(name):
    kind = TICK if BUILTINS[name].kind == "pool" else ARRIVAL
    rng = np.random.default_rng(0)
    sequence = []
    for step in range(40):
        seen = view("ppttm", kind=kind, time_s=5.0 * step)
        seen.machines[:, COUNTS:] = rng.exponential(1.0, (5, len(MACHINE_FEATURES) - COUNTS))
        seen.cluster[:] = rng.exponential(1e3, NUM_CLUSTER_FEATURES)
        sequence.append(seen)
    policy = CompiledPolicy(BUILTINS[name])
    first = []
    for log in (first, second := []):
        policy.reset(cluster("ppttm"), 3)
        log.extend(policy.decide(seen) for seen in sequence)
    assert first == second


@pytest.mark.parametrize("name", sorted(set(ROUTING) - {"random", "round-robin", "power-of-two"}))
@settings(max_examples=60, deadline=None)
@given(seen=views(kinds=(ARRIVAL,)), seed=st.integers(0, 10**6))
def test_machines_may_be_renumbered(name, seen, seed):
    """Without ties the choice follows the machine, not its number. (Drawn and cyclic choices go by number.)"""
    count = seen.num_machines
    rng = np.random.default_rng(seed)
    seen.machines[:, COUNTS:] += rng.uniform(0.001, 0.01, (count, len(MACHINE_FEATURES) - COUNTS))  # no ties
    order = rng.permutation(count)
    moved = dataclasses.replace(
        seen,
        machines=seen.machines[order].copy(),
        prompt_mask=seen.prompt_mask[order].copy(),
        token_mask=seen.token_mask[order].copy(),
        role_mask=seen.role_mask[order].copy(),
    )
    policy = CompiledPolicy(BUILTINS[name])
    homes = cluster("m" * count)
    policy.reset(homes, 0)
    plain = policy.decide(seen)
    policy.reset(homes, 0)
    renumbered = policy.decide(moved)
    assert int(order[renumbered.prompt_machine]) == plain.prompt_machine
    assert int(order[renumbered.token_machine]) == plain.token_machine


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("switch_s", [0.0, 3.0])
def test_every_policy_gets_a_run_done(name, switch_s):
    rng = np.random.default_rng(1)
    arrivals = np.cumsum(rng.exponential(0.05, 300))
    rows = [(float(at), int(rng.integers(1, 3000)), int(rng.integers(1, 40))) for at in arrivals]
    from splitgym.policies import make_policy

    scenario = Scenario(cluster("pptmt", switch_s=switch_s), requests(*rows), tick_s=1.0)
    result = run(scenario, make_policy(name))
    assert (result.rows.status == 1).all()

"""The parts of compiled policies, against what they stand for."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from splitgym.features import MACHINE_COLUMN, MACHINE_FEATURES
from splitgym.policies import BUILTINS, CompiledPolicy
from splitgym.policies.kernels import best, draw, new_state, pick, rank, ranking
from splitgym.policies.simple import slowest_for_long
from splitgym.view import ARRIVAL, MIXED, PROMPT, TICK, TOKEN
from tests.policies.views import permitted, view
from tests.sim.build import cluster

COUNTS = MACHINE_COLUMN["pending_prompts"]
SCALES = np.array([feature.scale for feature in MACHINE_FEATURES[COUNTS:]])
TIMES = [
    MACHINE_COLUMN[name]
    for name in ("pending_prompt_s", "prompt_s", "predicted_ttft_s", "predicted_tbt_s", "transfer_s")
]


scores = st.sampled_from([-1.0, 0.0, 1.0, 2.5, np.inf])  # many ties


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 9), st.lists(st.tuples(st.integers(0, 8), scores), max_size=40))
def test_the_best_of_a_ranking_is_the_first_with_the_least_score(count, changes):
    state = new_state([PROMPT] * count, 0, "mine")
    others = ranking(state, count, 0), ranking(state, count, 2)
    ranked = ranking(state, count, 1)
    plain = np.full(count, np.inf)
    assert best(ranked) == -1
    for machine, score in changes:
        m = machine % count
        plain[m] = score
        rank(ranked, m, score)
        assert best(ranked) == (int(np.argmin(plain)) if np.isfinite(plain.min()) else -1)
    assert all(np.isinf(other).all() for other in others)


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 200), st.sampled_from([0.0, 0.02, 0.5, 1.0]), st.integers(0, 10**6))
def test_a_pick_is_the_drawn_one_of_the_others(count, share, seed):
    rng = np.random.default_rng(seed)
    mask = rng.random(count) < share
    but = int(rng.integers(-1, count))
    others = [m for m in range(count) if mask[m] and m != but]
    state = new_state([PROMPT] * count, seed, "mine")
    same = state.copy()
    alone = but if but >= 0 and mask[but] else -1
    expected = others[int(draw(same) * len(others))] if others else alone
    assert pick(state, mask, but) == expected
    np.testing.assert_array_equal(state, same)


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 12), st.integers(0, 10**6), st.floats(0.0, 1.0))
def test_long_prompts_go_to_the_fastest(count, seed, share):
    rng = np.random.default_rng(seed)
    seen = view("p" * count, prompt_tokens_per_s=rng.choice([1e4, 2e4, 3e4], count))
    rates, mask = seen["prompt_tokens_per_s"], rng.random(count) < 0.8
    goal = share * float(rates[mask].sum())
    most = int(mask.sum()) - 1
    taken, chosen = 0.0, (np.inf, -1)
    fastest_first = sorted(np.flatnonzero(mask).tolist(), key=lambda m: (-rates[m], m))
    for number, m in enumerate(fastest_first[: max(most, 0)]):
        if number > 0 and taken + 0.5 * rates[m] > goal:
            break
        taken, chosen = taken + rates[m], (rates[m], m)
    assert slowest_for_long(seen.machines, mask, goal, most) == chosen


@pytest.mark.parametrize("name", sorted(BUILTINS))
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), kinds=st.lists(st.sampled_from([ARRIVAL, ARRIVAL, TICK]), min_size=2, max_size=20))
def test_to_know_what_has_changed_changes_no_decision(name, seed, kinds):
    """A kernel told of the machines that have changed, beside the same kernel told of all of them."""
    rng = np.random.default_rng(seed)
    builtin, count = BUILTINS[name], 7
    roles = np.array([PROMPT, TOKEN, PROMPT, TOKEN, MIXED, MIXED, PROMPT])
    told, told_all = CompiledPolicy(builtin), CompiledPolicy(builtin)
    for policy in (told, told_all):
        policy.reset(cluster("ptptmmp"), seed)
    machines, serves = view("ptptmmp").machines, np.ones(count, np.bool_)
    changed = np.arange(count)
    for kind in kinds:
        is_free = changed > 1  # the first two see to it that both phases are served
        roles[changed[is_free]] = rng.integers(0, 3, is_free.sum())
        serves[changed[is_free]] = rng.random(is_free.sum()) < 0.7
        machines[changed, :3] = np.eye(3)[roles[changed]]
        machines[changed, COUNTS:] = rng.integers(0, 4, (len(changed), len(SCALES))) * SCALES  # many ties
        machines[:, TIMES] = rng.exponential(1.0, (count, len(TIMES)))
        seen = dataclasses.replace(
            view("ptptmmp", kind=TICK if builtin.kind == "pool" else kind, role_mask=permitted(roles)),
            machines=machines,
            prompt_mask=serves & (roles != TOKEN),
            token_mask=serves & (roles != PROMPT),
        )
        new_roles = np.full(count, -1)
        fields = [getattr(seen, field.name) for field in dataclasses.fields(seen)]
        machines_named = builtin.kernel(*fields, changed, told.param_values, told.state, new_roles)
        decision = told_all.decide(seen)
        assert machines_named == (decision.prompt_machine, decision.token_machine)
        assert dict(decision.role_changes) == {m: new_roles[m] for m in np.flatnonzero(new_roles >= 0)}
        changed = np.flatnonzero(rng.random(count) < 0.3)
        changed = np.concatenate([changed, changed[:1]])  # a machine may come twice

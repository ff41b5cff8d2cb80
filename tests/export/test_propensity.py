"""A bundle's policy in the router: asked in its event loop, and its decisions logged with their propensities."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from splitgym.export import BundlePolicy, bundle_policy
from splitgym.export.actions import choose, probability
from splitgym.view import ARRIVAL, TICK
from tests.export.conftest import Bundles
from tests.policies.views import view
from tests.router.stack import in_loop, stack
from tests.sim.build import cluster


def test_probability_is_how_often_it_is_drawn() -> None:
    """A hundred thousand evenly spread uniform numbers: frequencies within 2e-5 of the probabilities."""
    scores = np.array([0.3, -1.0, 2.0, 0.0, 1.1], np.float32)
    mask = np.array([True, True, False, True, True])
    draws = (np.arange(100_000) + 0.5) / 100_000
    drawn = Counter(choose(scores, mask, float(uniform)) for uniform in draws)
    for index in range(5):
        assert probability(scores, mask, index) == pytest.approx(drawn[index] / 100_000, abs=2e-5)
    assert probability(scores, np.zeros(5, np.bool_), 0) == 1.0
    assert probability(np.array([1e4, -1e4], np.float32), np.array([True, True]), 0) == 1.0


def test_both_heads_are_counted(bundle_of: Bundles) -> None:
    """Over all pairs of machines the probabilities of the decisions that are drawn add up to 1."""
    policy = bundle_policy(bundle_of("routing", "sample"))
    assert isinstance(policy, BundlePolicy) and policy.never_blocks
    roles = "ptmm"
    policy.reset(cluster(roles), 0)
    seen = view(roles, kind=ARRIVAL)
    found = {}
    for _ in range(2000):
        decision = policy.decide(seen)
        assert policy.propensity is not None
        found[decision.prompt_machine, decision.token_machine] = policy.propensity
    assert len(found) == 9  # three machines may take the prompt, three the tokens
    assert sum(found.values()) == pytest.approx(1.0, abs=1e-6)  # single precision of the scores


def test_none_where_nothing_is_drawn(bundle_of: Bundles) -> None:
    roles = "ptm"
    best = bundle_policy(bundle_of("routing", "argmax"))
    other = bundle_policy(bundle_of("repurposing", "sample"))
    for policy, kind, is_drawn in ((best, ARRIVAL, False), (other, ARRIVAL, False), (other, TICK, True)):
        assert isinstance(policy, BundlePolicy)
        policy.reset(cluster(roles), 0)
        policy.decide(view(roles, kind=kind))
        assert (policy.propensity is not None) is is_drawn


@in_loop
async def _serve(bundle: Path, folder: Path) -> None:
    policy = {"name": str(bundle), "tick_s": 2.0}
    async with stack(log={"folder": folder}, policy=policy) as s:
        assert s.router.decider._worker is None  # it is asked in the event loop
        for _ in range(8):
            assert (await s.complete(4)).status == 200
        assert s.counted("fallbacks_total", reason="exception") == 0


@pytest.mark.parametrize("decision", ["sample", "argmax"])
def test_the_router_logs_it(bundle_of: Bundles, tmp_path: Path, decision: str) -> None:
    _serve(bundle_of("routing", decision), tmp_path)
    rows = [row for path in sorted(tmp_path.glob("*.parquet")) for row in pq.read_table(path).to_pylist()]
    arrivals = [row for row in rows if row["kind"] == "arrival"]
    assert len(arrivals) == 8 and not any(row["fallback"] for row in rows)
    for row in arrivals:
        if decision == "sample":
            assert 0.0 < row["propensity"] < 1.0
        else:
            assert row["propensity"] is None
    assert all(row["propensity"] is None for row in rows if row["kind"] == "tick")

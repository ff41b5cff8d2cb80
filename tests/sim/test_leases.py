"""Leases of caches that wait for room: cases computed by hand, in both engines."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from splitgym.sim.cluster import Cluster, Scenario, Transfer, VllmBatching
from splitgym.sim.run import RunResult, run
from tests.sim.build import Fixed, cluster, requests

engines = pytest.mark.parametrize("engine", ["reference", "compiled"])
first_tokens = pytest.mark.parametrize("first_token", ["prompt_machine", "token_machine"])


def leased(roles: str, lease_s: float | None, capacity: int, **settings: object) -> Cluster:
    tested = cluster(roles, kv_capacity_tokens=capacity, transfer=Transfer(kv_lease_s=lease_s))
    return dataclasses.replace(tested, **settings)


def dropped(result: RunResult) -> list[tuple[float, int, int]]:
    assert result.recorder is not None
    return [(time_s, *rest) for time_s, kind, *rest in result.recorder.events if kind == "cache_dropped"]


@engines
@pytest.mark.parametrize(
    ("first_token", "first_s", "finish_s", "tbt_max_s"),
    [("prompt_machine", 1.5, 4.1, 2.5), ("token_machine", 4.0, 4.2, 0.1)],
)
def test_a_cache_that_waits_too_long_is_computed_again(
    engine: str, first_token: str, first_s: float, finish_s: float, tbt_max_s: float
) -> None:
    """The first fills machine 1 until 3 s. The second's cache waits from 1.5 s on and is dropped at 2.25 s.

    Machine 1 computes it from 3 s to 4 s: that yields its next token, and then there is one left, or two.
    """
    tested = leased("pm", 0.75, 31, first_token=first_token)
    arrivals = requests((0.0, 10, 21), (0.5, 10, 3))
    result = run(Scenario(tested, arrivals, tick_s=None), Fixed([(1, 1), (0, 1)]), engine=engine, record=True)
    assert result.recomputations == 1
    assert dropped(result) == [(2.25, 0, 1)]
    rows = result.rows
    assert rows.finish_s[0] == pytest.approx(3.0)
    assert rows.first_token_s[1] == pytest.approx(first_s)
    assert rows.finish_s[1] == pytest.approx(finish_s)
    assert rows.tbt_max_s[1] == pytest.approx(tbt_max_s)
    assert np.isnan(rows.transfer_end_s[1])
    assert rows.prompt_start_s[1] == 0.5  # it was begun there
    assert result.meters.tokens_out == 24


@engines
def test_a_cache_that_is_sent_in_time_is_kept(engine: str) -> None:
    """Room comes at 3 s, half a second before the lease ends; the slow transfer that follows is no waiting."""
    tested = leased("pm", 2.0, 31)
    tested = dataclasses.replace(tested, transfer=Transfer(overhead_s=5.0, kv_lease_s=2.0))
    arrivals = requests((0.0, 10, 21), (0.5, 10, 3))
    result = run(Scenario(tested, arrivals, tick_s=None), Fixed([(1, 1), (0, 1)]), engine=engine, record=True)
    assert result.recomputations == 0
    assert result.rows.transfer_end_s[1] == pytest.approx(8.0)


@engines
@first_tokens
@pytest.mark.parametrize("batching", [None, VllmBatching(8, 64, 4)])
def test_full_machines_that_wait_for_each_other(engine: str, first_token: str, batching: VllmBatching | None) -> None:
    """Each prompt fills its machine, and its cache waits for the room that the other's takes."""
    settings: dict[str, object] = {"first_token": first_token} | ({} if batching is None else {"batching": batching})
    arrivals = requests((0.0, 20, 8), (0.0, 20, 8))
    pairs = Fixed([(0, 1), (1, 0)])
    stuck = run(Scenario(leased("mm", None, 32, **settings), arrivals, tick_s=None), pairs, engine=engine)
    assert stuck.rows.status.tolist() == [0, 0]
    assert stuck.rows.end_s == 1.0
    result = run(Scenario(leased("mm", 2.0, 32, **settings), arrivals, tick_s=None), pairs, engine=engine, record=True)
    # Both leases end at 3 s, one after the other: the room of the first's cache is there for the second's at once.
    assert dropped(result) == [(3.0, 0, 0)]
    assert result.recomputations == 1
    assert result.rows.status.tolist() == [1, 1]
    assert np.isnan(result.rows.transfer_end_s).tolist() == [True, False]
    assert result.rows.transfer_end_s[1] == pytest.approx(3.0)
    assert result.meters.tokens_out == 16


@engines
def test_a_machine_about_to_restart_computes_what_was_put_back(engine: str) -> None:
    """Machine 1 gives up its prompt phase at 2 s, and has a cache to compute again when its lease ends."""
    tested = dataclasses.replace(leased("pmp", 0.75, 31), switch_s=10.0)
    arrivals = requests((0.0, 10, 21), (0.5, 10, 3))
    policy = Fixed([(1, 1), (0, 1)], roles_at={2.0: ((1, 1),)})
    result = run(Scenario(tested, arrivals, tick_s=1.0), policy, engine=engine, record=True)
    assert result.recomputations == 1
    assert result.rows.finish_s.tolist() == pytest.approx([3.0, 4.1])
    assert result.meters.finished == 2

"""Draining with migration: cases computed by hand, in both engines."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from splitgym.sim.cluster import Cluster, Scenario, Transfer, VllmBatching
from splitgym.sim.faults import Faults, Outage
from splitgym.sim.rows import ABANDONED
from splitgym.sim.run import RunResult, run
from splitgym.view import PROMPT, TOKEN
from tests.sim.build import MODEL, Fixed, cluster, law, requests

engines = pytest.mark.parametrize("engine", ["reference", "compiled"])
LINK_BYTES_PER_S = 1e6 * MODEL.kv_bytes_per_token  # a microsecond for a token's KV-cache


def migrating(roles: str, **settings: object) -> Cluster:
    return dataclasses.replace(cluster(roles, link_bytes_per_s=LINK_BYTES_PER_S), migrate=True, **settings)


def times(result: RunResult, kind: str) -> list[tuple[float, int, int]]:
    assert result.recorder is not None
    return [(time_s, *rest) for time_s, name, *rest in result.recorder.events if name == kind]


@engines
def test_decodes_are_sent_at_the_next_boundary(engine: str) -> None:
    """Machine 1 decodes from 1.00001 s on and gives up the token phase at 1.5 s; its iteration ends at 1.50001 s.

    By then 6 of 31 tokens are out: 10 + 5 are in the cache and take 15 µs.
    """
    policy = Fixed([(0, 1)], roles_at={1.5: ((1, PROMPT),)})
    scenario = Scenario(migrating("ptt"), requests((0.0, 10, 31)), tick_s=0.5)
    result = run(scenario, policy, engine=engine, record=True)
    assert result.migrations == 1
    boundary_s = 1.00001 + 0.5
    assert times(result, "moved") == [(pytest.approx(boundary_s), 2, 0)]
    assert times(result, "ready") == [(pytest.approx(boundary_s), 1, -1)]
    assert times(result, "transfer_end")[1:] == [(pytest.approx(boundary_s + 15e-6), 2, 0)]
    rows = result.rows
    assert (rows.prompt_machine[0], rows.token_machine[0]) == (0, 2)
    assert rows.transfer_end_s[0] == pytest.approx(1.00001)  # that of its prompt's cache
    assert rows.finish_s[0] == pytest.approx(boundary_s + 15e-6 + 25 * 0.1)
    assert rows.tbt_max_s[0] == pytest.approx(0.1 + 15e-6)  # the transfer belongs to the gap
    assert result.meters.tokens_out == 31
    alone = run(dataclasses.replace(scenario, cluster=cluster("ptt")), policy, engine=engine, record=True)
    assert alone.migrations == 0
    assert times(alone, "ready") == [(pytest.approx(4.0), 1, -1)]


@engines
@pytest.mark.parametrize("batching", [None, VllmBatching(8, 64, 4)])
def test_room_is_reserved_before_a_cache_is_sent(engine: str, batching: VllmBatching | None) -> None:
    """Machine 2 holds 40 tokens and is full until 2.1 s; till then the cache is at 1, which waits to restart."""
    tested = migrating("ptt", switch_s=1.0, **({} if batching is None else {"batching": batching}))
    small = dataclasses.replace(tested.machines[2].profile, kv_capacity_override_tokens=40)
    machines = (*tested.machines[:2], dataclasses.replace(tested.machines[2], profile=small))
    tested = dataclasses.replace(tested, machines=machines)
    policy = Fixed([(0, 2), (0, 1)], roles_at={1.5: ((1, PROMPT),)})
    result = run(
        Scenario(tested, requests((0.0, 28, 12), (0.0, 10, 21)), tick_s=0.5), policy, engine=engine, record=True
    )
    first_end_s = 1.000028 + 1.1
    assert result.rows.finish_s[0] == pytest.approx(first_end_s)
    assert times(result, "transfer_start")[-1] == (pytest.approx(first_end_s), 1, 1)
    sent_s = first_end_s + 15e-6
    assert times(result, "transfer_end")[-1] == (pytest.approx(sent_s), 2, 1)
    assert times(result, "switching") == [(pytest.approx(sent_s), 1, -1)]
    assert result.rows.finish_s[1] == pytest.approx(sent_s + 1.5)


@engines
def test_caches_that_wait_and_requests_to_come_go_elsewhere(engine: str) -> None:
    """Machine 1 is full of one request when it gives up the token phase at 3.5 s.

    Two caches wait for room there, the fourth's prompt is in work, the fifth's waits.
    """
    tested = migrating("ptt", batching=dataclasses.replace(cluster().batching, max_batch_size=1))
    small = dataclasses.replace(tested.machines[1].profile, kv_capacity_override_tokens=40)
    machines = (tested.machines[0], dataclasses.replace(tested.machines[1], profile=small), tested.machines[2])
    tested = dataclasses.replace(tested, machines=machines)
    arrivals = requests((0.0, 10, 30), (0.0, 10, 30), (0.0, 10, 30), (0.0, 10, 30), (0.0, 10, 30))
    policy = Fixed([(0, 1)], roles_at={3.5: ((1, PROMPT),)})
    result = run(Scenario(tested, arrivals, tick_s=0.5), policy, engine=engine, record=True)
    moved = times(result, "moved")
    at_once = [(3.5, 2, 4), (3.5, 2, 1), (3.5, 2, 2)]  # the one that queues, then the inbox
    assert moved[:3] == at_once
    # The decode at its boundary, and the last at the end of its prompt phase.
    assert moved[3:] == [(pytest.approx(3.50001), 2, 0), (4.0, 2, 3)]
    assert result.rows.token_machine.tolist() == [2, 2, 2, 2, 2]
    assert result.meters.finished == 5


@engines
def test_prompts_that_wait_are_handed_over(engine: str) -> None:
    """At 0.5 s machine 0 gives up the prompt phase: the prompt in work ends there, the two that wait go to 1."""
    tested = migrating("pptt", batching=dataclasses.replace(cluster().batching, max_batch_size=1))
    policy = Fixed([(0, 2), (0, 2), (0, 3)], roles_at={0.5: ((0, TOKEN),)})
    arrivals = requests((0.0, 10, 2), (0.0, 20, 2), (0.0, 30, 2))
    result = run(Scenario(tested, arrivals, tick_s=0.5), policy, engine=engine, record=True)
    assert times(result, "moved") == [(0.5, 1, 1), (0.5, 1, 2)]
    assert result.rows.prompt_machine.tolist() == [0, 1, 1]
    assert result.rows.first_token_s.tolist() == pytest.approx([1.0, 1.5, 2.5])
    assert times(result, "ready") == [(pytest.approx(1.00001), 0, -1)]


@engines
def test_without_another_machine_draining_is_as_ever(engine: str) -> None:
    policy = Fixed([(1, 1)], roles_at={0.5: ((1, PROMPT),)})
    tested = cluster("pmt", kv_capacity_tokens=50)
    small = dataclasses.replace(tested.machines[2].profile, kv_capacity_override_tokens=20)
    machines = (*tested.machines[:2], dataclasses.replace(tested.machines[2], profile=small))
    digests = []
    for migrate in (False, True):
        one = dataclasses.replace(tested, machines=machines, migrate=migrate)
        result = run(Scenario(one, requests((0.0, 10, 21)), tick_s=0.5), policy, engine=engine, record=True)
        assert result.recorder is not None
        assert result.migrations == 0
        digests.append(result.recorder.digest())
    assert digests[0] == digests[1]


@engines
def test_many_decodes_go_round(engine: str) -> None:
    """Forty decodes pass through seven machines, each the only token machine in its turn."""
    turns: dict[float, tuple[tuple[int, int], ...]] = {}
    for n in range(2, 8):
        turns |= {n - 1.0: ((n, TOKEN),), n - 0.5: ((n - 1, PROMPT),)}
    tested = dataclasses.replace(cluster("ptpppppp", latency=law(0.5, 0.05)), migrate=True)
    arrivals = requests(*((0.0, 10, 200) for _ in range(40)))
    result = run(Scenario(tested, arrivals, tick_s=0.5), Fixed([(0, 1)], roles_at=turns), engine=engine)
    assert result.meters.finished == 40
    assert result.meters.tokens_out == 8000
    assert result.migrations == 6 * 40
    assert result.rows.token_machine.tolist() == [7] * 40
    assert result.rows.finish_s == pytest.approx(0.5 + 199 * 0.05)  # nothing else keeps them waiting


# --- with outages, and clients that give up --------------------------------------------------------------------------


def moving(*outages: tuple[int, float, float], network: str = "ideal", deadline_s: float = np.inf) -> Scenario:
    """A token's cache takes 25 ms. Machine 1 has the cache at 1.25 s and gives up the token phase at 1.5 s.

    At the boundary, 1.55 s, 4 of 31 tokens are out; the 13 in the cache are at machine 2 at 1.875 s.
    """
    tested = migrating("pttt", transfer=Transfer(network=network))
    profile = dataclasses.replace(tested.machines[0].profile, link_bytes_per_s=40.0 * MODEL.kv_bytes_per_token)
    machines = tuple(dataclasses.replace(machine, profile=profile) for machine in tested.machines)
    arrivals = dataclasses.replace(requests((0.0, 10, 31)), deadline_s=np.array([deadline_s]))
    faults = Faults(outages=tuple(Outage(*outage) for outage in outages))
    return Scenario(dataclasses.replace(tested, machines=machines), arrivals, tick_s=0.5, faults=faults)


def moved_to(scenario: Scenario, engine: str) -> RunResult:
    policy = Fixed([(0, 1), (0, 3)], roles_at={1.5: ((1, PROMPT),)})
    return run(scenario, policy, engine=engine, record=True)


@engines
def test_where_the_prompt_was_does_not_matter_any_more(engine: str) -> None:
    result = moved_to(moving((0, 1.7, 9.0)), engine)
    assert (result.migrations, result.restarts) == (1, 0)
    assert result.rows.finish_s[0] == pytest.approx(1.875 + 27 * 0.1)
    assert result.rows.tbt_max_s[0] == pytest.approx(1.975 - 1.55)


@engines
@pytest.mark.parametrize("network", ["ideal", "shared"])
@pytest.mark.parametrize("machine", [1, 2])
def test_either_end_of_a_move_goes_down(engine: str, network: str, machine: int) -> None:
    """At 1.7 s it begins again with 14 tokens; its fifth token is out at 2.7 s, its cache at machine 3 at 3.05 s."""
    result = moved_to(moving((machine, 1.7, 9.0), network=network), engine)
    assert (result.migrations, result.restarts) == (1, 1)
    assert times(result, "restart") == [(1.7, -1, 0)]
    assert times(result, "resumed") == [(pytest.approx(2.7), 0, 0)]
    assert result.rows.transfer_end_s[0] == pytest.approx(3.05)
    assert result.rows.tbt_max_s[0] == pytest.approx(2.7 - 1.55)
    assert result.rows.finish_s[0] == pytest.approx(3.05 + 26 * 0.1)
    assert result.meters.tokens_out == 31


@engines
@pytest.mark.parametrize("network", ["ideal", "shared"])
@pytest.mark.parametrize(("deadline_s", "tokens_out"), [(1.52, 3), (1.7, 4), (1.9, 4)])
def test_a_client_gives_up_in_a_move(engine: str, network: str, deadline_s: float, tokens_out: int) -> None:
    """In the iteration before it, on the way, or in the first iteration after it: what that makes is not delivered."""
    result = moved_to(moving(network=network, deadline_s=deadline_s), engine)
    assert result.rows.status[0] == ABANDONED
    assert result.meters.tokens_out == tokens_out
    assert result.migrations == (deadline_s > 1.55)


@engines
def test_nothing_moves_to_a_machine_that_is_down(engine: str) -> None:
    """The decode goes to machine 3, for 2 is down; prompts that wait at 0 go to 2, for 1 is down."""
    assert moved_to(moving((2, 1.2, 9.0)), engine).rows.token_machine.tolist() == [3]
    tested = migrating("ppptt", batching=dataclasses.replace(cluster().batching, max_batch_size=1))
    arrivals = requests((0.0, 10, 2), (0.0, 20, 2), (0.0, 30, 2))
    scenario = Scenario(tested, arrivals, tick_s=0.5, faults=Faults((Outage(1, 0.2, 9.0),)))
    result = run(scenario, Fixed([(0, 3)], roles_at={0.5: ((0, TOKEN),)}), engine=engine, record=True)
    assert times(result, "moved") == [(0.5, 2, 1), (0.5, 2, 2)]
    assert result.restarts == 0


@engines
def test_a_machine_goes_down_while_it_drains(engine: str) -> None:
    """Machine 1 gives up the token phase at 0.5 s, when 2 is too small and 3 down: two requests wait for it still.

    It goes down at 0.7 s. The second, which waits, begins again then; the first, in work, at 1 s, behind it.
    """
    tested = migrating("pttm", batching=dataclasses.replace(cluster().batching, max_batch_size=1))
    small = dataclasses.replace(tested.machines[2].profile, kv_capacity_override_tokens=12)
    machines = [*tested.machines]
    machines[2] = dataclasses.replace(machines[2], profile=small)
    tested = dataclasses.replace(tested, machines=tuple(machines))
    faults = Faults((Outage(3, 0.2, 0.6), Outage(1, 0.7, 9.0)))
    scenario = Scenario(tested, requests((0.0, 10, 3), (0.0, 10, 3)), tick_s=0.5, faults=faults)
    policy = Fixed([(0, 1), (0, 1), (0, 3), (0, 3)], roles_at={0.5: ((1, PROMPT),)})
    result = run(scenario, policy, engine=engine, record=True)
    assert times(result, "restart") == [(0.7, -1, 1), (1.0, -1, 0)]
    assert result.migrations == 0
    assert result.rows.first_token_s.tolist() == pytest.approx([3.0, 2.0])
    assert result.rows.token_machine.tolist() == [3, 3]

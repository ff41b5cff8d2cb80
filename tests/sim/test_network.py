"""Transfers over a shared network, worked out by hand."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from splitgym.sim.clock import ARRIVAL, Clock
from splitgym.sim.cluster import Cluster, Machine, Scenario, Transfer
from splitgym.sim.network import SharedNetwork
from splitgym.sim.run import run
from splitgym.view import ClusterView, Decision
from splitgym.workload import Requests
from tests.sim.build import cluster, law

PROMPT_S, BYTES_PER_S = 1.0, 1e6


class Fixed:
    """Request by request: these prompt and token machines."""

    name = "fixed"

    def __init__(self, *pairs: tuple[int, int]) -> None:
        self.pairs = pairs
        self.count = 0

    def reset(self, cluster: Cluster, seed: int) -> None:
        self.count = 0

    def decide(self, view: ClusterView) -> Decision:
        self.count += 1
        return Decision(*self.pairs[self.count - 1])


def transfers_s(
    engine: str, roles: str, pairs: list[tuple[int, int]], arrival_s: list[float], transfer: Transfer
) -> np.ndarray:
    """How long each cache takes, sent at its request's arrival + 1 s."""
    tested = cluster(roles, latency=law(PROMPT_S, 0.1), kv_capacity_tokens=10_000, transfer=transfer)
    profile = dataclasses.replace(tested.machines[0].profile, link_bytes_per_s=BYTES_PER_S)
    machines = tuple(Machine(machine.role, profile) for machine in tested.machines)
    tested = dataclasses.replace(tested, machines=machines)
    tokens = round(BYTES_PER_S / tested.model.kv_bytes_per_token)  # a second on a link of its own, about
    count = len(pairs)
    arrivals = Requests(np.array(arrival_s), np.full(count, tokens), np.full(count, 3), np.full(count, 3.0))
    rows = run(Scenario(tested, arrivals, tick_s=None), Fixed(*pairs), engine=engine).rows
    alone_s = tokens * tested.model.kv_bytes_per_token / BYTES_PER_S
    return (rows.transfer_end_s - rows.first_token_s) / alone_s


@pytest.mark.parametrize("engine", ["reference", "compiled"])
def test_two_that_meet_at_a_receiver(engine: str) -> None:
    shared = Transfer(network="shared")
    # the second starts half a second later: both at half the rate, until the first is there; the rest at full rate
    apart = transfers_s(engine, "ppt", [(0, 2), (1, 2)], [0.0, 0.5], shared)
    assert apart == pytest.approx([1.5, 1.5], abs=0.02)
    assert transfers_s(engine, "ppt", [(0, 2), (1, 2)], [0.0, 0.0], shared) == pytest.approx([2.0, 2.0], rel=1e-9)
    assert transfers_s(engine, "ppt", [(0, 2), (1, 2)], [0.0, 0.0], Transfer()) == pytest.approx([1.0, 1.0], rel=1e-9)


@pytest.mark.parametrize("engine", ["reference", "compiled"])
def test_others_links_do_not_matter(engine: str) -> None:
    taken = transfers_s(engine, "pptt", [(0, 2), (1, 3)], [0.0, 0.0], Transfer(network="shared"))
    assert taken == pytest.approx([1.0, 1.0], rel=1e-9)


@pytest.mark.parametrize("engine", ["reference", "compiled"])
def test_overheads_come_before_the_link(engine: str) -> None:
    tokens = round(BYTES_PER_S / cluster("pt").model.kv_bytes_per_token)
    overhead_s = 0.25 + 0.01 * -(-tokens // 16)
    for network in ("ideal", "shared"):
        taken = transfers_s(engine, "pt", [(0, 1)], [0.0], Transfer("serialized", 0.25, 0.01, network))
        assert taken == pytest.approx([1.0 + overhead_s], abs=0.5 / tokens + 1e-6)


TRANSFERS = st.lists(
    st.tuples(st.integers(0, 20), st.integers(0, 2), st.integers(3, 5), st.sampled_from([0, 1, 2, 2.5, 7])),
    min_size=1,
    max_size=25,
)


@given(TRANSFERS, st.lists(st.sampled_from([1.0, 1.0, 0.5, 3.0]), min_size=6, max_size=6))
def test_against_flows_followed_one_by_one(
    transfers: list[tuple[int, int, int, float]], link_bytes_per_s: list[float]
) -> None:
    """(start, sender, receiver, bytes): their ends are those of a network that recomputes every rate at every event."""
    transfers.sort()
    clock, end_s = Clock(), [np.nan] * len(transfers)
    network = SharedNetwork(clock, link_bytes_per_s)

    def begin(number: int) -> None:
        def arrive() -> None:
            end_s[number] = clock.now

        _, source, destination, size_bytes = transfers[number]
        network.begin(number, source, destination, size_bytes, arrive)

    for number, transfer in enumerate(transfers):
        clock.at(transfer[0], ARRIVAL, request=number).callbacks.append(lambda _, number=number: begin(number))
    clock.run()
    # equal rates are summed in other steps: roundings of 1e-16, some hundred of them
    assert end_s == pytest.approx(followed(transfers, link_bytes_per_s), rel=1e-12)


def followed(transfers: list[tuple[int, int, int, float]], link_bytes_per_s: list[float]) -> list[float]:
    """When each transfer ends."""
    end_s, left, now_s = [np.nan] * len(transfers), dict[int, float](), 0.0
    starts = [(transfer[0], number) for number, transfer in enumerate(transfers)]
    while starts or left:
        ends = [transfers[number][1:3] for number in left]
        rates = {
            number: min(
                link_bytes_per_s[machine] / sum(end[side] == machine for end in ends)
                for side, machine in enumerate(transfers[number][1:3])
            )
            for number in left
        }
        due_s = min((now_s + left[number] / rate for number, rate in rates.items()), default=np.inf)
        next_s = min(due_s, starts[0][0]) if starts else due_s
        for number, rate in rates.items():
            left[number] -= rate * (next_s - now_s)
        now_s = next_s
        for number in [number for number, left_bytes in left.items() if left_bytes <= 1e-9]:
            end_s[number] = now_s
            del left[number]
        if starts and starts[0][0] == now_s:
            _, number = starts.pop(0)
            left[number] = transfers[number][3]
    return end_s

"""A scenario whose times are round: TTFT alone is 1 s, a token alone 0.1 s."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from splitgym.cards import load_card
from splitgym.hardware import LatencyLaw
from splitgym.sim.cluster import Scenario
from splitgym.sim.ledger import Meters
from splitgym.sim.rows import COMPLETED, FAILED, IN_FLIGHT, RequestRows
from splitgym.workload import Requests

LAW = LatencyLaw(
    decode_points=((1, 0.1),),
    batch_points=((1, 1.0),),
    decode_context_s=0.0,
    mixed_context_s=0.0,
    mixed_decode_s=0.0,
    attention_s=0.0,
)


def rows_of(*requests: tuple[float, float, float, int], end_s: float, failed: tuple[int, ...] = ()) -> RequestRows:
    """Rows of (arrival, first token, finish, output tokens); NaN for what never came."""
    arrival_s, first_s, finish_s = (np.array([request[k] for request in requests], float) for k in range(3))
    outputs = np.array([request[3] for request in requests])
    status = np.where(np.isnan(finish_s), IN_FLIGHT, COMPLETED)
    status[list(failed)] = FAILED
    machine, nothing = np.zeros(len(requests), np.int64), np.full(len(requests), np.nan)
    return RequestRows(
        arrival_s=arrival_s,
        prompt_tokens=np.full(len(requests), 100),
        output_tokens=outputs,
        prompt_machine=machine,
        token_machine=machine,
        prompt_start_s=arrival_s,
        first_token_s=first_s,
        transfer_end_s=nothing,
        finish_s=finish_s,
        tbt_max_s=nothing,
        status=status,
        end_s=end_s,
    )


@pytest.fixture
def scenario() -> Scenario:
    cluster = load_card("Toy").default_cluster
    baseline = dataclasses.replace(cluster.baseline, law=LAW)
    nothing = Requests(np.empty(0), np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0))
    return Scenario(dataclasses.replace(cluster, baseline=baseline), nothing, warmup_s=10.0, horizon_s=110.0)


@pytest.fixture
def meters() -> Meters:
    return Meters(
        time_s=120.0,
        time_in_system_s=0.0,
        slowdown=0.0,
        ttft_missed=0,
        tbt_missed=0,
        energy_j=7.2e6,
        arrived=0,
        finished=0,
        tokens_out=0,
        prompt_energy_j=3.6e6,
        token_energy_j=1.8e6,
    )

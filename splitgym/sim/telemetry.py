"""Telemetry: what a machine says of itself is as old as its last scrape that was not lost.

Nothing happens at a scrape. A machine's report is brought up to date before its row of the books changes and where it
is read: whatever the row says then, it has said since the scrape.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from splitgym.jit import lean_njit, njit
from splitgym.randomness import Streams
from splitgym.sim.cluster import Cluster
from splitgym.sim.hashing import hashed_uniform

FloatArray = npt.NDArray[np.float64]

# Columns of a machine's report: what it said, when, when it will say the next, which scrape that is, and how it is
# scraped.
RUNNING, WAITING, KV_HELD, SCRAPED_S, NEXT_S, NEXT, INTERVAL_S, JITTER_S, LOSS, KEY = range(10)
NUM_REPORT_COLUMNS = 10


def new_reports(cluster: Cluster, seed: int, zeros: Callable[..., npt.NDArray[Any]] = np.zeros) -> FloatArray:
    """(num_machines, NUM_REPORT_COLUMNS) of a run's start, when machines are idle; no rows where nothing is stale."""
    telemetry = cluster.telemetry
    if telemetry is None:
        return zeros((0, NUM_REPORT_COLUMNS))
    reports: FloatArray = zeros((cluster.num_machines, NUM_REPORT_COLUMNS))
    reports[:, INTERVAL_S] = telemetry.scrape_interval_s
    reports[:, JITTER_S] = telemetry.jitter_s
    reports[:, LOSS] = telemetry.loss
    reports[:, KEY] = Streams(seed).key("telemetry") >> 11  # 53 bits: exact as float64
    for m in range(cluster.num_machines):
        plan_scrape(reports[m], m)
    return reports


@njit
def plan_scrape(report: FloatArray, m: int) -> None:
    """Find the next scrape of machine ``m`` that does not fail; the k-th is at k · interval + drawn jitter."""
    key = int(report[KEY])
    k = int(report[NEXT]) + 1
    while hashed_uniform(key, 2 * m, k) < report[LOSS]:
        k += 1
    report[NEXT] = k
    report[NEXT_S] = k * report[INTERVAL_S] + report[JITTER_S] * hashed_uniform(key, 2 * m + 1, k)


@njit
def catch_up(report: FloatArray, m: int, time_s: float) -> None:
    """Go on to the last scrape up to ``time_s``."""
    while report[NEXT_S] <= time_s:
        report[SCRAPED_S] = report[NEXT_S]
        plan_scrape(report, m)


@lean_njit
def scrape(report: FloatArray, m: int, time_s: float, running: float, waiting: float, kv_held: float) -> bool:
    """Keep what machine ``m`` has said of itself since its last scrape up to ``time_s``; whether there is a new one."""
    if time_s < report[NEXT_S]:
        return False
    catch_up(report, m, time_s)
    report[RUNNING], report[WAITING], report[KV_HELD] = running, waiting, kv_held
    return True

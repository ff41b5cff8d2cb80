"""Running totals of a run: what rewards are made of, charged as time passes."""

from __future__ import annotations

from dataclasses import dataclass
from heapq import heappop, heappush
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from splitgym.sim.cluster import Cluster
from splitgym.workload import Requests

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Baseline:
    """Each request alone on the cluster's baseline machine, and its weights in the weighted slowdown."""

    ttft_s: FloatArray  # (num_requests,)
    e2e_s: FloatArray  # (num_requests,)
    prompt_weight: FloatArray  # (num_requests,) ½/TTFT₀, or 1/TTFT₀ where there is one token
    token_weight: FloatArray  # (num_requests,) ½/(E2E₀ − TTFT₀), or 0 where there is one token
    ttft_allowed_s: FloatArray  # (num_requests,) until the first token is missed
    token_phase_allowed_s: FloatArray  # (num_requests,) from it until the last one is


def baseline_of(cluster: Cluster, requests: Requests) -> Baseline:
    """Uncontended times and weights of ``requests`` on ``cluster.baseline``."""
    ttft_s, e2e_s = cluster.baseline.law.uncontended_s(requests.prompt_tokens, requests.output_tokens)
    several = requests.output_tokens > 1
    prompt_weight = np.where(several, 0.5, 1.0) / ttft_s
    token_weight = np.where(several, 0.5 / np.where(several, e2e_s - ttft_s, 1.0), 0.0)
    promised = cluster.promises[requests.slo_class].T
    ttft_allowed_s = promised[0] * ttft_s + promised[1]
    token_phase_allowed_s = promised[2] * (e2e_s - ttft_s) + promised[3] * (requests.output_tokens - 1)
    return Baseline(ttft_s, e2e_s, prompt_weight, token_weight, ttft_allowed_s, token_phase_allowed_s)


class Meters(NamedTuple):
    """Totals from the run's start to ``time_s``."""

    time_s: float
    time_in_system_s: float  # ∫ unfinished requests dt
    slowdown: float  # ∫ Σ over unfinished requests of their weight in the present phase dt
    ttft_missed: int  # requests whose first token was not there at their TTFT deadline (P90 multiple of their SLO)
    tbt_missed: int  # requests unfinished at first token + P90 multiple x uncontended token phase (or gaps x seconds)
    energy_j: float  # of all machines, idling included
    arrived: int
    finished: int
    tokens_out: int
    prompt_energy_j: float  # of the prompt phase: see `splitgym.sim.energy`
    token_energy_j: float

    @property
    def idle_energy_j(self) -> float:
        """What machines have drawn between iterations; an iteration counts, whole, from its start."""
        return self.energy_j - self.prompt_energy_j - self.token_energy_j


class Ledger:
    """Integrates as events happen. A failed request stays unfinished: dropping work is never cheaper than doing it."""

    def __init__(self, cluster: Cluster, requests: Requests) -> None:
        baseline = baseline_of(cluster, requests)
        self.prompt_weight: list[float] = baseline.prompt_weight.tolist()
        self.token_weight: list[float] = baseline.token_weight.tolist()
        self._ttft_allowed_s: list[float] = baseline.ttft_allowed_s.tolist()
        self._token_phase_allowed_s: list[float] = baseline.token_phase_allowed_s.tolist()
        self._idle_w = sum(machine.profile.power.idle_w for machine in cluster.machines)
        self._time_s = 0.0
        self._unfinished = 0
        self._weight = 0.0
        self._time_in_system_s = 0.0
        self._slowdown = 0.0
        self._prompt_energy_j = 0.0
        self._token_energy_j = 0.0
        self._not_idle_j = 0.0  # what busy machines would have drawn idle
        self._deadlines: list[tuple[float, int, bool]] = []  # heap of (deadline, request, of its first token)
        self._waiting: set[int] = set()  # requests without a first token
        self._decoding: set[int] = set()
        self._missed = [0, 0]
        self.arrived = 0
        self.finished = 0
        self.tokens_out = 0

    @property
    def unfinished(self) -> int:
        """Requests that have arrived and are not finished, failed ones among them."""
        return self._unfinished

    def on_arrival(self, request: int, time_s: float) -> None:
        """A request arrives."""
        self._integrate(time_s)
        self.arrived += 1
        self._unfinished += 1
        self._weight += self.prompt_weight[request]
        self._waiting.add(request)
        heappush(self._deadlines, (time_s + self._ttft_allowed_s[request], request, True))

    def on_first_token(self, request: int, time_s: float) -> None:
        """The prompt phase ends."""
        self._integrate(time_s)
        self._settle(time_s)
        self.tokens_out += 1
        self._weight += self.token_weight[request] - self.prompt_weight[request]
        self._waiting.remove(request)
        self._decoding.add(request)
        if self.token_weight[request] > 0:
            heappush(self._deadlines, (time_s + self._token_phase_allowed_s[request], request, False))

    def on_finish(self, request: int, time_s: float) -> None:
        """The last token is out."""
        self._integrate(time_s)
        self._settle(time_s)
        self.finished += 1
        self._unfinished -= 1
        self._weight -= self.token_weight[request]
        self._decoding.remove(request)

    def on_energy(self, prompt_energy_j: float, token_energy_j: float, idle_j: float) -> None:
        """An iteration takes this for either phase; in its time the machine would have drawn ``idle_j`` idle."""
        self._prompt_energy_j += prompt_energy_j
        self._token_energy_j += token_energy_j
        self._not_idle_j += idle_j

    def meters(self, time_s: float) -> Meters:
        """Totals up to ``time_s``, which is not before the last event."""
        self._integrate(time_s)
        self._settle(time_s)
        return Meters(
            time_s,
            self._time_in_system_s,
            self._slowdown,
            self._missed[0],
            self._missed[1],
            self._prompt_energy_j + self._token_energy_j + (self._idle_w * time_s - self._not_idle_j),
            self.arrived,
            self.finished,
            self.tokens_out,
            self._prompt_energy_j,
            self._token_energy_j,
        )

    def _integrate(self, time_s: float) -> None:
        dt_s = time_s - self._time_s
        self._time_in_system_s += self._unfinished * dt_s
        self._slowdown += self._weight * dt_s
        self._time_s = time_s

    def _settle(self, time_s: float) -> None:
        while self._deadlines and self._deadlines[0][0] < time_s:
            _, request, first_token = heappop(self._deadlines)
            if first_token and request in self._waiting:
                self._missed[0] += 1
            elif not first_token and request in self._decoding:
                self._missed[1] += 1

"""What each counted request is charged: its times, what they would have been alone, and their ratio."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from splitgym.sim.cluster import Scenario
from splitgym.sim.rows import COMPLETED, RequestRows

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Charged:
    """Latencies of the requests that arrived after warm-up, in order of arrival.

    A request that is unfinished at the run's end, failed or abandoned is charged up to the end, and never
    less than it would have taken alone on the baseline machine. So leaving a request undone never looks
    better than doing it.

    TBT is (E2E − TTFT)/(output tokens − 1); where no token came at all, E2E/(output tokens − 1). One-token
    requests have NaN there.
    """

    ttft_s: FloatArray  # (num_counted,)
    tbt_s: FloatArray  # (num_counted,)
    e2e_s: FloatArray  # (num_counted,)
    alone_ttft_s: FloatArray  # (num_counted,) uncontended on the card's baseline machine
    alone_tbt_s: FloatArray  # (num_counted,)
    alone_e2e_s: FloatArray  # (num_counted,)
    completed: BoolArray  # (num_counted,)
    kept: BoolArray  # (num_counted,) completed, and within what is promised: TTFT, TBT and, where it is, E2E
    slo_class: IntArray | None = None  # (num_counted,) where there are classes

    @property
    def ttft_slowdown(self) -> FloatArray:
        """(num_counted,) TTFT/TTFT₀."""
        return self.ttft_s / self.alone_ttft_s

    @property
    def tbt_slowdown(self) -> FloatArray:
        """(num_counted,) TBT/TBT₀, NaN for one token."""
        return self.tbt_s / self.alone_tbt_s

    @property
    def e2e_slowdown(self) -> FloatArray:
        """(num_counted,) E2E/E2E₀."""
        return self.e2e_s / self.alone_e2e_s

    @property
    def slowdown(self) -> FloatArray:
        """(num_counted,) ½ · TTFT/TTFT₀ + ½ · (E2E − TTFT)/(E2E₀ − TTFT₀); for one token TTFT/TTFT₀."""
        one_token = np.isnan(self.alone_tbt_s)
        alone_token_s = np.where(one_token, 1.0, self.alone_e2e_s - self.alone_ttft_s)
        token_phase = (self.e2e_s - self.ttft_s) / alone_token_s
        return np.where(one_token, self.ttft_slowdown, 0.5 * self.ttft_slowdown + 0.5 * token_phase)


def charge(rows: RequestRows, scenario: Scenario) -> Charged:
    """Charge every request that arrived after the scenario's warm-up."""
    counted = rows.take(rows.arrival_s >= scenario.warmup_s)
    law = scenario.cluster.baseline.law
    alone_ttft_s, alone_e2e_s = law.uncontended_s(counted.prompt_tokens, counted.output_tokens)
    waited_s = counted.end_s - counted.arrival_s + counted.frontend_s
    completed = counted.status == COMPLETED
    answered = ~np.isnan(counted.first_token_s)
    ttft_s = np.where(answered, counted.ttft_s, np.maximum(waited_s, alone_ttft_s + counted.frontend_s))
    e2e_s = np.where(completed, counted.e2e_s, np.maximum(waited_s, ttft_s + alone_e2e_s - alone_ttft_s))
    gaps = np.where(counted.output_tokens > 1, counted.output_tokens - 1.0, np.nan)
    tbt_s, alone_tbt_s = np.where(answered, e2e_s - ttft_s, e2e_s) / gaps, (alone_e2e_s - alone_ttft_s) / gaps
    promised = scenario.cluster.promises.T
    promised = promised[:, counted.slo_class] if counted.slo_class is not None else promised
    quick = _within(ttft_s, alone_ttft_s, promised[0], promised[1])
    smooth = np.isnan(tbt_s) | _within(tbt_s, alone_tbt_s, promised[2], promised[3])
    return Charged(
        ttft_s=ttft_s,
        tbt_s=tbt_s,
        e2e_s=e2e_s,
        alone_ttft_s=alone_ttft_s,
        alone_tbt_s=alone_tbt_s,
        alone_e2e_s=alone_e2e_s,
        completed=completed,
        kept=completed & quick & smooth & (e2e_s <= promised[4]),
        slo_class=counted.slo_class,
    )


def _within(time_s: FloatArray, alone_s: FloatArray, multiple: FloatArray, bound_s: FloatArray) -> BoolArray:
    """Whether times keep their bounds: a multiple of what they are alone, or where that is 0, seconds."""
    return np.where(multiple > 0, time_s / alone_s <= multiple, time_s <= bound_s)

"""The router's books: what was assigned and not yet seen finished, one row of plain numbers for each machine.

The engines (and the router) write them as things happen; `fill_view` turns them into the features of a view, and
`potential` into what the training rewards need. Both are compiled once and serve both engines.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from splitgym.features import NUM_CLUSTER_FEATURES, NUM_MACHINE_FEATURES, NUM_REQUEST_FEATURES
from splitgym.hardware.latency import iteration_s
from splitgym.jit import njit
from splitgym.sim.cluster import Cluster
from splitgym.view import DOWN, DRAINING, PROMPT, READY, SWITCHING, TICK, TOKEN, ClusterView

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

# Columns of a machine's row.
(
    ROLE,
    LIFECYCLE,
    PENDING_PROMPTS,
    PENDING_TOKENS,
    PENDING_S,
    PROMPT_SINCE_S,
    DECODES,
    COMING,
    CONTEXT,
    REMAINING,
    BOOKED_KV,
    RUNNING,
    WAITING,
    KV_HELD,
    # Only for training: with true lengths, weighted by the request's share of the slowdown (`potential`).
    PROMPT_WEIGHT,
    PROMPT_WEIGHTED_S,
    TOKEN_WEIGHT,
    TOKEN_WEIGHTED,
    COMING_CONTEXT,
) = range(19)
NUM_COLUMNS = 19

# Columns of a machine's fixed facts.
KV_CAPACITY, PROMPT_RATE, DECODE_ITERATION_S, LINK_BYTES_PER_S = range(4)

WINDOW_S = 10.0
"""Arrival rates are over the current window and the one before: 10 to 20 s."""


class Books:
    """One row per machine, and what arrived lately."""

    def __init__(self, cluster: Cluster) -> None:
        machines = cluster.machines
        self.rows: FloatArray = np.zeros((len(machines), NUM_COLUMNS))
        self.rows[:, ROLE] = [machine.role for machine in machines]
        self.laws = cluster.laws
        self.facts: FloatArray = np.array(
            [
                [
                    machine.profile.kv_capacity_tokens,
                    2048 / iteration_s(law, 2048, 1, 2048 * 2048, 0, 0, 0),
                    iteration_s(law, 0, 0, 0, 0, 32, 32 * 1024),
                    machine.profile.link_bytes_per_s,
                ]
                for machine, law in zip(machines, self.laws, strict=True)
            ]
        )
        self._kv_bytes_per_token = float(cluster.model.kv_bytes_per_token)
        self._transfer_overhead_s = cluster.transfer.overhead_s
        self._switch_s = cluster.switch_s
        self._baseline_law = cluster.baseline.law.packed()
        self._arrived: FloatArray = np.zeros((2, 3))  # (this window, the one before) x (requests, prompt, output)
        self._window = 0
        count = len(machines)
        self._machines: FloatArray = np.zeros((count, NUM_MACHINE_FEATURES))
        self._request: FloatArray = np.zeros(NUM_REQUEST_FEATURES)
        self._cluster: FloatArray = np.zeros(NUM_CLUSTER_FEATURES)
        self._prompt_mask: BoolArray = np.zeros(count, np.bool_)
        self._token_mask: BoolArray = np.zeros(count, np.bool_)
        self._role_mask: BoolArray = np.zeros((count, 3), np.bool_)

    def arrived(self, time_s: float, prompt_tokens: int, predicted_output_tokens: float) -> None:
        """Count an arrival in the rates."""
        self._roll(time_s)
        self._arrived[0] += (1.0, prompt_tokens, predicted_output_tokens)

    def _roll(self, time_s: float) -> None:
        window = int(time_s // WINDOW_S)
        if window != self._window:
            self._arrived[1] = self._arrived[0] if window == self._window + 1 else 0.0
            self._arrived[0] = 0.0
            self._window = window

    def prompt_s(self, machine: int, prompt_tokens: int) -> float:
        """The prompt phase alone on ``machine``."""
        return float(iteration_s(self.laws[machine], prompt_tokens, 1, prompt_tokens * prompt_tokens, 0, 0, 0))

    def view(self, kind: int, time_s: float, prompt_tokens: int, predicted_output_tokens: float) -> ClusterView:
        """What may be known at ``time_s``; at a tick the lengths are 0."""
        self._roll(time_s)
        fill_view(
            kind == TICK,
            time_s,
            prompt_tokens,
            predicted_output_tokens,
            self.rows,
            self.facts,
            self.laws,
            self._baseline_law,
            self._arrived,
            self._kv_bytes_per_token,
            self._transfer_overhead_s,
            self._switch_s,
            self._machines,
            self._request,
            self._cluster,
            self._prompt_mask,
            self._token_mask,
            self._role_mask,
        )
        return ClusterView(
            kind,
            time_s,
            self._machines,
            self._request,
            self._cluster,
            self._prompt_mask,
            self._token_mask,
            self._role_mask,
        )

    def masks(self, prompt_tokens: int) -> tuple[BoolArray, BoolArray, BoolArray]:
        """The masks of a view alone: prompt (num_machines,), token (num_machines,), role (num_machines, 3)."""
        masks = self._prompt_mask, self._token_mask, self._role_mask
        fill_masks(self.rows, self.facts[:, KV_CAPACITY], prompt_tokens, *masks)
        return masks

    def potential(self, time_s: float) -> float:
        """Predicted remaining weighted slowdown of all unfinished requests, ≥ 0 (see `potential`)."""
        return float(potential(time_s, self.rows, self.laws))


@njit
def fill_view(
    is_tick: bool,
    time_s: float,
    prompt_tokens: int,
    predicted_output_tokens: float,
    rows: FloatArray,
    facts: FloatArray,
    laws: FloatArray,
    baseline_law: FloatArray,
    arrived: FloatArray,
    kv_bytes_per_token: float,
    transfer_overhead_s: float,
    switch_s: float,
    machines: FloatArray,
    request: FloatArray,
    cluster: FloatArray,
    prompt_mask: BoolArray,
    token_mask: BoolArray,
    role_mask: BoolArray,
) -> None:
    """Write the features of `splitgym.features`, in its order, and the masks."""
    count = len(rows)
    fill_masks(rows, facts[:, KV_CAPACITY], prompt_tokens, prompt_mask, token_mask, role_mask)
    cluster[:] = 0.0
    for m in range(count):
        row = rows[m]
        role = int(row[ROLE])
        lifecycle = int(row[LIFECYCLE])
        out = machines[m]
        for r in range(3):
            out[r] = 1.0 if role == r else 0.0
        for state in range(4):
            out[3 + state] = 1.0 if lifecycle == state else 0.0
        pending_s = 0.0
        if row[PENDING_PROMPTS] > 0:
            pending_s = max(row[PENDING_S] - (time_s - row[PROMPT_SINCE_S]), 0.0)
        out[7] = facts[m, KV_CAPACITY]
        out[8] = facts[m, PROMPT_RATE]
        out[9] = facts[m, DECODE_ITERATION_S]
        out[10] = row[PENDING_PROMPTS]
        out[11] = row[PENDING_TOKENS]
        out[12] = pending_s
        out[13] = row[DECODES]
        out[14] = row[COMING]
        out[15] = row[CONTEXT]
        out[16] = max(row[REMAINING], 0.0)
        out[17] = row[BOOKED_KV]
        out[18] = row[RUNNING]
        out[19] = row[WAITING]
        out[20] = row[KV_HELD]
        out[21:25] = 0.0
        if not is_tick:
            law = laws[m]
            alone_s = iteration_s(law, prompt_tokens, 1, prompt_tokens * prompt_tokens, 0, 0, 0)
            decodes = int(row[DECODES])
            context = int(row[CONTEXT])
            out[21] = alone_s
            out[22] = pending_s + iteration_s(law, prompt_tokens, 1, prompt_tokens * prompt_tokens, 0, decodes, context)
            joined = decodes + int(row[COMING]) + 1
            out[23] = iteration_s(law, 0, 0, 0, 0, joined, context + int(row[COMING_CONTEXT]) + prompt_tokens + 1)
            out[24] = transfer_overhead_s + kv_bytes_per_token * prompt_tokens / facts[m, LINK_BYTES_PER_S]
        if lifecycle != DOWN:
            cluster[role] += 1.0
        cluster[3] += row[PENDING_TOKENS]
        cluster[4] += pending_s
        cluster[5] += row[DECODES] + row[COMING]
        cluster[6] += row[CONTEXT]
    span_s = WINDOW_S + time_s % WINDOW_S if time_s >= WINDOW_S else max(time_s, 1.0)
    for k in range(3):
        cluster[7 + k] = (arrived[0, k] + arrived[1, k]) / span_s
    cluster[10] = switch_s
    request[:] = 0.0
    if not is_tick:
        request[0] = prompt_tokens
        request[1] = predicted_output_tokens
        request[2] = iteration_s(baseline_law, prompt_tokens, 1, prompt_tokens * prompt_tokens, 0, 0, 0)
        middle = prompt_tokens + int(predicted_output_tokens / 2)
        request[3] = iteration_s(baseline_law, 0, 0, 0, 0, 1, middle)


@njit
def fill_masks(
    rows: FloatArray,
    capacity: FloatArray,
    prompt_tokens: int,
    prompt_mask: BoolArray,
    token_mask: BoolArray,
    role_mask: BoolArray,
) -> None:
    """Hide the impossible: machines that are not ready (unless none is), or too small; a pool left empty."""
    count = len(rows)
    prompt_capable = 0
    token_capable = 0
    prompt_ready = False
    token_ready = False
    for m in range(count):
        role = int(rows[m, ROLE])
        lifecycle = int(rows[m, LIFECYCLE])
        if lifecycle == DOWN:
            continue
        ready = lifecycle == READY
        if role != TOKEN:
            prompt_capable += 1
            prompt_ready = prompt_ready or (ready and capacity[m] > prompt_tokens)
        if role != PROMPT:
            token_capable += 1
            token_ready = token_ready or (ready and capacity[m] > prompt_tokens)
    for m in range(count):
        role = int(rows[m, ROLE])
        lifecycle = int(rows[m, LIFECYCLE])
        ready = lifecycle == READY
        on_the_way = lifecycle in (DRAINING, SWITCHING)
        fits = capacity[m] > prompt_tokens
        prompt_mask[m] = role != TOKEN and fits and (ready or (on_the_way and not prompt_ready))
        token_mask[m] = role != PROMPT and fits and (ready or (on_the_way and not token_ready))
        for new in range(3):
            prompts_left = prompt_capable - (1 if role != TOKEN else 0) + (1 if new != TOKEN else 0)
            tokens_left = token_capable - (1 if role != PROMPT else 0) + (1 if new != PROMPT else 0)
            role_mask[m, new] = ready and new != role and prompts_left > 0 and tokens_left > 0


@njit
def potential(time_s: float, rows: FloatArray, laws: FloatArray) -> float:
    """Σ over unfinished requests of what is left of their weighted slowdown, by the latency law.

    A prompt in a queue waits for the prompts before it, one by one; a token phase takes its remaining tokens at the
    iteration time of its machine once the coming ones have joined. Weights are those of the reward `slowdown`.
    """
    total = 0.0
    for m in range(len(rows)):
        row = rows[m]
        if row[PENDING_PROMPTS] > 0:
            elapsed_s = time_s - row[PROMPT_SINCE_S]
            total += max(row[PROMPT_WEIGHTED_S] - row[PROMPT_WEIGHT] * elapsed_s, 0.0)
        joined = int(row[DECODES] + row[COMING])
        if joined > 0:
            context = int(row[CONTEXT] + row[COMING_CONTEXT])
            total += max(row[TOKEN_WEIGHTED], 0.0) * iteration_s(laws[m], 0, 0, 0, 0, joined, context)
    return total

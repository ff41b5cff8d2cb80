"""The router's books: what was assigned and not yet seen finished, one row of plain numbers for each machine.

The engines (and the router) write them as things happen; `fill_view` turns them into the features of a view, and
`potential` into what the training rewards need. Both are compiled once and serve both engines.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from splitgym.features import (
    MACHINE_COLUMN,
    NUM_CLUSTER_FEATURES,
    NUM_MACHINE_FEATURES,
    NUM_REQUEST_FEATURES,
    TIME_FEATURES,
)
from splitgym.hardware import HardwareProfile
from splitgym.hardware.latency import iteration_s
from splitgym.jit import inner_njit, lean_njit
from splitgym.sim.cluster import NUM_PROMISES, Cluster
from splitgym.sim.telemetry import KV_HELD as REPORTED_KV_HELD
from splitgym.sim.telemetry import NUM_REPORT_COLUMNS, SCRAPED_S, scrape
from splitgym.sim.telemetry import RUNNING as REPORTED_RUNNING
from splitgym.sim.telemetry import WAITING as REPORTED_WAITING
from splitgym.view import ARRIVAL, DOWN, DRAINING, PROMPT, PROMPT_END, READY, SWITCHING, TICK, TOKEN, ClusterView

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
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
    LAW,  # which latency law
) = range(20)
NUM_COLUMNS = 20

# Columns of a machine's fixed facts.
KV_CAPACITY, PROMPT_RATE, DECODE_ITERATION_S, LINK_BYTES_PER_S = range(4)

# Places in the costs.
(
    KV_BYTES_PER_TOKEN,
    TRANSFER_OVERHEAD_S,
    OVERHEAD_PER_BLOCK_S,
    SWITCH_S,
    LEAST_CAPACITY,
    BLOCK_TOKENS,
    CACHES_PREFIXES,
) = range(7)

_HIT = MACHINE_COLUMN["prefix_hit_tokens"]

WINDOW_S = 10.0
"""Arrival rates are over the current window and the one before: 10 to 20 s."""


class BookArrays(NamedTuple):
    """All that a view is made of, and its arrays, for compiled functions."""

    rows: FloatArray  # (num_machines, NUM_COLUMNS)
    facts: FloatArray  # (num_machines, 4)
    laws: FloatArray  # (num_laws, LAW_SIZE)
    baseline_law: FloatArray  # (LAW_SIZE,)
    costs: FloatArray  # (7,) the places above
    arrived: FloatArray  # (2, 3): this window, the one before x requests, prompt tokens, output tokens
    window: IntArray  # (1,) which window this is
    masked: IntArray  # (4,) which masks are there, -1 if unknown; what fits somewhere; how often filled; narrowed
    times: FloatArray  # (5, num_machines) the `TIME_FEATURES`
    scaled_times: FloatArray  # room for them as observations have them
    machines: FloatArray  # from here on as in ClusterView
    request: FloatArray
    cluster: FloatArray
    prompt_mask: BoolArray
    token_mask: BoolArray
    role_mask: BoolArray
    promises: FloatArray  # (num_classes, NUM_PROMISES) as in `Cluster`; no rows without classes
    reports: FloatArray  # (num_machines, NUM_REPORT_COLUMNS) where reported features are stale (`telemetry`), else none
    hits: FloatArray  # (num_machines,) tokens of the prompt that is to be routed, in the machines' memory
    whole_mask: BoolArray  # (num_machines,) the mask that `narrow_view` has narrowed, as it was


class Books:
    """One row per machine, and what arrived lately.

    Args:
        cluster: whose machines they are.
        zeros: makes the arrays that change, as `numpy.zeros` does.
        reports: what the machines said of themselves (`splitgym.sim.telemetry`); fresh if ``None``.
    """

    def __init__(
        self, cluster: Cluster, zeros: Callable[..., npt.NDArray[Any]] = np.zeros, reports: FloatArray | None = None
    ) -> None:
        machines = cluster.machines
        count = len(machines)
        self.rows: FloatArray = zeros((count, NUM_COLUMNS))
        self.rows[:, ROLE] = [machine.role for machine in machines]
        self.laws, laws, self.true_laws = cluster.laws
        self.rows[:, LAW] = laws
        kinds = [(id(machine.profile), law) for machine, law in zip(machines, laws, strict=True)]
        profiles = dict(zip(kinds, (machine.profile for machine in machines), strict=True))
        facts = {kind: _facts_of(profile, self.laws[kind[1]]) for kind, profile in profiles.items()}
        self.facts: FloatArray = np.array([facts[kind] for kind in kinds])
        self.facts[:, KV_CAPACITY] = cluster.kv_capacity_tokens
        self.arrays = BookArrays(
            rows=self.rows,
            facts=self.facts,
            laws=self.laws,
            baseline_law=cluster.baseline.law.packed(),
            costs=np.array(
                [
                    cluster.model.kv_bytes_per_token,
                    cluster.transfer.overhead_s,
                    cluster.transfer.overhead_per_block_s,
                    cluster.switch_s,
                    self.facts[:, KV_CAPACITY].min(),
                    cluster.kv_block_tokens,
                    any(own.prefix_caching for own in cluster.vllm),
                ]
            ),
            arrived=zeros((2, 3)),
            window=zeros(1, np.int64),
            masked=zeros(4, np.int64),
            times=zeros((len(TIME_FEATURES), count)),
            scaled_times=zeros((len(TIME_FEATURES), count)),
            machines=zeros((count, NUM_MACHINE_FEATURES)),
            request=zeros(NUM_REQUEST_FEATURES),
            cluster=zeros(NUM_CLUSTER_FEATURES),
            prompt_mask=zeros(count, np.bool_),
            token_mask=zeros(count, np.bool_),
            role_mask=zeros((count, 3), np.bool_),
            promises=cluster.promises if cluster.classes else np.zeros((0, NUM_PROMISES)),
            reports=zeros((0, NUM_REPORT_COLUMNS)) if reports is None else reports,
            hits=zeros(count),
            whole_mask=zeros(count, np.bool_),
        )

        self.arrays.masked[:2] = -1

    def arrived(self, time_s: float, prompt_tokens: int, predicted_output_tokens: float) -> None:
        """Count an arrival in the rates."""
        count_arrival_rate(time_s, prompt_tokens, predicted_output_tokens, self.arrays.arrived, self.arrays.window)

    def law(self, machine: int) -> FloatArray:
        """(LAW_SIZE,) that of ``machine``, as far as the router knows."""
        row: FloatArray = self.laws[int(self.rows[machine, LAW])]
        return row

    def prompt_s(self, machine: int, prompt_tokens: int, hit_tokens: int = 0) -> float:
        """The prompt phase alone on ``machine``, which has so much of it in memory."""
        return float(prompt_alone_s(self.law(machine), prompt_tokens, hit_tokens, 0, 0))

    def view(
        self, kind: int, time_s: float, prompt_tokens: int, predicted_output_tokens: float, slo_class: int = 0
    ) -> ClusterView:
        """What may be known at ``time_s``; at a tick the lengths are 0."""
        self.arrays.masked[0] = -1
        fill_view(kind == TICK, time_s, prompt_tokens, float(predicted_output_tokens), slo_class, self.arrays)
        return self.filled_view(kind, time_s)

    def filled_view(self, kind: int, time_s: float) -> ClusterView:
        """The view that the arrays hold."""
        a = self.arrays
        return ClusterView(kind, time_s, a.machines, a.request, a.cluster, a.prompt_mask, a.token_mask, a.role_mask)

    def scrape(self, time_s: float) -> None:
        """Keep what the machines say of themselves before anything changes at ``time_s``."""
        scrape_all(time_s, self.arrays)

    def narrow(self, kind: int, here: int) -> None:
        """Late choice: `narrow_view`."""
        narrow_view(kind, here, self.arrays)

    def masks(self, prompt_tokens: int) -> tuple[BoolArray, BoolArray, BoolArray]:
        """The masks of a view alone: prompt (num_machines,), token (num_machines,), role (num_machines, 3)."""
        self.arrays.masked[0] = -1
        masks = self.arrays.prompt_mask, self.arrays.token_mask, self.arrays.role_mask
        fill_masks(self.rows, self.facts[:, KV_CAPACITY], prompt_tokens, *masks)
        return masks

    def potential(self, time_s: float) -> float:
        """Predicted remaining weighted slowdown of all unfinished requests, ≥ 0 (see `potential`)."""
        return float(potential(time_s, self.rows, self.laws))


def _facts_of(profile: HardwareProfile, law: FloatArray) -> tuple[float, float, float, float]:
    """A machine's fixed facts, in the order of their columns; ``law`` is (LAW_SIZE,)."""
    return (
        profile.kv_capacity_tokens,
        2048 / iteration_s(law, 2048, 1, 2048 * 2048, 0, 0, 0),
        iteration_s(law, 0, 0, 0, 0, 32, 32 * 1024),
        profile.link_bytes_per_s,
    )


@lean_njit
def count_arrival_rate(
    time_s: float, prompt_tokens: int, predicted_output_tokens: float, arrived: FloatArray, window: IntArray
) -> None:
    """Count an arrival in the rates."""
    roll(time_s, arrived, window)
    arrived[0, 0] += 1.0
    arrived[0, 1] += prompt_tokens
    arrived[0, 2] += predicted_output_tokens


@inner_njit
def roll(time_s: float, arrived: FloatArray, window: IntArray) -> None:
    """Go on to the window of ``time_s``."""
    now = int(time_s // WINDOW_S)
    if now != window[0]:
        follows = now == window[0] + 1
        for k in range(3):
            arrived[1, k] = arrived[0, k] if follows else 0.0
            arrived[0, k] = 0.0
        window[0] = now


@lean_njit
def fill_view(
    is_tick: bool,
    time_s: float,
    prompt_tokens: int,
    predicted_output_tokens: float,
    slo_class: int,
    books: BookArrays,
) -> None:
    """Write the features of `splitgym.features`, in its order, and the masks."""
    capacity = books.facts[:, KV_CAPACITY]
    fill_masks(books.rows, capacity, prompt_tokens, books.prompt_mask, books.token_mask, books.role_mask)
    books.masked[3] = 0
    count_roles(books)
    for m in range(len(books.rows)):
        fill_roles(m, books)
        fill_work(m, books)
    fill_request(is_tick, time_s, prompt_tokens, predicted_output_tokens, slo_class, books)
    fill_times(is_tick, time_s, prompt_tokens, books)
    show_times(books)
    scrape_all(time_s, books)
    show_reports(time_s, books)


@lean_njit
def scrape_all(time_s: float, books: BookArrays) -> None:
    """Bring the reports up to ``time_s``, where there are any."""
    for m in range(len(books.reports)):
        row = books.rows[m]
        scrape(books.reports[m], m, time_s, row[RUNNING], row[WAITING], row[KV_HELD])


@inner_njit
def show_reports(time_s: float, books: BookArrays) -> None:
    """Write the reported features as they were at the last scrape, over fresh ones, where there are reports."""
    for m in range(len(books.reports)):
        report, out = books.reports[m], books.machines[m]
        out[18] = report[REPORTED_RUNNING]
        out[19] = report[REPORTED_WAITING]
        out[20] = report[REPORTED_KV_HELD]
        out[25] = time_s - report[SCRAPED_S]


@inner_njit
def fill_roles(m: int, books: BookArrays) -> None:
    """Write those features of machine ``m`` that change only when masks do."""
    row, facts, out = books.rows[m], books.facts[m], books.machines[m]
    role = int(row[ROLE])
    lifecycle = int(row[LIFECYCLE])
    for r in range(3):
        out[r] = 1.0 if role == r else 0.0
    for state in range(4):
        out[3 + state] = 1.0 if lifecycle == state else 0.0
    out[7] = facts[KV_CAPACITY]
    out[8] = facts[PROMPT_RATE]
    out[9] = facts[DECODE_ITERATION_S]


@inner_njit
def fill_work(m: int, books: BookArrays) -> None:
    """Write those features of machine ``m`` that change only when something happens to it."""
    row, out = books.rows[m], books.machines[m]
    out[10] = row[PENDING_PROMPTS]
    out[11] = row[PENDING_TOKENS]
    out[13] = row[DECODES]
    out[14] = row[COMING]
    out[15] = row[CONTEXT]
    out[16] = max(row[REMAINING], 0.0)
    out[17] = row[BOOKED_KV]
    out[18] = row[RUNNING]
    out[19] = row[WAITING]
    out[20] = row[KV_HELD]


@inner_njit
def fill_request(
    is_tick: bool,
    time_s: float,
    prompt_tokens: int,
    predicted_output_tokens: float,
    slo_class: int,
    books: BookArrays,
) -> None:
    """Write the features of the request, and those of the cluster that do not depend on its machines."""
    request, cluster, arrived = books.request, books.cluster, books.arrived
    roll(time_s, arrived, books.window)
    span_s = WINDOW_S + time_s % WINDOW_S if time_s >= WINDOW_S else max(time_s, 1.0)
    for k in range(3):
        cluster[7 + k] = (arrived[0, k] + arrived[1, k]) / span_s
    cluster[10] = books.costs[SWITCH_S]
    request[:] = 0.0
    if not is_tick:
        request[0] = prompt_tokens
        request[1] = predicted_output_tokens
        request[2] = iteration_s(books.baseline_law, prompt_tokens, 1, prompt_tokens * prompt_tokens, 0, 0, 0)
        middle = prompt_tokens + int(predicted_output_tokens / 2)
        request[3] = iteration_s(books.baseline_law, 0, 0, 0, 0, 1, middle)
        if len(books.promises) > 0:
            promised = books.promises[slo_class]
            request[4] = promised[0] * request[2] + promised[1]
            request[5] = promised[2] * request[3] + promised[3]


@inner_njit
def fill_times(is_tick: bool, time_s: float, prompt_tokens: int, books: BookArrays) -> None:
    """Write those features of machines that change with time and request, and sums of work over the machines.

    They go into ``times`` only; `show_times` brings them into the view.
    """
    cluster, times = books.cluster, books.times
    total_tokens = total_s = total_decodes = total_context = 0.0
    kv_bytes = books.costs[KV_BYTES_PER_TOKEN] * prompt_tokens
    per_block_s, block_tokens = books.costs[OVERHEAD_PER_BLOCK_S], int(books.costs[BLOCK_TOKENS])
    overhead_s = overhead_of_s(books.costs[TRANSFER_OVERHEAD_S], per_block_s, block_tokens, prompt_tokens)
    last_law = last_hit = -1
    last_link = prompt_s = idle_tbt_s = transfer_s = 0.0
    caches_prefixes = books.costs[CACHES_PREFIXES] > 0
    for m in range(len(books.rows)):
        row = books.rows[m]
        pending_s = 0.0
        if row[PENDING_PROMPTS] > 0:
            pending_s = max(row[PENDING_S] - (time_s - row[PROMPT_SINCE_S]), 0.0)
        times[0, m] = pending_s
        if is_tick:
            times[1:, m] = 0.0
        else:
            which, link = int(row[LAW]), books.facts[m, LINK_BYTES_PER_S]
            law = books.laws[which]
            hit = int(books.hits[m]) if caches_prefixes else 0
            if which != last_law or hit != last_hit:  # machines alike stand side by side
                last_law, last_hit = which, hit
                prompt_s = prompt_alone_s(law, prompt_tokens, hit, 0, 0)
                idle_tbt_s = iteration_s(law, 0, 0, 0, 0, 1, prompt_tokens + 1)
            if link != last_link:
                last_link = link
                transfer_s = overhead_s + kv_bytes / link
            decodes, context, joined = int(row[DECODES]), int(row[CONTEXT]), int(row[DECODES] + row[COMING]) + 1
            ttft_s, tbt_s = prompt_s, idle_tbt_s
            if decodes > 0 or context > 0:
                ttft_s = prompt_alone_s(law, prompt_tokens, hit, decodes, context)
            if joined > 1 or context > 0:
                coming_context = int(row[COMING_CONTEXT]) + prompt_tokens + 1
                tbt_s = iteration_s(law, 0, 0, 0, 0, joined, context + coming_context)
            times[1, m] = prompt_s
            times[2, m] = pending_s + ttft_s
            times[3, m] = tbt_s
            times[4, m] = transfer_s
        total_tokens += row[PENDING_TOKENS]
        total_s += pending_s
        total_decodes += row[DECODES] + row[COMING]
        total_context += row[CONTEXT]
    cluster[3], cluster[4], cluster[5], cluster[6] = total_tokens, total_s, total_decodes, total_context


@lean_njit
def prompt_alone_s(law: FloatArray, prompt_tokens: int, hit_tokens: int, decodes: int, context: int) -> float:
    """An iteration with one prompt, of which some tokens need not be computed, beside these decodes."""
    tokens = prompt_tokens - hit_tokens
    return iteration_s(law, tokens, 1, tokens * (prompt_tokens + hit_tokens), hit_tokens, decodes, context)


@lean_njit
def overhead_of_s(overhead_s: float, overhead_per_block_s: float, block_tokens: int, prompt_tokens: int) -> float:
    """What sending a cache takes beside its bytes; see `splitgym.sim.cluster.Transfer`."""
    return overhead_s + overhead_per_block_s * ((prompt_tokens + block_tokens - 1) // block_tokens)


@inner_njit
def show_times(books: BookArrays) -> None:
    """Bring what `fill_times` wrote into the view."""
    caches_prefixes = books.costs[CACHES_PREFIXES] > 0
    for m in range(len(books.rows)):
        out, times = books.machines[m], books.times
        out[12] = times[0, m]
        out[21], out[22], out[23], out[24] = times[1, m], times[2, m], times[3, m], times[4, m]
        if caches_prefixes:
            out[_HIT] = books.hits[m]


@lean_njit
def narrow_view(kind: int, here: int, books: BookArrays) -> None:
    """Late choice: an arrival asks for no token machine; a prompt end does, of a request whose cache is ``here``.

    `renew_masks` makes the mask whole again.
    """
    is_whole = books.masked[3] == 0
    if kind == ARRIVAL:
        if is_whole:
            copy_mask(books.token_mask, books.whole_mask)
        books.token_mask[:] = False
    elif kind == PROMPT_END:
        if is_whole:
            copy_mask(books.prompt_mask, books.whole_mask)
        books.prompt_mask[:] = False
        books.prompt_mask[here] = True
        books.times[4, here] = books.machines[here, 24] = 0.0  # transfer_s
    else:
        return
    books.masked[3] = 1 + kind


@inner_njit
def widen_view(books: BookArrays) -> None:
    """Undo what `narrow_view` did to a mask."""
    copy_mask(books.whole_mask, books.token_mask if books.masked[3] == 1 + ARRIVAL else books.prompt_mask)
    books.masked[3] = 0


@inner_njit
def copy_mask(mask: BoolArray, other: BoolArray) -> None:
    """Make ``other`` as ``mask``; both (num_machines,)."""
    for m in range(len(mask)):
        other[m] = mask[m]


@inner_njit
def renew_masks(prompt_tokens: int, books: BookArrays) -> None:
    """Fill the masks unless they are the right ones already: they are the same for all prompts that fit anywhere.

    With them the most tokens, prompt and output, of a request that the machines permitted by them can serve.
    """
    if books.masked[3] != 0:
        widen_view(books)
    key = prompt_tokens if prompt_tokens >= books.costs[LEAST_CAPACITY] else 0
    if books.masked[0] != key:
        capacity = books.facts[:, KV_CAPACITY]
        fill_masks(books.rows, capacity, prompt_tokens, books.prompt_mask, books.token_mask, books.role_mask)
        count_roles(books)
        most = -1
        for m in range(len(capacity)):
            if books.token_mask[m]:
                most = max(most, int(capacity[m]))
        books.masked[0] = key
        books.masked[1] = most if books.prompt_mask.any() else -1
        books.masked[2] += 1


@inner_njit
def count_roles(books: BookArrays) -> None:
    """Write how many machines there are in each role, which changes with the masks only."""
    cluster = books.cluster
    cluster[:3] = 0.0
    for m in range(len(books.rows)):
        if int(books.rows[m, LIFECYCLE]) != DOWN:
            cluster[int(books.rows[m, ROLE])] += 1.0


@lean_njit
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


@lean_njit
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
            total += max(row[TOKEN_WEIGHTED], 0.0) * iteration_s(laws[int(row[LAW])], 0, 0, 0, 0, joined, context)
    return total

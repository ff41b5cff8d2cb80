"""What the compiled policies share: columns, draws, and the choice of a machine.

A built-in heuristic is one compiled function, its *kernel*, over plain arrays, so that an engine compiled as
a whole can call it without Python. All have one signature::

    kernel(kind, time_s, machines, request, cluster, prompt_mask, token_mask, role_mask, changed, params, state,
    roles_out)
        -> (prompt machine, token machine)

The first eight are the fields of a `ClusterView`. At an arrival or a prompt end one machine may be all that is asked
for (`splitgym.view.Decision`): the mask of one that is asked for later is empty, that of one that is known has it
alone. ``changed`` (any,) int64 are the machines whose counts (all features but those that
`splitgym.sim.books.fill_times` writes) or masks of prompts and tokens may be other than at the last call, all at the
first; some may come twice. ``params`` (P,) float64 are the policy's numbers in the order of its declaration, ``state``
float64 is its memory (`new_state`), ``roles_out`` (num_machines,) int64 comes filled with -1 and takes the new roles.
Ties go to the lowest index; -1 stands for no machine.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from splitgym.features import CLUSTER_COLUMN, MACHINE_COLUMN, REQUEST_COLUMN
from splitgym.jit import njit
from splitgym.randomness import Streams
from splitgym.sim.compiled.kernel import MASKS_SEEN, NOTES_SEEN
from splitgym.sim.hashing import hashed_uniform
from splitgym.view import MIXED

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

READY_FLAG = MACHINE_COLUMN["ready"]
DRAINING_FLAG = MACHINE_COLUMN["draining"]
SWITCHING_FLAG = MACHINE_COLUMN["switching"]
DOWN_FLAG = MACHINE_COLUMN["down"]
ROLE_FLAGS = MACHINE_COLUMN["role_prompt"]  # prompt, token, mixed side by side
KV_CAPACITY = MACHINE_COLUMN["kv_capacity_tokens"]
PROMPT_RATE = MACHINE_COLUMN["prompt_tokens_per_s"]
DECODE_ITERATION_S = MACHINE_COLUMN["decode_iteration_s"]
PENDING_PROMPTS = MACHINE_COLUMN["pending_prompts"]
PENDING_TOKENS = MACHINE_COLUMN["pending_prompt_tokens"]
PENDING_S = MACHINE_COLUMN["pending_prompt_s"]
DECODES = MACHINE_COLUMN["decodes"]
COMING = MACHINE_COLUMN["coming_decodes"]
REMAINING = MACHINE_COLUMN["remaining_output_tokens"]
BOOKED_KV = MACHINE_COLUMN["booked_kv_tokens"]
WAITING = MACHINE_COLUMN["waiting_requests"]
PROMPT_S = MACHINE_COLUMN["prompt_s"]
TTFT_S = MACHINE_COLUMN["predicted_ttft_s"]
TBT_S = MACHINE_COLUMN["predicted_tbt_s"]
TRANSFER_S = MACHINE_COLUMN["transfer_s"]

PROMPT_TOKENS = REQUEST_COLUMN["prompt_tokens"]
OUTPUT_TOKENS = REQUEST_COLUMN["predicted_output_tokens"]
BASELINE_TTFT_S = REQUEST_COLUMN["baseline_ttft_s"]
BASELINE_TBT_S = REQUEST_COLUMN["baseline_tbt_s"]
TTFT_SLO_S = REQUEST_COLUMN["ttft_slo_s"]
TBT_SLO_S = REQUEST_COLUMN["tbt_slo_s"]

PROMPT_TOKEN_RATE = CLUSTER_COLUMN["prompt_token_rate"]
OUTPUT_TOKEN_RATE = CLUSTER_COLUMN["output_token_rate"]
SWITCH_S = CLUSTER_COLUMN["switch_s"]

# A state: what the engine has told, the key of the draws, how many were made, eight numbers of the policy's own, the
# machines' homes, and rankings of the machines.
KEY = max(NOTES_SEEN, MASKS_SEEN) + 1
COUNTER, OWN = KEY + 1, KEY + 2
HOMES = OWN + 8
RANKINGS = 3


def new_state(roles: list[int], seed: int, name: str) -> FloatArray:
    """The state of policy ``name`` before a run of machines in ``roles``."""
    width = 1 << max(len(roles) - 1, 0).bit_length()
    state = np.zeros(HOMES + len(roles) + RANKINGS * 2 * width)
    state[KEY] = Streams(seed).key(f"policy {name}") >> 11  # 53 bits: exact as float64
    state[HOMES : HOMES + len(roles)] = roles
    state[HOMES + len(roles) :] = np.inf
    return state


@njit
def ranking(state: FloatArray, num_machines: int, number: int) -> FloatArray:
    """A policy's ranking ``number`` of the machines by a score: the least is found in O(log num_machines).

    It is a tournament: place 1 has the least score, place i the lesser of those at 2i and 2i + 1, and the last
    num_machines places, filled up to a power of two, each machine's. Infinite is who is not ranked.
    """
    first = HOMES + num_machines
    size = (len(state) - first) // RANKINGS
    return state[first + number * size : first + (number + 1) * size]


@njit
def rank(tournament: FloatArray, m: int, score: float) -> None:
    """Machine ``m`` now has this score."""
    place = (len(tournament) >> 1) + m
    while tournament[place] != score:
        tournament[place] = score
        if place == 1:
            return
        score = min(score, tournament[place ^ 1])
        place >>= 1


@njit
def best(tournament: FloatArray) -> int:
    """The machine with the least score, of several the first; -1 if none is ranked."""
    least_score = tournament[1]
    if least_score == np.inf:
        return -1
    width = len(tournament) >> 1
    place = 1
    while place < width:
        place *= 2
        if tournament[place] != least_score:
            place += 1
    return place - width


@njit
def draw(state: FloatArray) -> float:
    """The next number in [0, 1)."""
    state[COUNTER] += 1.0
    return hashed_uniform(int(state[KEY]), 0, int(state[COUNTER]))


@njit
def pick(state: FloatArray, mask: BoolArray, but: int) -> int:
    """A uniformly drawn machine of ``mask``, not ``but`` unless there is no other; -1 if there is none."""
    hidden = but >= 0 and mask[but]
    others = how_many(mask) - hidden
    if others == 0:
        return but if hidden else -1
    left = min(int(draw(state) * others), others - 1)
    first, step = 0, 64
    while True:
        here = how_many(mask[first : first + step]) - (hidden and first <= but < first + step)
        if left < here:
            break
        left -= here
        first += step
    m = first
    while left > 0 or not mask[m] or m == but:
        if mask[m] and m != but:
            left -= 1
        m += 1
    return m


@njit
def how_many(mask: BoolArray) -> int:
    """The number of machines in ``mask``."""
    count = 0
    for flag in mask:
        count += flag
    return count


@njit
def least(score: FloatArray, mask: BoolArray) -> int:
    """The machine of ``mask`` with the least score; -1 if there is none."""
    best = -1
    for m in range(len(mask)):
        if mask[m] and (best < 0 or score[m] < score[best]):
            best = m
    return best


@njit
def pending_tokens_of(features: FloatArray) -> Any:
    """Prompt tokens waiting on a machine, and one for each decode here or coming.

    A float of one machine's row; of all machines, transposed, an array (num_machines,).
    """
    return features[PENDING_TOKENS] + features[DECODES] + features[COMING]


@njit
def ttft_limit_s(request: FloatArray, slowdown: float) -> float:
    """The TTFT that a request may have: what its class is promised, or a slowdown where there are no classes."""
    return float(request[TTFT_SLO_S] if request[TTFT_SLO_S] > 0.0 else slowdown * request[BASELINE_TTFT_S])


@njit
def tbt_limit_s(request: FloatArray, slowdown: float) -> float:
    """The time between tokens that it may have, likewise."""
    return float(request[TBT_SLO_S] if request[TBT_SLO_S] > 0.0 else slowdown * request[BASELINE_TBT_S])


@njit
def decodes_of(features: FloatArray) -> Any:
    """Decodes on a machine or coming; of a row, or of all machines, as `pending_tokens_of`."""
    return features[DECODES] + features[COMING]


@njit
def role_of(machine_row: FloatArray) -> int:
    """The role of one machine's features."""
    for role in range(3):
        if machine_row[ROLE_FLAGS + role] > 0.0:
            return role
    return -1


@njit
def ready_for(machines: FloatArray, request: FloatArray, phase: int) -> BoolArray:
    """(num_machines,) which machines of a phase are ready and large enough for the prompt."""
    found = np.zeros(len(machines), np.bool_)
    for m in range(len(machines)):
        does = role_of(machines[m]) in (phase, MIXED)
        found[m] = does and machines[m, READY_FLAG] > 0.0 and machines[m, KV_CAPACITY] > request[PROMPT_TOKENS]
    return found


@njit
def mask_of_role(machines: FloatArray, role: int, mask: BoolArray) -> BoolArray:
    """(num_machines,) where ``mask`` holds and the machine is in ``role``."""
    found = np.zeros(len(mask), np.bool_)
    for m in range(len(mask)):
        found[m] = mask[m] and machines[m, ROLE_FLAGS + role] > 0.0
    return found

"""A machine's iterations under either discipline: their start and their end."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from splitgym.jit import inner_njit, njit
from splitgym.sim import books as b
from splitgym.sim.clock import ITERATION_END
from splitgym.sim.compiled import log as lg
from splitgym.sim.compiled.events import plan_iteration_end, plan_start
from splitgym.sim.compiled.iterations import (
    end_decodes,
    end_prompt,
    end_recomputation,
    form_batch,
    start_iteration,
)
from splitgym.sim.compiled.late_choice import END_PROMPT
from splitgym.sim.compiled.notes import note_change
from splitgym.sim.compiled.slots import CHOICES, OUTAGES, call, state_at
from splitgym.sim.compiled.state import State
from splitgym.sim.compiled.vllm import end_chunk, form_chunked_batch, start_chunks

IntArray = npt.NDArray[np.int64]


@inner_njit
def start_machine(s: State, m: int) -> None:
    """Form a batch and begin its iteration, or wait for work (discipline `splitwise`)."""
    if form_batch(s, m):
        plan_iteration_end(s, m, s.run[0].now_s + start_iteration(s, m))
    else:
        s.machines[m].is_idle = True


@njit
def chunked_at(a: IntArray, kind: int, m: int, _r: int, _number: int) -> int:
    """The start or the end of an iteration under discipline `vllm`."""
    s = state_at(a)
    if kind == ITERATION_END:
        end_chunked_iteration(s, m)
    elif form_chunked_batch(s, m):
        plan_iteration_end(s, m, s.run[0].now_s + start_chunks(s, m))
    else:
        s.machines[m].is_idle = True
    return 0


@inner_njit
def end_iteration(s: State, m: int) -> None:
    """Hand out the tokens: decodes first, then the first tokens of prompts, which join afterwards."""
    machine = s.machines[m]
    count, decodes = machine.batch_prompts, machine.batch_decodes
    begin_to_end(s, m)
    r = machine.batch_first
    for _ in range(machine.batch_prompts):
        following = s.requests[r].next
        end_computation(s, m, r)
        r = following
    plan_next(s, m, count, decodes)


@inner_njit
def end_chunked_iteration(s: State, m: int) -> None:
    """`end_iteration` under discipline `vllm`."""
    machine = s.machines[m]
    count, decodes = machine.batch_prompts, machine.batch_decodes
    begin_to_end(s, m)
    r = machine.batch_first
    for _ in range(machine.batch_prompts):
        following = s.requests[r].next
        if end_chunk(s, m, r):
            end_computation(s, m, r)
        r = following
    plan_next(s, m, count, decodes)


@inner_njit
def end_computation(s: State, m: int, r: int) -> None:
    """All of a prompt, or of what was to be computed again, is in the cache."""
    if s.requests[r].was_preempted:
        end_recomputation(s, m, r)
    elif s.run[0].chooses_late:
        call(s, CHOICES, END_PROMPT, m, r, 0)
    else:
        end_prompt(s, m, r)


@inner_njit
def begin_to_end(s: State, m: int) -> None:
    """What the end of an iteration brings before its prompts are looked at."""
    note_change(s, m)
    machine = s.machines[m]
    if machine.leaving_first >= 0:
        call(s, OUTAGES, ITERATION_END, m, -1, 0)
    machine.is_busy = False
    if machine.batch_decodes > 0 or not machine.batch_serves_all:
        end_decodes(s, m)


@inner_njit
def plan_next(s: State, m: int, prompts: int, decodes: int) -> None:
    """After an iteration with so many prompts and decodes: the next one."""
    machine, row = s.machines[m], s.books[m]
    machine.batch_prompts = 0
    if prompts > 0 and row[b.PENDING_PROMPTS] == 0:  # whatever rounding left
        row[b.PENDING_S] = row[b.PROMPT_WEIGHT] = row[b.PROMPT_WEIGHTED_S] = 0.0
    lg.log_stretch(s, lg.ITERATION, m, -1, machine.batch_start_s, prompts, decodes)
    plan_start(s, m)

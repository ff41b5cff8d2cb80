"""A machine's iterations under either discipline: their start and their end."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from splitgym.jit import lean_njit, njit
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
from splitgym.sim.compiled.notes import note_change
from splitgym.sim.compiled.slots import OUTAGES, call, state_at
from splitgym.sim.compiled.state import State
from splitgym.sim.compiled.vllm import end_chunk, form_chunked_batch, start_chunks

IntArray = npt.NDArray[np.int64]


@lean_njit
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
        end_iteration(s, m, True)
    elif form_chunked_batch(s, m):
        plan_iteration_end(s, m, s.run[0].now_s + start_chunks(s, m))
    else:
        s.machines[m].is_idle = True
    return 0


@lean_njit
def end_iteration(s: State, m: int, is_chunked: bool) -> None:
    """Hand out the tokens: decodes first, then the first tokens of prompts, which join afterwards."""
    note_change(s, m)
    machine, row = s.machines[m], s.books[m]
    count, decodes = machine.batch_prompts, machine.batch_decodes
    if machine.leaving_first >= 0:
        call(s, OUTAGES, ITERATION_END, m, -1, 0)
    machine.is_busy = False
    if machine.batch_decodes > 0 or not machine.batch_serves_all:
        end_decodes(s, m)
    r = machine.batch_first
    for _ in range(machine.batch_prompts):
        following = s.requests[r].next
        if is_chunked:
            is_prompt_over = end_chunk(s, m, r)
        else:
            is_prompt_over = not s.requests[r].was_preempted
            if not is_prompt_over:
                end_recomputation(s, m, r)
        if is_prompt_over:
            end_prompt(s, m, r)
        r = following
    machine.batch_prompts = 0
    if count > 0 and row[b.PENDING_PROMPTS] == 0:  # whatever rounding left
        row[b.PENDING_S] = row[b.PROMPT_WEIGHT] = row[b.PROMPT_WEIGHTED_S] = 0.0
    lg.log_stretch(s, lg.ITERATION, m, -1, machine.batch_start_s, count, decodes)
    plan_start(s, m)

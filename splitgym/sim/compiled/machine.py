"""A machine's iterations under either discipline: their start and their end."""

from __future__ import annotations

from splitgym.jit import lean_njit
from splitgym.sim import books as b
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
from splitgym.sim.compiled.state import State
from splitgym.sim.compiled.vllm import end_chunk, form_chunked_batch, start_chunks
from splitgym.sim.compiled.withdrawal import take_leave


@lean_njit
def start_machine(s: State, m: int) -> None:
    """Form a batch and begin its iteration, or wait for work."""
    run = s.run[0]
    if form_chunked_batch(s, m) if run.is_vllm else form_batch(s, m):
        duration_s = start_chunks(s, m) if run.is_vllm else start_iteration(s, m)
        plan_iteration_end(s, m, run.now_s + duration_s)
    else:
        s.machines[m].is_idle = True


@lean_njit
def end_iteration(s: State, m: int) -> None:
    """Hand out the tokens: decodes first, then the first tokens of prompts, which join afterwards."""
    note_change(s, m)
    machine, row, run = s.machines[m], s.books[m], s.run[0]
    count, decodes = machine.batch_prompts, machine.batch_decodes
    if machine.leaving_first >= 0:
        take_leave(s, m)
    machine.is_busy = False
    if machine.batch_decodes > 0 or not machine.batch_serves_all:
        end_decodes(s, m)
    r = machine.batch_first
    for _ in range(machine.batch_prompts):
        following = s.requests[r].next
        if run.is_vllm:
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

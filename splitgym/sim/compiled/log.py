"""The log of a compiled run: lines gathered by compiled code, handed over to a `Recorder` in Python."""

from __future__ import annotations

from splitgym.jit import inner_njit, merged_njit
from splitgym.sim.compiled.state import State
from splitgym.sim.recorder import Recorder
from splitgym.view import ROLES

KINDS = (
    *("arrival", "assigned", "failed", "first_token", "transfer_start", "transfer_end", "finish"),
    *(f"role_{role}" for role in ROLES),
    *("switching", "ready"),
    # not lines of the event log by themselves:
    *("iteration", "transfer", "switch"),
    # of discipline `vllm`:
    "preempted",
    # where a lease ends:
    "cache_dropped",
    # where a role change gives a request to another machine:
    "moved",
    # where something goes wrong; "outage" is no line by itself:
    *("down", "up", "restart", "resumed", "abandoned", "outage", "held"),
    # where the token machine is chosen late:
    "chosen",
)
ARRIVED, ASSIGNED, FAILED, FIRST_TOKEN, TRANSFER_START, TRANSFER_END, FINISH = range(7)
ROLE = 7  # of the first role
SWITCHING, READY = 10, 11
ITERATION, TRANSFER, SWITCH = 12, 13, 14
PREEMPTED = 15
CACHE_DROPPED = 16
MOVED = 17
DOWN, UP, RESTART, RESUMED, ABANDONED, OUTAGE, HELD = range(18, 25)
CHOSEN = 25


@merged_njit
def log(s: State, kind: int, machine: int, request: int) -> None:
    """Add a line, where a log is kept."""
    if s.run[0].records:
        log_stretch(s, kind, machine, request, s.run[0].now_s, 0, 0)


@inner_njit
def log_stretch(s: State, kind: int, machine: int, request: int, start_s: float, prompts: int, decodes: int) -> None:
    """Add what began at ``start_s`` and ends now, where a log is kept; of a transfer ``prompts`` is where it goes."""
    run = s.run[0]
    if not run.records:
        return
    line = s.log[run.log_lines]
    line.kind = kind
    line.machine = machine
    line.request = request
    line.start_s = start_s
    line.time_s = run.now_s
    line.prompts = prompts
    line.decodes = decodes
    run.log_lines += 1


def hand_over(s: State, recorder: Recorder) -> None:
    """Empty the log into ``recorder``."""
    count = int(s.run["log_lines"][0])
    for kind, machine, request, start_s, time_s, prompts, decodes in s.log[:count].tolist():
        if kind == ITERATION:
            recorder.iteration(machine, start_s, time_s, prompts, decodes)
        elif kind == TRANSFER:
            recorder.transfer(request, machine, prompts, start_s, time_s)  # from, to
        elif kind == SWITCH:
            recorder.switch(machine, start_s, time_s)
        elif kind == OUTAGE:
            recorder.outage(machine, start_s, time_s)
        else:
            recorder.event(time_s, KINDS[kind], machine, request)
    s.run["log_lines"] = 0

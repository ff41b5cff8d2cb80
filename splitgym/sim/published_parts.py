"""What the published Splitwise simulator is made of besides machines: a clock, requests and their tasks."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from splitgym.sim.published_machine import Machine

NEVER_S = float("nan")


class Event(float):
    """The instant, in seconds, at which ``handler(subject)`` runs.

    Events compare by time alone, as in the published heap, so those of one instant come out in its order.
    """

    __slots__ = ("cancelled", "handler", "subject")
    handler: Callable[[Any], None]
    subject: Any
    cancelled: bool  # a cancelled event stays in the heap, there too

    def __new__(cls, time_s: float, handler: Callable[[Any], None], subject: Any = None) -> Event:
        """An event at ``time_s``."""
        event = super().__new__(cls, time_s)
        event.handler, event.subject, event.cancelled = handler, subject, False
        return event


class Clock:
    """Simulated time, and the events to come."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.events: list[Event] = []

    def at(self, time_s: float, handler: Callable[[Any], None], subject: Any = None) -> Event:
        """Have ``handler(subject)`` run at ``time_s``."""
        event = Event(time_s, handler, subject)
        heapq.heappush(self.events, event)
        return event

    def run(self) -> None:
        """Let events happen until none is left."""
        while self.events:
            event = heapq.heappop(self.events)
            if not event.cancelled:
                self.now_s = float(event)
                event.handler(event.subject)


@dataclass(slots=True, eq=False)
class Task:
    """One phase of a request."""

    request: Request
    is_prompt: bool
    batch_tokens: int  # what it counts for in a batch: a decode 1
    memory_tokens: int  # KV tokens it claims when it first runs
    iterations_left: int
    memory_claimed: bool = False  # a preempted decode keeps its memory
    pass_overs: int = 0  # batches formed without it; never reset
    in_batch: bool = False
    last_token_s: float = NEVER_S
    tbt_max_s: float = 0.0


@dataclass(slots=True, eq=False)
class Request:
    """One request: where it is assigned, and when what happened to it."""

    arrival_s: float
    prompt_tokens: int
    output_tokens: int
    prompt: Task = field(init=False)
    decode: Task = field(init=False)
    current: Task = field(init=False)  # the prompt until its phase is over, then the decode
    prompt_machine: Machine = field(init=False)
    token_machine: Machine = field(init=False)
    prompt_start_s: float = NEVER_S
    first_token_s: float = NEVER_S
    transfer_end_s: float = NEVER_S
    finish_s: float = NEVER_S

    def __post_init__(self) -> None:
        decodes = self.output_tokens - 1
        self.prompt = self.current = Task(self, True, self.prompt_tokens, self.prompt_tokens + 1, 1)
        self.decode = Task(self, False, 1, decodes, decodes)

    @property
    def decodes_where_prompted(self) -> bool:
        """Whether a token phase follows on the prompt machine."""
        return self.output_tokens > 1 and self.token_machine is self.prompt_machine

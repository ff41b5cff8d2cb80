"""Who decides in the published Splitwise simulator: its mixed-pool scheduler and its baseline."""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter
from typing import Protocol

from splitgym.sim.published_machine import Machine
from splitgym.sim.published_parts import Request

MAX_PENDING_PROMPT_TOKENS = 8192

_pending = attrgetter("pending_tokens")
_reserved = attrgetter("reserved_tokens")


class PublishedPolicy(Protocol):
    """Assigns both phases of a request when it arrives."""

    def place(self, request: Request) -> tuple[Machine, Machine]:
        """The prompt machine and the token machine."""

    def machine_is_empty(self, machine: Machine) -> None:
        """An iteration has ended and left nothing on the machine."""


class TokenJsq:
    """The baseline: both phases on the machine with the fewest pending tokens."""

    def __init__(self, machines: Sequence[Machine]) -> None:
        self._machines = machines

    def place(self, request: Request) -> tuple[Machine, Machine]:
        """The prompt machine and the token machine: the same."""
        machine = min(self._machines, key=_pending)
        return machine, machine

    def machine_is_empty(self, machine: Machine) -> None:
        """Nothing changes."""


class MixedPool:
    """Splitwise's scheduler: a prompt pool, a token pool, and a mixed pool that borrows from both.

    Ties go to the machine that stands first in its pool.
    """

    def __init__(self, prompt: Sequence[Machine], token: Sequence[Machine], mixed: Sequence[Machine]) -> None:
        self._prompt = list(prompt)
        self._token = list(token)
        self._mixed = list(mixed)
        self._homes: dict[int, list[Machine]] = {}  # pools of the borrowed machines, by machine number

    def place(self, request: Request) -> tuple[Machine, Machine]:
        """The prompt machine and the token machine; they may be one."""
        prompt_machine = self._find_prompt(self._prompt, request) or self._find_prompt(self._mixed, request)
        token_machine = self._find_token(self._token, request) or self._find_token(self._mixed, request)
        # Both searches come before both loans, so that neither finds what the other borrows.
        if prompt_machine is None and self._token:
            prompt_machine = self._borrow(self._token, min(self._token, key=_pending))
        if token_machine is None and self._prompt:
            token_machine = self._borrow(self._prompt, min(self._prompt, key=_reserved))
        if prompt_machine is None or token_machine is None:
            # One phase without a machine sends both to the machine with the fewest pending tokens.
            prompt_machine = token_machine = min(self._prompt + self._mixed + self._token, key=_pending)
        return prompt_machine, token_machine

    def machine_is_empty(self, machine: Machine) -> None:
        """A borrowed machine goes home, to the end of its pool, even if a transfer to it is under way."""
        home = self._homes.pop(machine.number, None)
        if home is not None:
            self._mixed.remove(machine)
            home.append(machine)

    def _find_prompt(self, pool: list[Machine], request: Request) -> Machine | None:
        """The machine with the fewest pending tokens, unless its queue is long; decodes there count."""
        machine = min(pool, key=_pending, default=None)
        if machine is None:
            return None
        is_long = machine.pending_tokens + request.prompt_tokens > MAX_PENDING_PROMPT_TOKENS
        return None if machine.queue and is_long else machine

    def _find_token(self, pool: list[Machine], request: Request) -> Machine | None:
        """The machine with the least reserved memory, unless the request would fill it; clairvoyant."""
        machine = min(pool, key=_reserved, default=None)
        if machine is None or machine.is_booked_out(request.prompt_tokens + request.output_tokens):
            return None
        return machine

    def _borrow(self, pool: list[Machine], machine: Machine) -> Machine:
        pool.remove(machine)
        self._mixed.append(machine)
        self._homes[machine.number] = pool
        return machine

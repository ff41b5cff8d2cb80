"""The router's books: every assignment from its booking to its settlement, and the view that follows from them.

The rows are those of `splitgym.sim.books`, written at the same moments as by the simulator's engines: a prompt is
pending until its first token is seen (for split engines: until the prompt engine answers), a token phase is coming
until then and decodes afterwards. Lengths of outputs are predicted ones.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from splitgym.features import MACHINE_COLUMN
from splitgym.sim import books as b
from splitgym.sim.books import Books
from splitgym.sim.cluster import Cluster
from splitgym.view import DOWN, PROMPT, READY, TICK, TOKEN, ClusterView

PENDING, DECODING, SETTLED = range(3)

_AGE = MACHINE_COLUMN["report_age_s"]


@dataclass(slots=True, eq=False)
class Booking:
    """One attempt of one request on two machines, or on one."""

    prompt_machine: int
    token_machine: int
    prompt_tokens: int
    predicted_output_tokens: float
    work_s: float  # its prompt phase alone
    remaining: float  # predicted tokens still to come
    stage: int = PENDING
    context_tokens: int = 0
    cache_is_away: bool = False  # still at the prompt machine, or on its way

    @property
    def is_split(self) -> bool:
        """Whether its cache goes from one machine to another."""
        return self.prompt_machine != self.token_machine


class RouterBooks:
    """One row for each engine.

    Args:
        cluster: the engines.
        time_scale: emulated seconds in one second of the clock.
        clock: seconds, from wherever they count.
    """

    def __init__(
        self, cluster: Cluster, time_scale: float = 1.0, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._books = Books(cluster)
        self.rows = self._books.rows  # (num_machines, NUM_COLUMNS)
        self.capacities = [machine.profile.kv_capacity_tokens for machine in cluster.machines]
        self._scale = time_scale
        self._clock = clock
        self._started_s = clock()
        self._lifecycles = [READY] * cluster.num_machines
        self._down = [False] * cluster.num_machines
        self._away = [0] * cluster.num_machines  # caches kept for others
        self._reported_s = np.zeros(cluster.num_machines)

    @property
    def now_s(self) -> float:
        """Seconds since the start, emulated ones where engines are."""
        return (self._clock() - self._started_s) * self._scale

    def view(self, kind: int, prompt_tokens: int = 0, predicted_output_tokens: float = 0.0) -> ClusterView:
        """What may be known now. Its arrays are reused at the next one."""
        now_s = self.now_s
        view = self._books.view(kind, now_s, prompt_tokens, predicted_output_tokens)
        view.machines[:, _AGE] = now_s - self._reported_s
        return view

    def tick_view(self) -> ClusterView:
        """What may be known now, without a request."""
        return self.view(TICK)

    def arrived(self, prompt_tokens: int, predicted_output_tokens: float) -> None:
        """Count a request in the rates."""
        self._books.arrived(self.now_s, prompt_tokens, predicted_output_tokens)

    # --- a booking's life ---------------------------------------------------------------------------------------

    def assign(
        self, prompt_machine: int, token_machine: int, prompt_tokens: int, predicted_output_tokens: float
    ) -> Booking:
        """Book a request on its machines."""
        work_s = self._books.prompt_s(prompt_machine, prompt_tokens)
        to_come = predicted_output_tokens - 1
        booking = Booking(prompt_machine, token_machine, prompt_tokens, predicted_output_tokens, work_s, to_come)
        prompt, token = self.rows[prompt_machine], self.rows[token_machine]
        if prompt[b.PENDING_PROMPTS] == 0:
            prompt[b.PROMPT_SINCE_S] = self.now_s
        prompt[b.PENDING_PROMPTS] += 1
        prompt[b.PENDING_TOKENS] += prompt_tokens
        prompt[b.PENDING_S] += work_s
        if booking.is_split:
            prompt[b.BOOKED_KV] += prompt_tokens + 1
        token[b.COMING] += 1
        token[b.COMING_CONTEXT] += prompt_tokens + 1
        token[b.REMAINING] += to_come
        token[b.BOOKED_KV] += prompt_tokens + predicted_output_tokens
        return booking

    def prompt_ended(self, booking: Booking) -> None:
        """Its first token is there, or (split) its cache is ready to be fetched. Later calls do nothing."""
        if booking.stage != PENDING:
            return
        self._leave_prompt(booking)
        booking.stage = DECODING
        booking.context_tokens = booking.prompt_tokens + 1
        token = self.rows[booking.token_machine]
        token[b.DECODES] += 1
        token[b.CONTEXT] += booking.context_tokens
        if booking.is_split:
            booking.cache_is_away = True
            self._away[booking.prompt_machine] += 1

    def tokens_came(self, booking: Booking, count: int) -> None:
        """The token machine has sent ``count`` tokens."""
        if booking.stage == SETTLED:
            return
        if booking.stage == PENDING or booking.cache_is_away:  # the first token: its cache has arrived, if it was sent
            self.prompt_ended(booking)
            if booking.cache_is_away:
                self._cache_arrived(booking)
            count -= 1
        booking.context_tokens += count
        booking.remaining -= count
        token = self.rows[booking.token_machine]
        token[b.CONTEXT] += count
        token[b.REMAINING] -= count

    def settle(self, booking: Booking) -> None:
        """It is over, however it ended: nothing of it stays in the rows. Later calls do nothing."""
        stage, booking.stage = booking.stage, SETTLED
        if stage == SETTLED:
            return
        token = self.rows[booking.token_machine]
        if stage == PENDING:
            self._leave_prompt(booking)
            if booking.is_split:
                self.rows[booking.prompt_machine, b.BOOKED_KV] -= booking.prompt_tokens + 1
        else:
            token[b.DECODES] -= 1
            token[b.CONTEXT] -= booking.context_tokens
            if booking.cache_is_away:
                self._cache_arrived(booking)
        token[b.REMAINING] -= booking.remaining
        token[b.BOOKED_KV] -= booking.prompt_tokens + booking.predicted_output_tokens
        if token[b.DECODES] + token[b.COMING] == 0:  # whatever rounding left
            token[b.REMAINING] = 0.0
            if token[b.PENDING_PROMPTS] == 0 and not self._away[booking.token_machine]:
                token[b.BOOKED_KV] = 0.0

    def _leave_prompt(self, booking: Booking) -> None:
        prompt, token = self.rows[booking.prompt_machine], self.rows[booking.token_machine]
        prompt[b.PENDING_PROMPTS] -= 1
        prompt[b.PENDING_TOKENS] -= booking.prompt_tokens
        prompt[b.PENDING_S] = prompt[b.PENDING_S] - booking.work_s if prompt[b.PENDING_PROMPTS] > 0 else 0.0
        prompt[b.PROMPT_SINCE_S] = self.now_s
        token[b.COMING] -= 1
        token[b.COMING_CONTEXT] -= booking.prompt_tokens + 1

    def _cache_arrived(self, booking: Booking) -> None:
        booking.cache_is_away = False
        self._away[booking.prompt_machine] -= 1
        self.rows[booking.prompt_machine, b.BOOKED_KV] -= booking.prompt_tokens + 1

    # --- machines -----------------------------------------------------------------------------------------------

    def in_flight(self, machine: int) -> int:
        """Bookings that name ``machine`` in a phase that is not over."""
        row = self.rows[machine]
        return int(row[b.PENDING_PROMPTS] + row[b.DECODES] + row[b.COMING]) + self._away[machine]

    def has_work_of(self, machine: int, phase: int) -> bool:
        """Whether ``machine`` still has work of a phase, ``PROMPT`` or ``TOKEN``."""
        row = self.rows[machine]
        if phase == PROMPT:
            return bool(row[b.PENDING_PROMPTS] > 0 or self._away[machine] > 0)
        assert phase == TOKEN
        return bool(row[b.DECODES] + row[b.COMING] > 0)

    def report(self, machine: int, running: float, waiting: float, kv_share: float) -> None:
        """What the engine says of itself; the share of its KV memory is in [0, 1]."""
        row = self.rows[machine]
        row[b.RUNNING], row[b.WAITING], row[b.KV_HELD] = running, waiting, kv_share * self.capacities[machine]
        self._reported_s[machine] = self.now_s

    def role_of(self, machine: int) -> int:
        """The role of ``machine``."""
        return int(self.rows[machine, b.ROLE])

    def lifecycle_of(self, machine: int) -> int:
        """The lifecycle of ``machine``."""
        return int(self.rows[machine, b.LIFECYCLE])

    def set_role(self, machine: int, role: int, lifecycle: int) -> None:
        """Give ``machine`` a role and a lifecycle, which shows once it is not down."""
        self.rows[machine, b.ROLE] = role
        self._lifecycles[machine] = lifecycle
        self._show(machine)

    def set_down(self, machine: int, down: bool) -> None:
        """The engine does not answer, or does again. What it said of itself before is forgotten."""
        if down:
            self.report(machine, 0.0, 0.0, 0.0)
        self._down[machine] = down
        self._show(machine)

    def _show(self, machine: int) -> None:
        self.rows[machine, b.LIFECYCLE] = DOWN if self._down[machine] else self._lifecycles[machine]

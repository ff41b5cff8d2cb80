"""What the plugins share: a policy, its fallback, and the books, for a host that sends the requests itself."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections import deque
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from splitgym.policies import Policy, make_policy
from splitgym.router.ask import BadRequest, Reader
from splitgym.router.books import Booking, RouterBooks
from splitgym.router.config import cluster_of, read_config
from splitgym.view import ARRIVAL, ClusterView, Decision
from splitgym.workload.prediction import OutputPredictor

_log = logging.getLogger(__name__)

_MODEL = "any"  # which model a request names is the host's affair

UNKNOWN_PROMPT_TOKENS = 512
"""Of a request whose prompt the host does not show."""


class Chooser:
    """Chooses machines among those that the host offers, and keeps the books of what became of it.

    It is told of the engines as `splitgym serve` is: by a YAML file (docs/router.md), of which `model`, `engines`,
    `policy.name`, `policy.fallback`, `policy.seed` and `prediction` count. Policies are asked in the host's own
    thread: name a bundle or a built-in heuristic, nothing that may hang.

    Attributes:
        books: the rows that views are made of.
        names: of the engines, in the order of the file.
        fallbacks: how often the policy raised or named what is not permitted.

    Raises:
        SplitgymError: for a mistake in the file, or a policy that cannot decide on this cluster.
    """

    def __init__(self, config_file: str | Path) -> None:
        path = Path(config_file)
        config = read_config(path)
        cluster = cluster_of(config, path.parent)
        self.books = RouterBooks(cluster, config.time_scale)
        self.names = [engine.name for engine in config.engines]
        self.fallbacks = 0
        self._machines = {name: number for number, name in enumerate(self.names)}
        self._machines |= {urlsplit(engine.url).netloc: number for number, engine in enumerate(config.engines)}
        self._seats: dict[str, int] = {}
        self._reader = Reader(_MODEL, config.prediction, max(self.books.capacities))
        edges = np.array(config.prediction.prompt_edges_tokens, np.float64)
        self._predictor = OutputPredictor(edges, np.array(config.prediction.mean_output_tokens, np.float64))
        self._policies: list[Policy] = []
        for name in (config.policy.name, config.policy.fallback):
            policy = make_policy(name)
            policy.reset(cluster, config.policy.seed)
            self._policies.append(policy)
        self._no_roles = np.zeros((cluster.num_machines, 3), np.bool_)
        self._news: deque[tuple[Callable[[Booking], None], Booking]] = deque()
        self._open: list[list[Booking]] = [[] for _ in self.names]  # by token machine, oldest first

    def machine_of(self, name: str) -> int | None:
        """The machine that the host calls so: an engine's name, its URL, or ``host:port``."""
        return self._machines.get(urlsplit(name).netloc if "://" in name else name)

    def seated(self, names: Collection[str]) -> dict[int, str]:
        """Machine by machine, who is there: replicas, whose names the file cannot know, take free rows in turn.

        A row is free again when there is no other and its replica is not among ``names``.
        """
        for name in names:
            if name not in self._seats:
                rows = set(range(len(self.names)))
                taken = {seat for other, seat in self._seats.items() if other in names}
                free = rows - set(self._seats.values()) or rows - taken
                if free:
                    row = self._machines.get(name, min(free))
                    self._seats = {other: seat for other, seat in self._seats.items() if seat != row} | {name: row}
        return {self._seats[name]: name for name in names if name in self._seats}

    def lengths(self, body: Any) -> tuple[int, float]:
        """Prompt tokens and predicted output tokens of a request's body, read as `splitgym serve` reads it."""
        if isinstance(body, str):
            body = {"prompt": body}
        if not isinstance(body, Mapping):
            return self.predicted(UNKNOWN_PROMPT_TOKENS)
        path = "/v1/chat/completions" if "messages" in body else "/v1/completions"
        try:
            ask = self._reader.read(path, json.dumps({**body, "model": _MODEL}).encode())
        except (BadRequest, TypeError, ValueError):  # whether it is a good request, the host and its engines judge
            return self.predicted(UNKNOWN_PROMPT_TOKENS)
        return ask.prompt_tokens, ask.predicted_output_tokens

    def predicted(self, prompt_tokens: int) -> tuple[int, float]:
        """The same where only the prompt's length is known."""
        tokens = max(prompt_tokens, 1)
        return tokens, max(float(self._predictor.predict(np.array([tokens]))[0]), 1.0)

    def choose(
        self, lengths: tuple[int, float], prompt_machines: Collection[int], token_machines: Collection[int]
    ) -> Decision | None:
        """The policy's decision, else the fallback's.

        Args:
            lengths: of the prompt and, predicted, of the output, tokens.
            prompt_machines: where the host would send the prompt.
            token_machines: where it would send the token phase.

        Returns:
            ``None`` if neither finds permitted machines.
        """
        view = self._view(lengths, prompt_machines, token_machines)
        for policy in self._policies:
            try:
                decision = policy.decide(view)
                permitted = view.prompt_mask[decision.prompt_machine] and view.token_mask[decision.token_machine]
                if permitted and min(decision.prompt_machine, decision.token_machine) >= 0:
                    return decision
            except Exception:  # whatever a policy raises, the host must go on
                _log.exception("policy %s failed", policy.name)
            if policy is self._policies[0]:
                self.fallbacks += 1
        return None

    def book(self, lengths: tuple[int, float], prompt_machine: int, token_machine: int) -> Booking:
        """Enter a request that the host sends to these machines."""
        self.books.arrived(*lengths)
        booking = self.books.assign(prompt_machine, token_machine, *lengths)
        self._open[token_machine].append(booking)
        return booking

    def prompt_ended(self, booking: Booking) -> None:
        """Its prompt phase is over. Any thread may say so; the next decision sees it."""
        self._news.append((self.books.prompt_ended, booking))

    def finished(self, booking: Booking) -> None:
        """It is over, however it ended. Any thread may say so, more than once; the next decision sees it."""
        self._news.append((self._settle, booking))

    def hear(self, machine: int, running: float, waiting: float, kv_share: float, requests: int | None = None) -> None:
        """What ``machine``'s engine says of itself: running and waiting requests, the share of its KV memory in use.

        Who is neither waiting nor on the way to it is taken to have its first token. ``requests`` as in `keep`.
        """
        self.books.report(machine, running, waiting, min(kv_share, 1.0))
        there = len(self._open[machine]) if requests is None else requests
        self.keep(machine, int(max(waiting, there - running)), requests)

    def keep(self, machine: int, prompts: int, requests: int | None = None) -> None:
        """Make the books agree with a host that only counts; the oldest are taken to be the first.

        Args:
            machine: on which they are.
            prompts: requests there whose first token has not come.
            requests: all requests there; ``None`` where the host says of each that it is over.
        """
        self._catch_up()
        there = self._open[machine]
        if requests is not None:
            for booking in there[: max(len(there) - requests, 0)]:
                self._settle(booking)
        for booking in there[: max(len(there) - prompts, 0)]:
            self.books.prompt_ended(booking)

    def _settle(self, booking: Booking) -> None:
        self.books.settle(booking)
        if booking in self._open[booking.token_machine]:
            self._open[booking.token_machine].remove(booking)

    def _catch_up(self) -> None:
        while self._news:
            enter, booking = self._news.popleft()
            enter(booking)

    def _view(
        self, lengths: tuple[int, float], prompt_machines: Collection[int], token_machines: Collection[int]
    ) -> ClusterView:
        self._catch_up()
        view = self.books.view(ARRIVAL, *lengths)
        prompt_mask, token_mask = np.zeros_like(view.prompt_mask), np.zeros_like(view.token_mask)
        prompt_mask[list(prompt_machines)] = True
        token_mask[list(token_machines)] = True
        return dataclasses.replace(
            view,
            prompt_mask=view.prompt_mask & prompt_mask,
            token_mask=view.token_mask & token_mask,
            role_mask=self._no_roles,
        )

"""The published Splitwise simulator (SplitwiseSim, commit 2ba8d80), reproduced quirks and all.

Its results come out the same to the last bit. Overload is chaotic, so the order of every sum is the published
one. The rules stand where they act: batches and blocks of iterations in
:mod:`splitgym.sim.published_machine`, schedulers in :mod:`splitgym.sim.published_policies`, latency and
memory in :mod:`splitgym.hardware.published_tables`, requests and transfers here. What it gets wrong is kept:
batching decodes is free, KV-caches of Llama-2-70B are eight times too large, transfers never contend.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from splitgym.errors import SplitgymError, did_you_mean
from splitgym.hardware.published_tables import PublishedModel, load_published_model
from splitgym.sim.published_machine import Machine
from splitgym.sim.published_parts import Clock, Request, Task
from splitgym.sim.published_policies import MixedPool, PublishedPolicy, TokenJsq
from splitgym.sim.rows import COMPLETED, IN_FLIGHT, RequestRows
from splitgym.workload.requests import FloatArray, IntArray, Requests

LINK_BYTES_PER_S = 200 * 2**30
"""Of every transfer, however many there are."""

TRANSFER_RETRY_S = 1.0
"""A transfer whose destination is full asks again after this long."""

ROLES = ("prompt", "token", "mixed")
POLICIES = ("splitwise", "jsq-tokens")


@dataclass(frozen=True)
class PublishedMachine:
    """One machine of eight GPUs."""

    role: str  # 'prompt', 'token' or 'mixed'
    hardware: str  # 'a100-80gb', 'h100-80gb' or 'h100-80gb-pcap'


def simulate_published(
    machines: Sequence[PublishedMachine], model: str, requests: Requests, policy: str = "splitwise"
) -> RequestRows:
    """Run the published simulator until every request is done.

    Args:
        machines: the cluster; machine numbers in the result are positions here.
        model: ``'llama2-70b'`` or ``'bloom-176b'``, at tensor parallelism 8.
        requests: what arrives. A request of one output token, which the published simulator cannot run, ends
            with its prompt phase.
        policy: ``'splitwise'``, the mixed-pool scheduler (machines of role ``'mixed'`` stay in that pool), or
            ``'jsq-tokens'``, the baseline, where every machine is mixed.

    Returns:
        One row per request. Under extreme overload the published simulator can lock up: a memory full of
        caches, none of which has room to grow. The requests caught in it stay in flight.

    Raises:
        SplitgymError: if the model, a machine's hardware or role, or the policy is unknown; if a phase has no
            machine; or if a request is larger than a machine.
    """
    published_model = load_published_model(model)
    _check(machines, published_model, requests, policy)
    simulation = _Simulation(machines, published_model, requests, policy)
    simulation.clock.run()
    return simulation.rows(requests)


class _Simulation:
    """Requests on their way through the machines."""

    def __init__(
        self, machines: Sequence[PublishedMachine], model: PublishedModel, requests: Requests, policy: str
    ) -> None:
        self.clock = Clock()
        self._kv_bytes_per_token = model.kv_bytes_per_token
        self._num_waiting_transfers = 0
        self._num_vain_retries = 0
        self._machines = []
        pools: dict[str, list[Machine]] = {role: [] for role in ROLES}
        for number, machine in enumerate(machines):
            costs = model.latency[machine.hardware], model.capacity_tokens
            self._machines.append(Machine(number, *costs, self.clock, self._end_task, self._machine_is_empty))
            pools[machine.role].append(self._machines[-1])
        is_baseline = policy == "jsq-tokens"
        self._policy: PublishedPolicy = TokenJsq(self._machines) if is_baseline else MixedPool(**pools)
        columns = requests.arrival_s, requests.prompt_tokens, requests.output_tokens
        self._requests = [Request(*row) for row in zip(*(c.tolist() for c in columns), strict=True)]
        for request in self._requests:
            self.clock.at(request.arrival_s, self._arrive, request)

    def _machine_is_empty(self, machine: Machine) -> None:
        self._policy.machine_is_empty(machine)

    def _arrive(self, request: Request) -> None:
        source, destination = self._policy.place(request)
        if request.output_tokens == 1:
            destination = source
        request.prompt_machine, request.token_machine = source, destination
        source.pending_tokens += request.prompt_tokens
        if request.output_tokens > 1:
            destination.pending_tokens += 1
        if source is not destination:
            source.reserved_tokens += request.prompt_tokens + 1
        destination.reserved_tokens += request.prompt_tokens + request.output_tokens
        source.accept(request.prompt)
        if request.decodes_where_prompted:
            source.accept(request.decode)  # it waits in the queue from the start

    def _end_task(self, task: Task) -> None:
        request = task.request
        if not task.is_prompt:
            request.token_machine.pending_tokens -= 1
            self._finish(request)
            return
        request.prompt_machine.pending_tokens -= request.prompt_tokens
        request.first_token_s = request.decode.last_token_s = self.clock.now_s
        request.current = request.decode
        if request.output_tokens == 1:
            self._finish(request)
        elif request.token_machine is not request.prompt_machine:
            self._num_waiting_transfers += 1
            self._transfer(request)

    def _finish(self, request: Request) -> None:
        request.finish_s = self.clock.now_s
        request.token_machine.release(request.prompt_tokens + request.output_tokens)

    def _transfer(self, request: Request) -> None:
        """Send the KV-cache if there is room for it, else ask again later."""
        if request.token_machine.fits(request.prompt_tokens + 1):
            self._num_waiting_transfers -= 1
            request.token_machine.used_tokens += request.prompt_tokens + 1
            duration_s = self._kv_bytes_per_token * request.prompt_tokens / LINK_BYTES_PER_S
            self.clock.at(self.clock.now_s + duration_s, self._end_transfer, request)
            return
        self.clock.at(self.clock.now_s + TRANSFER_RETRY_S, self._transfer, request)
        nothing_else_to_come = len(self.clock.events) == self._num_waiting_transfers
        self._num_vain_retries = self._num_vain_retries + 1 if nothing_else_to_come else 0
        if self._num_vain_retries > self._num_waiting_transfers:
            self.clock.events.clear()  # locked up: each has asked again in vain, for ever

    def _end_transfer(self, request: Request) -> None:
        request.transfer_end_s = self.clock.now_s
        request.prompt_machine.release(request.prompt_tokens + 1)
        request.token_machine.accept(request.decode)
        request.prompt_machine.transfer_left()

    def rows(self, requests: Requests) -> RequestRows:
        """What happened."""

        def times_s(name: str) -> FloatArray:
            return np.array([getattr(request, name) for request in self._requests], dtype=np.float64)

        def numbers(name: str) -> IntArray:
            return np.array([getattr(request, name).number for request in self._requests], dtype=np.int64)

        finish_s = times_s("finish_s")
        gaps_s = [r.decode.tbt_max_s if r.output_tokens > 1 else np.nan for r in self._requests]
        return RequestRows(
            arrival_s=requests.arrival_s,
            prompt_tokens=requests.prompt_tokens,
            output_tokens=requests.output_tokens,
            prompt_machine=numbers("prompt_machine"),
            token_machine=numbers("token_machine"),
            prompt_start_s=times_s("prompt_start_s"),
            first_token_s=times_s("first_token_s"),
            transfer_end_s=times_s("transfer_end_s"),
            finish_s=finish_s,
            tbt_max_s=np.array(gaps_s, dtype=np.float64),
            status=np.where(np.isnan(finish_s), IN_FLIGHT, COMPLETED),
            end_s=self.clock.now_s,
        )


def _check(machines: Sequence[PublishedMachine], model: PublishedModel, requests: Requests, policy: str) -> None:
    if policy not in POLICIES:
        raise SplitgymError(f"policy: unknown {policy!r}{did_you_mean(policy, POLICIES)}")
    if not machines:
        raise SplitgymError("machines: none; the published simulator needs at least one")
    for number, machine in enumerate(machines):
        place = f"machines[{number}]"
        if machine.role not in ROLES:
            raise SplitgymError(f"{place}.role: unknown {machine.role!r}{did_you_mean(machine.role, ROLES)}")
        if machine.hardware not in model.latency:
            mend = did_you_mean(machine.hardware, model.latency)
            raise SplitgymError(f"{place}.hardware: unknown {machine.hardware!r}{mend}")
        if policy == "jsq-tokens" and machine.role != "mixed":
            raise SplitgymError(f"{place}.role: {machine.role!r}; with 'jsq-tokens' every machine is 'mixed'")
    for role in ("prompt", "token"):
        if not any(machine.role in (role, "mixed") for machine in machines):
            raise SplitgymError(f"machines: none for the {role} phase; add one of role {role!r} or 'mixed'")
    too_large = np.flatnonzero(requests.prompt_tokens + requests.output_tokens > model.capacity_tokens)
    if len(too_large):
        row = int(too_large[0])
        tokens = requests.prompt_tokens[row] + requests.output_tokens[row]
        holds = int(model.capacity_tokens)
        raise SplitgymError(f"requests[{row}]: {tokens} tokens; a machine holds {holds}: shorten or drop it")

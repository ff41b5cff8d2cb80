"""NVIDIA Dynamo's planner: how many of the workers prefill and how many decode (repurposing).

An in-process plugin of the stage ``propose``. In the planner's configuration:

    plugin_registration:
      in_process_plugins:
        - {module: splitgym.integrations.dynamo, class: SplitgymPropose, plugin_id: splitgym, plugin_type: propose,
           priority: 5, execution_interval_seconds: 30, needs: [observations.workers, observations.fpm,
           observations.traffic], kwargs: {policy: bundle.zip, model: llama3-70b, hardware: h100-80gb}}

The smallest priority's word counts; the planner's own proposals have 10 and 20. The number of workers stays as it is:
one of a role becomes one of the other, which Dynamo carries out by ending one and starting another.

Tested with the plugin types, the loader and the orchestrator of ai-dynamo 1.6.1, without Kubernetes and engines.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from dynamo.common.forward_pass_metrics import decode
from dynamo.planner.plugins.types import (
    AcceptResult,
    ComponentTarget,
    ObservationData,
    OverrideResult,
    ProposeStageRequest,
    ProposeStageResponse,
)

from splitgym.features import CLUSTER_COLUMN
from splitgym.machines import cached_profile
from splitgym.policies import make_policy
from splitgym.sim import books as b
from splitgym.sim.books import Books
from splitgym.sim.cluster import Cluster, Machine
from splitgym.view import MIXED, PROMPT, TICK, TOKEN, ClusterView

_log = logging.getLogger(__name__)


class SplitgymPropose:
    """Asks a policy that repurposes, at each of the planner's ticks.

    Args:
        policy: a bundle's path, or a pool heuristic such as ``lmetric+proportional``.
        model: whose profiles the features come from.
        hardware: of every worker.
        tensor_parallel: of every worker.
        baseline: hardware of the baseline machine.
        switch_s: what a change costs, for the view: ending a worker and starting another.
        seed: of a policy that draws.

    Raises:
        SplitgymError: if there is no such policy or profile.
    """

    def __init__(
        self,
        policy: str,
        model: str,
        hardware: str,
        tensor_parallel: int = 8,
        baseline: str = "a100-80gb",
        switch_s: float = 60.0,
        seed: int = 0,
    ) -> None:
        self._policy = make_policy(policy)
        self._profile = cached_profile(model, hardware, tensor_parallel)
        self._baseline = cached_profile(model, baseline, tensor_parallel)
        self._switch_s = switch_s
        self._seed = seed
        self._books: Books | None = None

    async def Propose(self, request: ProposeStageRequest) -> ProposeStageResponse:  # noqa: N802  # Dynamo's name
        """The numbers of workers after the policy's role changes; no opinion while workers come or go, or unseen."""
        seen = None if request.context is None else request.context.observations
        if seen is None or seen.workers is None:
            return _no_opinion()
        workers = seen.workers
        if workers.prefill_scaling_in_progress or workers.decode_scaling_in_progress:
            return _no_opinion()
        if not workers.ready_prefill or not workers.ready_decode:
            return _no_opinion()
        counts = {PROMPT: workers.ready_prefill, TOKEN: workers.ready_decode}
        try:
            changes = self._policy.decide(self._view(counts, seen)).role_changes
        except Exception:  # whatever a policy raises, the planner's own proposals stand
            _log.exception("policy %s failed", self._policy.name)
            return _no_opinion()
        for machine, role in changes:
            old = PROMPT if machine < workers.ready_prefill else TOKEN
            if role in counts and role != old:
                counts[old] -= 1
                counts[role] += 1
        if not changes or min(counts.values()) < 1:
            return _no_opinion()
        targets = [
            ComponentTarget(sub_component_type="prefill", replicas=counts[PROMPT]),
            ComponentTarget(sub_component_type="decode", replicas=counts[TOKEN]),
        ]
        return ProposeStageResponse(override=OverrideResult(targets=targets, reason=f"splitgym: {self._policy.name}"))

    def _view(self, counts: Mapping[int, int], seen: ObservationData) -> ClusterView:
        """A tick's view: a row for each worker, those that prefill first."""
        books = self._books_of(counts)
        now_s = time.monotonic()
        roles = [PROMPT] * counts[PROMPT] + [TOKEN] * counts[TOKEN]
        output_tokens = 0.0 if seen.traffic is None else seen.traffic.osl
        books.rows[:, b.PENDING_PROMPTS : b.KV_HELD + 1] = 0.0
        books.rows[:, b.ROLE] = roles
        books.rows[:, b.PROMPT_SINCE_S] = now_s
        if seen.fpm is not None:
            for first, engines in ((0, seen.fpm.prefill_engines), (counts[PROMPT], seen.fpm.decode_engines)):
                for row, passes in zip(range(first, len(roles)), _by_worker(engines), strict=False):
                    _fill(books, row, passes, output_tokens)
        view = books.view(TICK, now_s, 0, 0.0)
        if seen.traffic is not None and seen.traffic.duration_s > 0:
            rate = seen.traffic.num_req / seen.traffic.duration_s
            view.cluster[CLUSTER_COLUMN["arrival_rate_rps"]] = rate
            view.cluster[CLUSTER_COLUMN["prompt_token_rate"]] = rate * seen.traffic.isl
            view.cluster[CLUSTER_COLUMN["output_token_rate"]] = rate * output_tokens
        role_mask = view.role_mask.copy()
        role_mask[:, MIXED] = False  # Dynamo has no such workers
        return dataclasses.replace(view, role_mask=role_mask)

    def _books_of(self, counts: Mapping[int, int]) -> Books:
        """Those of so many workers; the policy starts anew when there are more or fewer."""
        total = sum(counts.values())
        if self._books is None or len(self._books.rows) != total:
            machines = tuple(Machine(role, self._profile) for role, count in counts.items() for _ in range(count))
            cluster = Cluster(machines, self._profile.model, self._baseline, switch_s=self._switch_s)
            self._policy.reset(cluster, self._seed)
            self._books = Books(cluster)
        return self._books


def _no_opinion() -> ProposeStageResponse:
    return ProposeStageResponse(accept=AcceptResult())


def _by_worker(engines: Mapping[str, bytes]) -> list[list[Any]]:
    """The last forward passes of each worker, one for each of its data-parallel ranks; workers in order."""
    found = defaultdict(list)
    for key, content in sorted(engines.items()):
        if (one := decode(content)) is not None:
            found[key.rpartition("/")[0]].append(one)
    return list(found.values())


def _fill(books: Books, row: int, passes: list[Any], output_tokens: float) -> None:
    """Write what a worker's forward passes tell into its row; outputs are taken to be half done."""
    parts = [part for one in passes for part in (one.scheduled_requests, one.queued_requests)]
    prompts, prompt_tokens = sum(p.num_prefill_requests for p in parts), sum(p.sum_prefill_tokens for p in parts)
    decodes, context = sum(p.num_decode_requests for p in parts), sum(p.sum_decode_kv_tokens for p in parts)
    running = sum(o.scheduled_requests.num_prefill_requests + o.scheduled_requests.num_decode_requests for o in passes)
    machine = books.rows[row]
    machine[b.PENDING_PROMPTS], machine[b.PENDING_TOKENS] = prompts, prompt_tokens
    machine[b.PENDING_S] = prompts * books.prompt_s(row, round(prompt_tokens / prompts)) if prompts else 0.0
    machine[b.DECODES], machine[b.CONTEXT] = decodes, context
    machine[b.REMAINING] = decodes * output_tokens / 2
    machine[b.BOOKED_KV] = prompt_tokens + context + machine[b.REMAINING]
    machine[b.RUNNING], machine[b.WAITING] = running, prompts + decodes - running
    machine[b.KV_HELD] = context + sum(o.scheduled_requests.sum_prefill_kv_tokens for o in passes)

"""Who decides: a policy that is trusted with nothing, a fallback, and a shadow that is only listened to."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, replace
from operator import index

from splitgym.errors import SplitgymError
from splitgym.policies import Combined, CompiledPolicy, Policy, list_policies, make_policy
from splitgym.router.metrics import Metrics
from splitgym.router.worker import Busy, Worker
from splitgym.sim.books import Books
from splitgym.sim.cluster import Cluster
from splitgym.view import ARRIVAL, PROMPT, ROLES, TICK, TOKEN, ClusterView, Decision

_LOAD_S = 60.0


@dataclass(frozen=True)
class Choice:
    """What was decided, and by whom."""

    decision: Decision
    policy: str
    fallback: str = ""  # why the fallback decided: timeout, exception or nonsense
    propensity: float | None = None  # the probability with which the policy decides so, where it is known
    shadow: asyncio.Future[Decision] | None = None


class NoChoice(Exception):  # noqa: N818
    """Not even the fallback found machines."""


class Decider:
    """Asks the policy, within its time, and the fallback where that fails.

    Compiled heuristics, and policies with ``never_blocks = True``, are asked in the event loop. Others may hang: they
    have a thread, and while that has not come back the fallback decides at once.

    Args:
        cluster: what they decide on.
        policy: see `splitgym.policies.make_policy`.
        fallback: a built-in heuristic.
        timeout_s: how long the policy may take.
        seed: of policies that draw.
        metrics: where decisions are counted.

    Raises:
        SplitgymError: if there is no such policy, or it cannot decide on this cluster.
    """

    def __init__(
        self, cluster: Cluster, policy: str, fallback: str, timeout_s: float, seed: int, metrics: Metrics
    ) -> None:
        self._cluster = cluster
        self._timeout_s = timeout_s
        self._seed = seed
        self._metrics = metrics
        try:
            self._fallback = self._made(fallback)
        except SplitgymError as error:
            raise SplitgymError(f"policy.fallback: {error}") from None
        if not _never_blocks(self._fallback):
            raise SplitgymError(f"policy.fallback: {fallback!r} is no built-in heuristic; name one, such as lmetric")
        self._policy = self._made(policy)
        self._worker = None if _never_blocks(self._policy) else Worker("splitgym-policy")
        self._shadow: Policy | None = None
        self._shadow_worker: Worker | None = None

    @property
    def policy_name(self) -> str:
        """Who decides."""
        return self._policy.name

    @property
    def shadow_name(self) -> str | None:
        """Who is listened to."""
        return None if self._shadow is None else self._shadow.name

    async def swap(self, policy: str) -> None:
        """Let another policy decide from now on. What is under way goes on.

        Raises:
            SplitgymError: if there is no such policy; nothing has changed then.
        """
        made = await self._made_aside(policy)
        old = self._worker
        self._policy, self._worker = made, None if _never_blocks(made) else Worker("splitgym-policy")
        if old is not None:
            old.close()

    async def swap_shadow(self, policy: str | None) -> None:
        """Listen to another policy, or to none.

        Raises:
            SplitgymError: if there is no such policy; nothing has changed then.
        """
        made = None if policy is None else await self._made_aside(policy)
        old = self._shadow_worker
        self._shadow, self._shadow_worker = made, None if made is None else Worker("splitgym-shadow")
        if old is not None:
            old.close()

    async def decide(self, view: ClusterView) -> Choice:
        """What is to be done now; it is permitted by the view's masks.

        Raises:
            NoChoice: if nobody finds machines.
        """
        started_s = time.perf_counter()
        shadow = self._ask_shadow(view)
        policy = self._policy
        try:
            decision = await self._ask(policy, view)
            fallback = "" if _is_permitted(decision, view) else "nonsense"
        except (TimeoutError, Busy):
            fallback = "timeout"
        except Exception:
            fallback = "exception"
        if fallback:
            self._metrics.fallbacks.labels(fallback).inc()
            policy = self._fallback
            decision = policy.decide(view)
            if not _is_permitted(decision, view):
                raise NoChoice
        self._metrics.decision_s.observe(time.perf_counter() - started_s)
        return Choice(decision, policy.name, fallback, _propensity(policy, view), shadow)

    async def _ask(self, policy: Policy, view: ClusterView) -> Decision:
        if self._worker is None:
            return policy.decide(view)
        copy = copied(view)
        return await asyncio.wait_for(self._worker.start(lambda: policy.decide(copy)), self._timeout_s)

    def _ask_shadow(self, view: ClusterView) -> asyncio.Future[Decision] | None:
        if self._shadow is None or self._shadow_worker is None:
            return None
        shadow, copy = self._shadow, copied(view)
        try:
            future = self._shadow_worker.start(lambda: shadow.decide(copy))
        except Busy:
            return None
        future.add_done_callback(lambda done: done.cancelled() or done.exception())  # a failing shadow is no news
        return future

    async def _made_aside(self, name: str) -> Policy:
        """Made in a thread: it may take long, or run code of the user's that hangs."""
        worker = Worker("splitgym-load")
        try:
            return await asyncio.wait_for(worker.start(lambda: self._made(name)), _LOAD_S)
        except TimeoutError:
            raise SplitgymError(f"policy {name!r}: not loaded after {_LOAD_S:g} s; see what it waits for") from None
        finally:
            worker.close()

    def _made(self, name: str) -> Policy:
        oracles = [info.name for info in list_policies() if info.kind == "oracle"]
        if any(part in oracles for part in name.split("+")):
            raise SplitgymError(f"policy {name!r}: an oracle knows what no router can; name another")
        policy = make_policy(name)
        policy.reset(self._cluster, self._seed)
        if _never_blocks(policy):
            self._warm(policy)
        return policy

    def _warm(self, policy: Policy) -> None:
        """Have it compiled now: in the event loop every stream would wait for that."""
        books = Books(self._cluster)
        for kind in (ARRIVAL, TICK):
            policy.decide(books.view(kind, 1.0, 1 if kind == ARRIVAL else 0, 1.0))
        policy.reset(self._cluster, self._seed)


def copied(view: ClusterView) -> ClusterView:
    """A view that lasts."""
    return replace(
        view,
        machines=view.machines.copy(),
        request=view.request.copy(),
        cluster=view.cluster.copy(),
        prompt_mask=view.prompt_mask.copy(),
        token_mask=view.token_mask.copy(),
        role_mask=view.role_mask.copy(),
    )


def _never_blocks(policy: Policy) -> bool:
    if isinstance(policy, Combined):
        return _never_blocks(policy.routing) and _never_blocks(policy.pool)
    return isinstance(policy, CompiledPolicy) or getattr(policy, "never_blocks", False) is True


def _is_permitted(decision: object, view: ClusterView) -> bool:
    """Whether a decision can be carried out; a machine may be named that one of its role changes opens."""
    if not isinstance(decision, Decision):
        return False
    try:
        machines = range(view.num_machines)
        for machine, role in decision.role_changes:
            if index(machine) not in machines or index(role) not in range(len(ROLES)):
                return False
        if view.kind == TICK:
            return True
        prompt, token = index(decision.prompt_machine), index(decision.token_machine)
        return prompt in machines and token in machines and _may(view, decision, prompt, token)
    except (TypeError, ValueError):
        return False


def _may(view: ClusterView, decision: Decision, prompt: int, token: int) -> bool:
    changes = {index(m): index(role) for m, role in decision.role_changes if view.role_mask[m, role]}
    prompt_may = changes[prompt] != TOKEN if prompt in changes else bool(view.prompt_mask[prompt])
    token_may = changes[token] != PROMPT if token in changes else bool(view.token_mask[token])
    return prompt_may and token_may


def _propensity(policy: Policy, view: ClusterView) -> float | None:
    """A policy that draws says the probability of its last decision in ``propensity``; heuristics do not draw."""
    said = getattr(policy, "propensity", None)
    if isinstance(said, float):
        return said
    if not isinstance(policy, CompiledPolicy) or policy.builtin.name == "power-of-two":
        return None
    if policy.builtin.name != "random" or view.kind == TICK:
        return 1.0
    return 1.0 / (int(view.prompt_mask.sum()) * int(view.token_mask.sum()))

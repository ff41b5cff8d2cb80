"""Small clusters with laws one can compute by hand."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from splitgym.hardware import LatencyLaw, load_profile, model_spec
from splitgym.sim.cluster import Batching, Cluster, Machine, Transfer, VllmBatching
from splitgym.view import MIXED, PROMPT, PROMPT_END, TICK, TOKEN, ClusterView, Decision
from splitgym.workload import Requests

ROLE = {"p": PROMPT, "t": TOKEN, "m": MIXED}
MODEL = model_spec("llama2-70b")


def law(prompt_s: float = 1.0, decode_s: float = 0.1) -> LatencyLaw:
    """Every iteration with a prompt takes ``prompt_s``, every other ``decode_s``, whatever is in it."""
    return LatencyLaw(
        decode_points=((1, decode_s),),
        batch_points=((1, prompt_s),),
        decode_context_s=0.0,
        mixed_context_s=0.0,
        mixed_decode_s=max(decode_s - prompt_s, 0.0),
        attention_s=0.0,
    )


def cluster(
    roles: str = "pt",
    *,
    latency: LatencyLaw | None = None,
    kv_capacity_tokens: int = 100_000,
    transfer: Transfer | None = None,
    batching: Batching | VllmBatching | None = None,
    switch_s: float = 0.0,
    link_bytes_per_s: float = 1e15,
) -> Cluster:
    """A cluster with a machine for each letter of ``roles``: p, t or m."""
    profile = load_profile("llama2-70b", "h100-80gb")
    profile = dataclasses.replace(
        profile, law=latency or law(), kv_capacity_override_tokens=kv_capacity_tokens, link_bytes_per_s=link_bytes_per_s
    )
    return Cluster(
        machines=tuple(Machine(ROLE[role], profile) for role in roles),
        model=MODEL,
        baseline=profile,
        batching=batching or Batching(),
        transfer=transfer or Transfer(),
        switch_s=switch_s,
    )


def requests(*rows: tuple[float, int, int]) -> Requests:
    """Requests from (arrival, prompt tokens, output tokens), their outputs predicted exactly."""
    arrival_s, prompt_tokens, output_tokens = zip(*rows, strict=True)
    return Requests(
        np.array(arrival_s, np.float64),
        np.array(prompt_tokens, np.int64),
        np.array(output_tokens, np.int64),
        np.array(output_tokens, np.float64),
    )


class Fixed:
    """Sends request ``i`` to ``pairs[i % len(pairs)]``; changes roles at given times."""

    name = "fixed"

    def __init__(
        self, pairs: Sequence[tuple[int, int]], roles_at: dict[float, tuple[tuple[int, int], ...]] | None = None
    ) -> None:
        self.pairs = pairs
        self.roles_at = roles_at or {}
        self._next = self._ended = 0

    def reset(self, cluster: Cluster, seed: int) -> None:
        self._next = self._ended = 0

    def decide(self, view: ClusterView) -> Decision:
        if view.kind == TICK:
            return Decision(role_changes=self.roles_at.get(view.time_s, ()))
        if view.kind == PROMPT_END:  # in the order in which they come
            self._ended += 1
            return Decision(*self.pairs[(self._ended - 1) % len(self.pairs)])
        pair = self.pairs[self._next % len(self.pairs)]
        self._next += 1
        return Decision(*pair)


class Shortest:
    """Fewest pending prompts; fewest decodes, coming ones included."""

    name = "shortest"

    def reset(self, cluster: Cluster, seed: int) -> None:
        pass

    def decide(self, view: ClusterView) -> Decision:
        if view.kind == TICK:
            return Decision()
        prompts = np.where(view.prompt_mask, view["pending_prompts"], np.inf)
        tokens = np.where(view.token_mask, view["decodes"] + view["coming_decodes"], np.inf)
        return Decision(int(prompts.argmin()), int(tokens.argmin()))

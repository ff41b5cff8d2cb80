"""A policy ready to decide, on a cluster given by its roles."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest

from splitgym.policies import BUILTINS, CompiledPolicy
from tests.sim.build import cluster

Make = Callable[..., CompiledPolicy]


@pytest.fixture
def make() -> Make:
    def ready(
        name: str, roles: str = "pptt", *, params: Mapping[str, float] | None = None, seed: int = 0
    ) -> CompiledPolicy:
        policy = CompiledPolicy(BUILTINS[name], params)
        policy.reset(cluster(roles), seed)
        return policy

    return ready

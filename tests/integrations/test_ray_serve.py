"""The request router in Ray Serve itself: one node, a deployment of two replicas."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from tests.integrations.conftest import ConfigFile

pytest.importorskip("ray.serve", reason="pip install 'ray[serve]': see make test-integrations")

import ray
from ray import serve
from ray.serve.config import RequestRouterConfig

SETTLES_S = 0.3
ROUTER = "splitgym.integrations.ray_serve.SplitgymRouter"


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    serve.shutdown()
    ray.shutdown()


@serve.deployment(num_replicas=2, max_ongoing_requests=100, ray_actor_options={"num_cpus": 0})
class Engine:
    """Says who it is."""

    async def __call__(self, body: Any) -> str:
        if body == "fail":
            raise RuntimeError("no")
        await asyncio.sleep(body.get("lasts_s", 0))
        return str(serve.get_replica_context().replica_id.unique_id)

    def record_routing_stats(self) -> dict[str, float]:
        return {"num_running_reqs": 0, "num_waiting_reqs": 0, "kv": 0.25}


def test_requests_go_where_the_policy_says(cluster: None, config_file: ConfigFile) -> None:
    """Fewest requests first: one by one all go to the first row; eight that last are four on each of two replicas."""
    router = RequestRouterConfig(request_router_class=ROUTER, request_router_kwargs={"config": config_file()})
    handle = serve.run(Engine.options(request_router_config=router).bind(), name="app", route_prefix=None)
    body = {"prompt": [1] * 20, "max_tokens": 3}

    def ask(asked: Any) -> str:
        """The answer, and a moment for the router to hear that the request has ended."""
        try:
            return str(handle.remote(asked).result(timeout_s=30))
        finally:
            time.sleep(SETTLES_S)

    served = {ask(body) for _ in range(5)}
    assert len(served) == 1  # nothing is under way at any decision: of equals always the first
    with pytest.raises(RuntimeError):
        ask("fail")
    assert ask(body) in served  # what has failed has ended, too

    lasting = []
    for _ in range(8):
        lasting.append(handle.remote({**body, "lasts_s": 30 * SETTLES_S}))
        time.sleep(SETTLES_S)
    assert sorted(Counter(each.result(timeout_s=30) for each in lasting).values()) == [4, 4]

"""The routing logic that takes round-robin's place.

production-stack's router is not on the index: a stand-in with the interfaces that the plugin uses takes its place. It
shows that the plugin does its part, and cannot show that the router's interfaces are still these.
"""

from __future__ import annotations

import gc
import importlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from splitgym.sim import books as b
from tests.integrations.conftest import ConfigFile

PLUGIN = "splitgym.integrations.production_stack"
STAND_IN = ("vllm_router", "vllm_router.routers", "vllm_router.routers.routing_logic")
URLS = [f"http://10.0.0.{number}:8000" for number in (1, 2, 3)]


class RoundRobinRouter:
    """What is known of the router's own: it sorts by URL and takes turns."""

    def __init__(self) -> None:
        self.turn = 0

    def route_request(self, endpoints: Any, engine_stats: Any, request_stats: Any, request: Any) -> str:
        self.turn += 1
        return str(sorted(each.url for each in endpoints)[(self.turn - 1) % len(endpoints)])


class Request:
    """As Starlette's: it has a ``state``, and ends when nobody holds it."""

    def __init__(self) -> None:
        self.state = SimpleNamespace()


@dataclass
class EngineStats:
    num_running_requests: int = 0
    num_queuing_requests: int = 0
    gpu_cache_usage_perc: float = 0.0


@dataclass
class RequestStats:
    in_prefill_requests: int = 0


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch, config_file: ConfigFile) -> Iterator[Any]:
    """The plugin as ``--callbacks`` imports it."""
    for name in STAND_IN:
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    logic: Any = sys.modules[STAND_IN[2]]
    logic.RoundRobinRouter = RoundRobinRouter
    parent: Any = sys.modules[STAND_IN[1]]
    parent.routing_logic = logic
    monkeypatch.setenv("SPLITGYM_ROUTER_CONFIG", config_file())
    monkeypatch.delitem(sys.modules, PLUGIN, raising=False)
    yield importlib.import_module(PLUGIN)
    sys.modules.pop(PLUGIN, None)


def endpoints(urls: list[str]) -> list[SimpleNamespace]:
    return [SimpleNamespace(url=url) for url in urls]


def test_it_is_what_the_router_makes_as_round_robin(plugin: Any) -> None:
    logic: Any = sys.modules[STAND_IN[2]]
    assert logic.RoundRobinRouter is plugin.SplitgymRouter and issubclass(plugin.SplitgymRouter, RoundRobinRouter)


def test_a_requests_life(plugin: Any) -> None:
    """Bodies reach the policy through the callback; an ended request, however it ended, is out of the books."""
    router = plugin.SplitgymRouter()
    books = router._chooser.books
    requests = [Request() for _ in range(6)]
    sent = []
    for request in requests:
        assert plugin.handler.pre_request(request, b"", {"prompt": [1] * 30, "max_tokens": 5}) is None
        sent.append(router.route_request(endpoints(URLS), {}, {}, request))
    assert sorted(sent) == sorted(URLS * 2)
    assert books.rows[:, b.PENDING_TOKENS].tolist() == [60.0] * 3
    assert books.rows[:, b.REMAINING].tolist() == [8.0] * 3  # two of 5 tokens, the first of each by the prompt phase
    plugin.handler.post_request(requests[0], b"")

    said = {URLS[0]: EngineStats(2, 1, 0.5)}
    counted = {url: RequestStats(in_prefill_requests=1) for url in URLS}
    router.route_request(endpoints(URLS), said, counted, Request())
    assert books.rows[0, [b.RUNNING, b.WAITING]].tolist() == [2, 1]
    assert books.rows[:, b.DECODES].sum() == 3  # of two on each the older has its first token

    requests.clear()
    del request
    gc.collect()
    router.route_request(endpoints(URLS), {}, {}, kept := Request())
    assert books.rows[:, b.PENDING_PROMPTS].sum() == 1 and kept is not None


def test_engines_that_the_file_does_not_know(plugin: Any) -> None:
    """In turn, as without the plugin; known ones are preferred."""
    router = plugin.SplitgymRouter()
    unknown = ["http://10.9.9.1:1", "http://10.9.9.2:1"]
    assert [router.route_request(endpoints(unknown), {}, {}, Request()) for _ in range(3)] == [*unknown, unknown[0]]
    assert router.route_request(endpoints([*unknown, URLS[2]]), {}, {}, Request()) == URLS[2]


def test_the_file_must_be_named(plugin: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SPLITGYM_ROUTER_CONFIG")
    with pytest.raises(Exception, match="SPLITGYM_ROUTER_CONFIG: not set"):
        plugin.SplitgymRouter()

"""vLLM production-stack's router: which engine serves a request.

Switch it on with ``--routing-logic roundrobin --callbacks splitgym.integrations.production_stack.handler`` and the
environment variable ``SPLITGYM_ROUTER_CONFIG``, the path of a router's YAML file with ``protocol: plain`` whose engines
have the URLs of ``--static-backends`` (or of what Kubernetes discovers). The callbacks' module is imported before the
routing logic is made; importing this one puts `SplitgymRouter` in the place of round-robin.

Written after the interfaces in the project's repository (`route_request` of a routing logic; `pre_request` and
`post_request` of a callback handler). The package is not on the index (``vllm-router`` there is another project), so
its tests run against a stand-in of these interfaces, not against the router itself.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

from vllm_router.routers import routing_logic

from splitgym.errors import SplitgymError
from splitgym.integrations.chooser import Chooser

CONFIG = "SPLITGYM_ROUTER_CONFIG"


class SplitgymRouter(routing_logic.RoundRobinRouter):  # type: ignore[misc]  # the package has no types here
    """Asks the policy; goes in turn where it does not know the engines."""

    def __init__(self) -> None:
        super().__init__()
        path = os.environ.get(CONFIG)
        if path is None:
            raise SplitgymError(f"{CONFIG}: not set; give it the path of a router's YAML file")
        self._chooser = Chooser(path)

    def route_request(
        self, endpoints: Sequence[Any], engine_stats: Mapping[str, Any], request_stats: Mapping[str, Any], request: Any
    ) -> str:
        """The URL of the engine that gets the request.

        Args:
            endpoints: those that serve its model, with their ``url``.
            engine_stats: what was scraped of each, by URL.
            request_stats: what the router counts of each, by URL.
            request: Starlette's; `handler` has left its body there.
        """
        chooser = self._chooser
        urls: dict[int, str] = {
            machine: each.url for each in endpoints if (machine := chooser.machine_of(each.url)) is not None
        }
        for machine, url in urls.items():
            if (said := engine_stats.get(url)) is not None:
                said_of_itself = (
                    said.num_running_requests,
                    said.num_queuing_requests,
                    min(said.gpu_cache_usage_perc, 1.0),
                )
                chooser.books.report(machine, *said_of_itself)
            if (counted := request_stats.get(url)) is not None:
                chooser.keep(machine, counted.in_prefill_requests)
        lengths = chooser.lengths(getattr(request.state, "splitgym_body", None))
        decision = chooser.choose(lengths, urls, urls)
        if decision is None:
            return str(super().route_request(endpoints, engine_stats, request_stats, request))
        booking = chooser.book(lengths, decision.prompt_machine, decision.prompt_machine)
        weakref.finalize(request, chooser.finished, booking)
        return urls[decision.prompt_machine]


class Handler:
    """Callbacks: the routing logic does not see the body, they do."""

    def pre_request(self, request: Any, request_body: bytes, request_json: Any) -> None:
        """Leave the body where `SplitgymRouter` finds it; the request goes on."""
        request.state.splitgym_body = request_json

    def post_request(self, request: Any, response_content: bytes) -> None:
        """Nothing: that a request has ended is seen by its object's end, which failures have, too."""


handler = Handler()
routing_logic.RoundRobinRouter = SplitgymRouter

"""Ray Serve: which replica of a deployment serves a request.

Switch it on with the deployment's ``request_router_config``:

    RequestRouterConfig(
        request_router_class="splitgym.integrations.ray_serve.SplitgymRouter",
        request_router_kwargs={"config": "/etc/splitgym/router.yaml"},
    )

The file is a router's YAML with ``protocol: plain`` and as many engines as there may be replicas; these take its rows
in turn, so give all the same hardware. It must be where requests are routed: on the nodes of proxies and of handles.
Each of these keeps books of its own and sees of the others' requests only what the replicas say: a deployment whose
``record_routing_stats`` returns ``num_running_reqs``, ``num_waiting_reqs`` and ``kv`` (the share of KV memory in use)
tells how its engine is.

Tested with ray[serve] 2.60.0.
"""

from __future__ import annotations

from typing import Any

from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

from splitgym.integrations.chooser import Chooser
from splitgym.router.books import Booking


class SplitgymRouter(RequestRouter):  # type: ignore[misc]  # the package is not there when types are checked
    """Asks the policy; any replica is as good where it names none."""

    def initialize_state(self, config: str) -> None:
        """Called by Serve with ``request_router_kwargs``.

        Args:
            config: the path of a router's YAML file.
        """
        self.chooser = Chooser(config)
        self._bookings: dict[str, Booking] = {}  # by the request's internal id

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """The chosen replica, then, if it is full, the others."""
        if pending_request is not None:
            pending_request.routing_context.should_backoff = True  # when all are full, ask again later, not at once
        replicas = {replica.replica_id.unique_id: replica for replica in candidate_replicas}
        machines = self.chooser.seated(replicas)
        for machine, name in machines.items():
            stats = replicas[name].routing_stats
            if "num_running_reqs" in stats:
                waiting, share = stats.get("num_waiting_reqs", 0), stats.get("kv", 0.0)
                self.chooser.hear(machine, stats["num_running_reqs"], waiting, share)
        decision = self.chooser.choose(self._lengths(pending_request), machines, machines)
        if decision is None:
            return [candidate_replicas]
        chosen = replicas.pop(machines[decision.prompt_machine])
        return [[chosen], list(replicas.values())]

    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, result: Any) -> None:
        """A replica has taken the request."""
        for machine in self.chooser.seated([replica_id.unique_id]):
            booking = self.chooser.book(self._lengths(pending_request), machine, machine)
            self._bookings[pending_request.metadata.internal_request_id] = booking

    def on_request_completed(self, replica_id: ReplicaID, internal_request_id: str) -> None:
        """The request is over, well or not."""
        booking = self._bookings.pop(internal_request_id, None)
        if booking is not None:
            self.chooser.finished(booking)

    def _lengths(self, pending_request: PendingRequest | None) -> tuple[int, float]:
        """From the first argument: a text, a body, or an object with ``messages`` or a ``prompt``."""
        first = pending_request.args[0] if pending_request is not None and pending_request.args else None
        for name in ("messages", "prompt"):
            if hasattr(first, name):
                first = {name: getattr(first, name), "max_tokens": getattr(first, "max_tokens", None)}
        return self.chooser.lengths(first)

"""py-inference-scheduler: a scorer that prefers the machine which the policy names.

Import this module before the scheduler reads its configuration, in which a profile then may say
``scorers: [{type: splitgym, config: router.yaml}]``: the path of a router's YAML file with ``protocol: plain``. Its
engines are named as the endpoints are, or else taken in turn. The scheduler does not tell scorers that a request has
ended: the endpoint's ``queue_len``, else the running and waiting requests of its ``routing_stats``, say how many there
are, and the oldest beyond that are taken to be over.

Tested with py-inference-scheduler 0.1.0.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from py_inference_scheduler.framework import CycleState, Endpoint, LLMRequest, register_scorer

from splitgym.errors import SplitgymError
from splitgym.integrations.chooser import Chooser

_LENGTHS = "splitgym.lengths"  # in the cycle's state


@register_scorer("splitgym")
class SplitgymScorer:
    """Scores the chosen endpoint 1, all others 0; all 0 if none is chosen.

    Args:
        config: the path of a router's YAML file.
    """

    def __init__(self, config: str) -> None:
        self.chooser = Chooser(config)

    def score(self, cycle_state: CycleState, request: LLMRequest, pods: Mapping[str, Endpoint]) -> dict[str, float]:
        """By the endpoint's name.

        Raises:
            SplitgymError: for an endpoint that does not say how many requests it has.
        """
        machines = self.chooser.seated(pods)
        for machine, name in machines.items():
            self._hear(machine, name, pods[name].attributes)
        lengths = self.chooser.lengths(request.body)
        cycle_state.set(_LENGTHS, lengths)
        decision = self.chooser.choose(lengths, machines, machines)
        chosen = None if decision is None else machines[decision.prompt_machine]
        return {name: float(name == chosen) for name in pods}

    def pre_request(self, cycle_state: CycleState, request: LLMRequest, endpoint: Endpoint) -> None:
        """The request goes to ``endpoint``: where there are other scorers, perhaps not to the chosen one."""
        lengths: Any = cycle_state.get(_LENGTHS)
        for machine in self.chooser.seated([endpoint.name]):
            self.chooser.book(lengths, machine, machine)

    def _hear(self, machine: int, name: str, attributes: Mapping[str, Any]) -> None:
        stats = attributes.get("routing_stats") or {}
        running, waiting = stats.get("num_running_reqs"), stats.get("num_waiting_reqs", 0)
        requests = attributes.get("queue_len", None if running is None else running + waiting)
        if requests is None:
            raise SplitgymError(f"endpoint {name!r}: neither queue_len nor routing_stats; have the data layer give one")
        if running is None:
            self.chooser.keep(machine, requests, requests)
        else:
            self.chooser.hear(machine, running, waiting, stats.get("kv", 0.0), requests)

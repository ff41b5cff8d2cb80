"""The plugin in the planner's own loader, merge and orchestrator.

``aisimulate``, which the package needs to be imported, is on the index as a placeholder that fetches its real wheel
from elsewhere; where it is not installed an empty module stands for it. No plugin reaches that performance model.
"""

from __future__ import annotations

import asyncio
import importlib.util
import sys
from typing import Any
from unittest.mock import MagicMock

import pytest

pytest.importorskip("dynamo.common.forward_pass_metrics", reason="pip install ai-dynamo: see make test-integrations")
if importlib.util.find_spec("aisimulate_core") is None:
    for name in ("aisimulate_core", "aisimulate_core.sdk", "aisimulate"):
        sys.modules[name] = MagicMock()

from dynamo.common.forward_pass_metrics import (
    ForwardPassMetrics,
    QueuedRequestMetrics,
    ScheduledRequestMetrics,
    encode,
)
from dynamo.planner.plugins.clock import VirtualClock
from dynamo.planner.plugins.merge.types import ComponentKey
from dynamo.planner.plugins.orchestrator import LocalPlannerOrchestrator
from dynamo.planner.plugins.orchestrator.in_process_loader import load_in_process_plugins
from dynamo.planner.plugins.registry.config import AuthConfig, PluginRegistrationConfig, build_registry_from_config
from dynamo.planner.plugins.scheduler import PluginScheduler
from dynamo.planner.plugins.types import (
    FpmData,
    ObservationData,
    PipelineContext,
    ProposeStageRequest,
    TrafficMetrics,
    WorkerState,
)

from splitgym.integrations.dynamo import SplitgymPropose
from splitgym.view import PROMPT, TOKEN, ClusterView

KWARGS = {"policy": "lmetric+proportional", "model": "llama2-70b", "hardware": "h100-80gb"}


def forward_pass(prompts: int = 0, prompt_tokens: int = 0, decodes: int = 0, context: int = 0) -> bytes:
    """All queued prompts wait, all decodes run."""
    queued = QueuedRequestMetrics(num_prefill_requests=prompts, sum_prefill_tokens=prompt_tokens)
    scheduled = ScheduledRequestMetrics(num_decode_requests=decodes, sum_decode_kv_tokens=context)
    content: bytes = encode(ForwardPassMetrics(scheduled_requests=scheduled, queued_requests=queued))
    return content


def context(isl: float, osl: float, prefill: int = 4, decode: int = 4, **workers: Any) -> PipelineContext:
    """A minute of 600 requests of so many tokens."""
    return PipelineContext(
        observations=ObservationData(
            traffic=TrafficMetrics(duration_s=60.0, num_req=600.0, isl=isl, osl=osl),
            fpm=FpmData(
                prefill_engines={"a/0": forward_pass(3, 6000), "a/1": forward_pass(1, 2000)},
                decode_engines={"d/0": forward_pass(decodes=20, context=30000)},
            ),
            workers=WorkerState(ready_prefill=prefill, ready_decode=decode, **workers),
        )
    )


def proposed(plugin: SplitgymPropose, seen: PipelineContext) -> dict[str, int] | None:
    answer = asyncio.run(plugin.Propose(ProposeStageRequest(context=seen)))
    if answer.result_kind == "accept":
        return None
    return {target.sub_component_type: target.replicas for target in answer.override.targets}


def orchestrator(**spec: Any) -> LocalPlannerOrchestrator:
    """With our plugin as an operator configures it."""
    clock = VirtualClock()
    entry = {
        "module": "splitgym.integrations.dynamo",
        "class": "SplitgymPropose",
        "plugin_id": "splitgym",
        "plugin_type": "propose",
        "priority": 5,
        "needs": ["observations.workers", "observations.fpm", "observations.traffic"],
        "kwargs": {**KWARGS, **spec},
    }
    auth = AuthConfig(trusted_sources=["allow_unauthenticated"])
    config = PluginRegistrationConfig.model_validate({"auth": auth.model_dump(), "in_process_plugins": [entry]})
    registry, breaker = build_registry_from_config(config, clock)
    made = LocalPlannerOrchestrator(
        registry=registry,
        scheduler=PluginScheduler(registry, breaker, clock),
        circuit_breaker=breaker,
        clock=clock,
    )
    load_in_process_plugins(made, config.in_process_plugins)
    return made


def test_the_view_of_forward_passes() -> None:
    """Ranks of a worker are summed; half of the mean output is taken to be left; rates are the traffic's."""
    plugin = SplitgymPropose(**KWARGS)
    seen = context(isl=1000, osl=200)
    assert seen.observations is not None
    view: ClusterView = plugin._view({PROMPT: 4, TOKEN: 4}, seen.observations)
    assert view["pending_prompts"].tolist() == [4] + [0] * 7
    assert view["pending_prompt_tokens"].tolist() == [8000] + [0] * 7
    assert view["waiting_requests"].tolist() == [4] + [0] * 7
    assert view["decodes"].tolist() == view["running_requests"].tolist() == [0] * 4 + [20] + [0] * 3
    assert view["remaining_output_tokens"][4] == 20 * 100
    assert view["kv_held_tokens"][4] == 30000
    assert view["pending_prompt_s"][0] > 0 and view["role_prompt"].tolist() == [1] * 4 + [0] * 4
    assert view.of_cluster("arrival_rate_rps") == 10
    assert view.of_cluster("prompt_token_rate") == 10_000 and view.of_cluster("output_token_rate") == 2000
    assert not view.role_mask[:, 2].any()


@pytest.mark.parametrize(("isl", "osl", "more"), [(8000.0, 10.0, "prefill"), (20.0, 2000.0, "decode")])
def test_workers_go_where_the_work_is(isl: float, osl: float, more: str) -> None:
    """Long prompts and short outputs want prefill, the reverse decode; the number of workers stays 8."""
    plugin = SplitgymPropose(**KWARGS)
    prefill = 4
    for _ in range(20):
        targets = proposed(plugin, context(isl, osl, prefill, 8 - prefill))
        if targets is not None:
            assert sum(targets.values()) == 8 and min(targets.values()) >= 1
            prefill = targets["prefill"]
    assert prefill > 4 if more == "prefill" else prefill < 4


def test_the_planner_carries_it_out() -> None:
    planner = orchestrator()
    baseline = {ComponentKey("prefill"): 4, ComponentKey("decode"): 4}
    outcomes = [asyncio.run(planner.tick(context(8000.0, 10.0), baseline)) for _ in range(5)]
    final = outcomes[-1].final_proposal
    applied = [
        {t.sub_component_type: t.replicas for t in o.final_proposal.targets} for o in outcomes if o.final_proposal
    ]
    assert final is not None and outcomes[-1].execute_action == "apply"
    assert any(targets["prefill"] > 4 and sum(targets.values()) == 8 for targets in applied)


@pytest.mark.parametrize(
    "seen",
    [
        PipelineContext(),
        PipelineContext(observations=ObservationData()),
        context(8000.0, 10.0, prefill_scaling_in_progress=True),
        context(8000.0, 10.0, decode_scaling_in_progress=True),
        context(8000.0, 10.0, prefill=0),
    ],
)
def test_no_opinion(seen: PipelineContext) -> None:
    assert proposed(SplitgymPropose(**KWARGS), seen) is None


def test_a_policy_that_raises_has_no_opinion(monkeypatch: pytest.MonkeyPatch) -> None:
    plugin = SplitgymPropose(**KWARGS)
    monkeypatch.setattr(plugin._policy, "decide", lambda view: 1 / 0)
    assert proposed(plugin, context(8000.0, 10.0)) is None

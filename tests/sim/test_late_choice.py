"""The token machine chosen when the prompt phase ends: cases computed by hand, in both engines."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from splitgym.hardware import load_profile
from splitgym.policies.registry import BUILTINS, make_policy
from splitgym.sim.cluster import Batching, Cluster, Scenario, Transfer, VllmBatching
from splitgym.sim.faults import Faults, Outage
from splitgym.sim.outside import InvalidDecision
from splitgym.sim.run import ENGINES, RunResult, run
from splitgym.view import ARRIVAL, HOLD, PROMPT, PROMPT_END, TICK, ClusterView, Decision
from tests.sim.build import Fixed, cluster, requests

engines = pytest.mark.parametrize("engine", ["reference", "compiled"])


def late(tested: Cluster, **settings: object) -> Cluster:
    return dataclasses.replace(tested, token_choice="prompt_end", **settings)


def times(result: RunResult, kind: str) -> list[tuple[float, int, int]]:
    assert result.recorder is not None
    return [(time_s, *rest) for time_s, name, *rest in result.recorder.events if name == kind]


def down(*outages: tuple[int, float, float]) -> Faults:
    return Faults(outages=tuple(Outage(*outage) for outage in outages))


class Noting:
    """Notes what it is asked, and sends everything to machine 0 and then to the given machines."""

    name = "noting"

    def __init__(self, tokens: list[int]) -> None:
        self.tokens = tokens
        self.seen: list[tuple[int, float, float, list[bool], list[bool], list[float]]] = []

    def reset(self, cluster: Cluster, seed: int) -> None:
        self.seen = []
        self.ended = 0

    def decide(self, view: ClusterView) -> Decision:
        if view.kind == TICK:
            return Decision()
        masks = view.prompt_mask.tolist(), view.token_mask.tolist()
        self.seen.append(
            (view.kind, view.time_s, view.of_request("prompt_tokens"), *masks, view["booked_kv_tokens"].tolist())
        )
        if view.kind == ARRIVAL:
            return Decision(prompt_machine=0)
        self.ended += 1
        return Decision(token_machine=self.tokens[self.ended - 1])


@engines
def test_the_token_machine_is_asked_for_when_the_prompt_phase_ends(engine: str) -> None:
    """Two prompts of one batch, each asked for in turn; books have token phases from then on only."""
    policy = Noting([1, 2])
    result = run(
        Scenario(late(cluster("ptt")), requests((0.0, 10, 3), (0.0, 20, 3))), policy, engine=engine, record=True
    )
    prompts, none, tokens = [True, False, False], [False] * 3, [False, True, True]
    assert policy.seen == [
        (ARRIVAL, 0.0, 10.0, prompts, none, [0.0, 0.0, 0.0]),
        (ARRIVAL, 0.0, 20.0, prompts, none, [11.0, 0.0, 0.0]),
        (PROMPT_END, 1.0, 10.0, prompts, tokens, [32.0, 0.0, 0.0]),
        (PROMPT_END, 1.0, 20.0, prompts, tokens, [32.0, 13.0, 0.0]),
    ]
    assert times(result, "chosen") == [(1.0, 1, 0), (1.0, 2, 1)]
    assert result.rows.token_machine.tolist() == [1, 2]
    assert result.rows.first_token_s.tolist() == [1.0, 1.0]
    assert result.rows.finish_s.tolist() == pytest.approx([1.2, 1.2])


@engines
def test_a_request_of_one_token_ends_with_its_prompt_phase(engine: str) -> None:
    policy = Noting([1])
    arrivals = requests((0.0, 10, 1))
    result = run(Scenario(late(cluster("pt")), arrivals), policy, engine=engine)
    assert [kind for kind, *_ in policy.seen] == [ARRIVAL]
    assert (result.rows.prompt_machine[0], result.rows.token_machine[0], result.rows.finish_s[0]) == (0, 0, 1.0)
    answered = run(Scenario(late(cluster("pt"), first_token="token_machine"), arrivals), policy, engine=engine)
    assert answered.rows.token_machine[0] == 1
    assert answered.rows.first_token_s[0] == answered.rows.finish_s[0] == pytest.approx(1.1)


@engines
@pytest.mark.parametrize("first_token", ["prompt_machine", "token_machine"])
def test_a_cache_that_stays_waits_for_room_in_place(engine: str, first_token: str) -> None:
    """Two prompts take 11 of 40 tokens each; the first has its output's room at once, the second when that is done."""
    tested = late(cluster("m", kv_capacity_tokens=40), first_token=first_token)
    result = run(Scenario(tested, requests((0.0, 10, 11), (0.0, 10, 16))), Fixed([(0, 0)]), engine=engine, record=True)
    assert times(result, "transfer_start") == []
    assert result.rows.first_token_s.tolist() == [1.0, 1.0]
    assert result.rows.finish_s.tolist() == pytest.approx([2.0, 3.5])
    assert result.rows.tbt_max_s.tolist() == pytest.approx([0.1, 1.1])
    assert result.meters.tokens_out == 27


@engines
def test_caches_in_place_that_wait_for_each_other(engine: str) -> None:
    """Both hold 11 of 30 tokens and need 26: without a lease for ever."""
    arrivals = requests((0.0, 10, 16), (0.0, 10, 16))
    stuck = run(
        Scenario(late(cluster("m", kv_capacity_tokens=30)), arrivals, tick_s=None), Fixed([(0, 0)]), engine=engine
    )
    assert stuck.rows.status.tolist() == [0, 0]
    tested = late(cluster("m", kv_capacity_tokens=30, transfer=Transfer(kv_lease_s=0.5)))
    result = run(Scenario(tested, arrivals, tick_s=None), Fixed([(0, 0)]), engine=engine, record=True)
    assert result.recomputations == 1
    # The first's cache is dropped at 1.5 s; the second decodes to 3 s, then the first is computed again.
    assert times(result, "cache_dropped") == [(1.5, 0, 0)]
    assert result.rows.finish_s.tolist() == pytest.approx([3.0 + 1.0 + 1.4, 3.0])


@engines
def test_under_vllm_it_runs_on(engine: str) -> None:
    tested = late(cluster("m", batching=VllmBatching(8, 64, 4)))
    result = run(Scenario(tested, requests((0.0, 10, 3), (0.0, 10, 3))), Fixed([(0, 0)]), engine=engine)
    assert result.rows.finish_s.tolist() == pytest.approx([1.2, 1.2])


@engines
def test_after_the_horizon_the_freest_takes_it(engine: str) -> None:
    """Machine 1 has a request, 2 and 3 have none; the horizon is at 1.5 s, the second prompt ends at 2 s."""
    tested = late(cluster("pttt", batching=Batching(max_batch_size=1)))
    scenario = Scenario(tested, requests((0.0, 10, 30), (0.0, 10, 3)), horizon_s=1.5)
    result = run(scenario, Noting([1]), engine=engine, record=True)
    assert times(result, "chosen") == [(1.0, 1, 0), (2.0, 2, 1)]
    assert result.meters.finished == 2


@engines
def test_the_only_machine_that_holds_it_is_gone(engine: str) -> None:
    """Machine 1 holds the request, 2 does not; 1 gives up the token phase while the prompt is processed."""
    tested = late(cluster("pmt", kv_capacity_tokens=100))
    small = dataclasses.replace(tested.machines[2].profile, kv_capacity_override_tokens=20)
    tested = dataclasses.replace(
        tested, machines=(*tested.machines[:2], dataclasses.replace(tested.machines[2], profile=small))
    )
    policy = Fixed([(0, 2)], roles_at={0.5: ((1, PROMPT),)})
    result = run(
        Scenario(tested, requests((0.0, 10, 30)), tick_s=0.5, horizon_s=4.0, drain_s=0.0), policy, engine=engine
    )
    assert result.rows.status.tolist() == [2]
    assert result.rows.token_machine.tolist() == [-1]


@engines
def test_a_request_begins_again_where_every_token_machine_is_down(engine: str) -> None:
    """At 1 s, with its first token; prompt and token are computed from 3 s to 4 s, which yields the second."""
    scenario = Scenario(late(cluster("pt")), requests((0.0, 10, 3)), tick_s=None, faults=down((1, 0.5, 3.0)))
    result = run(scenario, Fixed([(0, 1)]), engine=engine, record=True)
    assert times(result, "restart") == [(1.0, -1, 0)]
    assert times(result, "chosen") == [(4.0, 1, 0)]
    assert result.rows.first_token_s[0] == 1.0
    assert result.rows.tbt_max_s[0] == pytest.approx(3.0)
    assert result.rows.finish_s[0] == pytest.approx(4.1)


@engines
def test_a_request_without_a_token_machine_needs_its_prompt_machine_alone(engine: str) -> None:
    """Its prompt machine goes down at 0.4 s, the last machine, which it does not know, at 0.6 s."""
    tested = late(cluster("pptt"))
    scenario = Scenario(tested, requests((0.0, 10, 3)), tick_s=None, faults=down((0, 0.4, 9.0), (3, 0.6, 9.0)))
    result = run(scenario, Fixed([(0, 2), (1, 2)]), engine=engine, record=True)
    assert times(result, "restart") == [(0.4, -1, 0)]
    assert result.restarts == 1
    assert result.rows.finish_s[0] == pytest.approx(1.6)


@engines
@pytest.mark.parametrize("first_token", ["prompt_machine", "token_machine"])
def test_a_cache_that_waits_in_place_is_withdrawn(engine: str, first_token: str) -> None:
    """It waits from 1 s on; its client gives up at 1.5 s, or its machine is down from 1.5 s to 2 s."""
    tested = late(cluster("m", kv_capacity_tokens=40), first_token=first_token)
    both = requests((0.0, 10, 11), (0.0, 10, 16))
    patience_s = np.array([np.inf, 1.5])
    impatient = Scenario(tested, dataclasses.replace(both, deadline_s=patience_s), tick_s=None)
    gone = run(impatient, Fixed([(0, 0)]), engine=engine, record=True)
    assert times(gone, "abandoned") == [(1.5, -1, 1)]
    assert gone.rows.status.tolist() == [1, 3]
    assert gone.meters.tokens_out == 11 + 1
    broken = Scenario(tested, both, tick_s=None, faults=down((0, 1.5, 2.0)))
    result = run(broken, Fixed([(0, 0)]), engine=engine, record=True)
    # From 2 s to 3 s the prompt and 5 tokens of one, the prompt and 1 token of the other are computed; the first
    # decodes the rest in place from 3 s, with its sixth token, to 3.5 s, then the other, whose second came at 3 s.
    assert times(result, "restart") == [(1.5, -1, 0), (1.5, -1, 1)]
    assert result.rows.finish_s.tolist() == pytest.approx([3.5, 3.5 + 1.4])
    assert result.meters.tokens_out == 27


def test_both_engines_refuse_alike() -> None:
    messages = []
    for kind in ENGINES.values():
        tested = late(cluster("ptt"), admission=True)
        engine = kind(Scenario(tested, requests((0.0, 10, 2))))
        engine.advance()
        with pytest.raises(InvalidDecision, match="prompt machine 1 may not be chosen") as caught:
            engine.decide(Decision(1, 1))
        messages.append(str(caught.value))
        engine.decide(Decision(0, 9))
        view = engine.advance()
        assert view is not None
        assert view.kind == PROMPT_END
        with pytest.raises(InvalidDecision, match="token machine 0 may not be chosen") as caught:
            engine.decide(Decision(5, 0))
        messages.append(str(caught.value))
        with pytest.raises(InvalidDecision, match="too late to hold a request at its prompt end") as caught:
            engine.decide(Decision(admission=HOLD))
        messages.append(str(caught.value))
        engine.decide(Decision(5, 2))
        assert engine.advance() is None
    assert messages[:3] == messages[3:]


def test_layerwise_is_refused() -> None:
    with pytest.raises(ValueError, match="layerwise needs the token machine before the prompt"):
        late(cluster("pt", transfer=Transfer("layerwise")))


@pytest.mark.parametrize("name", sorted(name for name, builtin in BUILTINS.items() if builtin.kind != "pool"))
def test_every_heuristic_answers_either_half(name: str) -> None:
    """On a busy cluster every request is served, and the work is spread, but for those that are meant to pack it."""
    rng = np.random.default_rng(1)
    arrivals = requests(*zip(np.arange(200) * 0.1, rng.integers(10, 4000, 200), rng.integers(1, 40, 200), strict=True))
    tested = late(cluster("ppttt", latency=load_profile("llama2-70b", "h100-80gb").law))
    result = run(Scenario(tested, arrivals), make_policy(name))
    assert result.meters.finished == 200
    several = result.rows.output_tokens > 1
    spread = 1 if name == "fullest-feasible" else 2
    assert len(set(result.rows.prompt_machine.tolist())) >= spread
    assert len(set(result.rows.token_machine[several].tolist())) >= spread

"""Scenarios and decisions drawn at random."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from hypothesis import strategies as st

from splitgym.hardware import LatencyLaw, load_profile, model_spec
from splitgym.randomness import hashed_uniform
from splitgym.sim.cluster import (
    FIRST_TOKEN,
    TOKEN_CHOICE,
    Batching,
    Cluster,
    Machine,
    RequestClass,
    Scenario,
    Slo,
    SloSeconds,
    Telemetry,
    Transfer,
    VllmBatching,
)
from splitgym.sim.faults import Faults, Outage, Straggler
from splitgym.view import ARRIVAL, HOLD, REFUSE, TICK, ClusterView, Decision
from splitgym.workload import Prefixes, Requests
from tests.sim.build import ROLE, cluster, law


class Random:
    """Any permitted machine, any permitted role change now and then; where it may, it holds back or refuses some."""

    name = "random"

    def __init__(self, key: int, change: float = 0.5) -> None:
        self.key, self.change = key, change
        self.count = 0
        self.admission = False

    def reset(self, cluster: Cluster, seed: int) -> None:
        self.count = 0
        self.admission = cluster.admission

    def pick(self, count: int) -> int:
        self.count += 1
        return int(hashed_uniform(self.key, 0, self.count) * count)

    def decide(self, view: ClusterView) -> Decision:
        if view.kind == TICK:
            choices = np.argwhere(view.role_mask)
            if not len(choices) or self.pick(1000) >= 1000 * self.change:
                return Decision()
            machine, role = choices[self.pick(len(choices))]
            return Decision(role_changes=((int(machine), int(role)),))
        if self.admission and view.kind == ARRIVAL and (admission := self.pick(8)) in (HOLD, REFUSE):
            return Decision(admission=admission)
        prompts, tokens = np.flatnonzero(view.prompt_mask), np.flatnonzero(view.token_mask)
        token = int(tokens[self.pick(len(tokens))]) if len(tokens) else -1
        return Decision(int(prompts[self.pick(len(prompts))]), token)


@st.composite
def with_powers(draw: st.DrawFn, tested: Cluster) -> Cluster:
    """The same cluster, some machines under a power cap, some profiles' laws not the true ones."""
    caps = st.sampled_from([None, None, 3_000.0, 5_000.0, 8_000.0])  # H100: idle 2,550 W, A100: 1,625 W
    factors = {machine.profile.hardware: draw(st.sampled_from([None, None, 0.8, 1.1])) for machine in tested.machines}

    def changed(machine: Machine) -> Machine:
        factor, law = factors[machine.profile.hardware], machine.profile.law
        true = None if factor is None else slower(law, factor)
        return dataclasses.replace(machine, power_cap_w=draw(caps), true_law=true)

    return dataclasses.replace(tested, machines=tuple(changed(machine) for machine in tested.machines))


def slower(law: LatencyLaw, factor: float) -> LatencyLaw:
    """The same law, all times multiplied."""
    names = [field.name for field in dataclasses.fields(law) if field.name.endswith("_s")]
    return dataclasses.replace(
        law,
        decode_points=tuple((place, factor * seconds) for place, seconds in law.decode_points),
        batch_points=tuple((place, factor * seconds) for place, seconds in law.batch_points),
        **{name: factor * getattr(law, name) for name in names},
    )


OVERHEADS = st.sampled_from([(0.0, 0.0), (0.004, 0.0), (0.01, 0.0002)])  # of a transfer, of each of its blocks
NETWORKS = st.sampled_from(["ideal", "shared"])
LEASES_S = st.sampled_from([None, None, 0.05, 0.5, 3.0])
TELEMETRY = st.sampled_from([None, None, Telemetry(0.05), Telemetry(0.7, 0.2, 0.3), Telemetry(5.0, 5.0, 0.9)])
CLASSES = st.sampled_from(
    [
        (),
        (),
        (
            RequestClass("quick", SloSeconds(0.4, 0.06)),
            RequestClass("patient", Slo((20, 30, 60), (2, 4, 8), (9, 9, 9))),
        ),
    ]
)


@st.composite
def vllm_settings(draw: st.DrawFn) -> VllmBatching:
    """Of any kind: one sequence or many, chunks of a few tokens or whole prompts."""
    sequences = draw(st.sampled_from([1, 2, 8, 256]))
    tokens = max(sequences, draw(st.sampled_from([16, 100, 2048])))
    size, watermark = draw(st.sampled_from([1, 7, 16])), draw(st.sampled_from([0.0, 0.0, 0.1]))
    return VllmBatching(sequences, tokens, size, watermark, draw(st.booleans()))


def with_prefixes(arrivals: Requests, rng: np.random.Generator, block_tokens: int) -> Requests:
    """The same requests, of some kinds: those of a kind begin alike, for longer or shorter."""
    counts = arrivals.prompt_tokens // block_tokens
    kinds, shared = rng.integers(0, 3, len(arrivals)), rng.integers(0, 1 + counts)
    first = np.concatenate([[0], np.cumsum(counts)])
    place = np.arange(first[-1]) - np.repeat(first[:-1], counts)
    alike = place < np.repeat(shared, counts)
    names = np.where(alike, np.repeat(kinds, counts) + 3 * place, 1_000_000 + np.arange(first[-1]))
    return dataclasses.replace(arrivals, prefixes=Prefixes(block_tokens, first, names))


def common_block_tokens(tested: Cluster) -> int:
    """The least in which all machines count whole blocks."""
    return math.lcm(*(own.block_size for own in tested.vllm))


@st.composite
def with_vllm(draw: st.DrawFn, tested: Cluster) -> Cluster:
    """The same cluster under discipline `vllm`, some machines with settings of their own."""
    machines = tuple(
        dataclasses.replace(machine, batching=draw(st.one_of(st.none(), vllm_settings())))
        for machine in tested.machines
    )
    transfer = dataclasses.replace(tested.transfer, mode="serialized")
    return dataclasses.replace(tested, machines=machines, transfer=transfer, batching=draw(vllm_settings()))


def moments(scale_s: float) -> st.SearchStrategy[float]:
    """Of any kind, or coarse, so that several things happen at one instant."""
    return st.one_of(st.floats(0.0, scale_s), st.integers(0, 20).map(lambda n: n * scale_s / 20))


@st.composite
def disturbed(draw: st.DrawFn, scenario: Scenario, always: bool = False) -> Scenario:
    """The same scenario, in half of the cases or always with outages, slow machines or clients that give up."""
    if not always and draw(st.booleans()):
        return scenario
    requests, count = scenario.requests, scenario.cluster.num_machines
    scale_s = max(float(requests.arrival_s[-1]) * 1.2, 1.0) if len(requests) else 1.0
    outages = []
    for _ in range(draw(st.integers(0, 5))):
        down_s = draw(moments(scale_s))
        up_s = draw(st.sampled_from([float("inf"), down_s + scale_s / 3, down_s + scale_s / 20, down_s + 0.01]))
        outages.append(Outage(draw(st.integers(0, count - 1)), down_s, up_s))
    stragglers = []
    for _ in range(draw(st.integers(0, 2))):
        from_s = draw(moments(scale_s))
        to_s, factor = from_s + scale_s / draw(st.sampled_from([2, 20])), draw(st.sampled_from([0.5, 1.7, 10.0]))
        stragglers.append(Straggler(draw(st.integers(0, count - 1)), from_s, to_s, factor))
    if draw(st.booleans()):
        rng = np.random.default_rng(draw(st.integers(0, 2**32)))
        deadline_s = rng.exponential(draw(st.sampled_from([0.3, 3.0])) * scale_s / 5, len(requests)) + 1e-3
        deadline_s = np.where(rng.random(len(requests)) < 0.3, np.inf, deadline_s)
        if draw(st.booleans()):
            deadline_s = np.full(len(requests), scale_s / 5)
        requests = dataclasses.replace(requests, deadline_s=deadline_s)
    admission = scenario.tick_s is not None and draw(st.booleans())
    tested = dataclasses.replace(scenario.cluster, admission=admission)
    return dataclasses.replace(
        scenario, cluster=tested, requests=requests, faults=Faults(tuple(outages), tuple(stragglers))
    )


@st.composite
def scenarios(draw: st.DrawFn, discipline: str | None = None, all_at_once: bool = False) -> Scenario:
    """Small ones; ``all_at_once``: work moves over slow links, blocks are shared, and something goes wrong."""
    roles = draw(st.sampled_from(["ptttm", "pptttt"] if all_at_once else ["pt", "m", "ppt", "ptm", "pttm", "mm"]))
    capacity = draw(st.sampled_from([280, 400, 1_000, 1_000_000]))
    mode = draw(st.sampled_from(["serialized", "layerwise"]))
    batching = Batching(draw(st.sampled_from([100, 2048])), draw(st.sampled_from([2, 512])), 4)
    rate = draw(st.sampled_from([0.3, 2.0, 10.0]))
    count, classes = draw(st.integers(1, 60)), draw(CLASSES)
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    gaps_s = rng.exponential(1 / rate, count) * (rng.random(count) < 0.8)  # some arrive together
    arrivals = Requests(
        np.cumsum(gaps_s),
        rng.integers(1, 200, count),
        rng.integers(1, 60, count),
        np.full(count, 30.0),
        rng.integers(0, max(len(classes), 1), count),
    )
    tested = cluster(
        roles,
        latency=law(0.3, 0.05),
        kv_capacity_tokens=capacity,
        transfer=Transfer(mode, *draw(OVERHEADS), draw(NETWORKS), draw(LEASES_S)),
        batching=batching,
        switch_s=draw(st.sampled_from([0.0, 1.5])),
        link_bytes_per_s=1e8 if all_at_once else draw(st.sampled_from([1e15, 1e8])),  # a prompt takes up to 0.7 s
    )
    first_token, migrate = draw(st.sampled_from(FIRST_TOKEN)), all_at_once or draw(st.booleans())
    tested = dataclasses.replace(
        tested, first_token=first_token, migrate=migrate, telemetry=draw(TELEMETRY), classes=classes
    )
    if discipline == "vllm" or (discipline is None and draw(st.booleans())):
        tested = draw(with_vllm(tested))
        arrivals = with_prefixes(arrivals, rng, common_block_tokens(tested))
    if tested.transfer.mode == "serialized":
        tested = dataclasses.replace(tested, token_choice=draw(st.sampled_from(TOKEN_CHOICE)))
    if draw(st.booleans()):
        tested = draw(with_powers(tested))
    tick_s = draw(st.sampled_from([0.3, 0.7] if all_at_once else [None, 0.7]))
    return draw(disturbed(Scenario(tested, arrivals, tick_s=tick_s), all_at_once))


@st.composite
def calibrated_scenarios(draw: st.DrawFn) -> Scenario:
    """Measured machines of several kinds, from idle to overload; horizons, warm-ups, ticks; some have little memory."""
    roles = draw(st.sampled_from(["m", "pt", "ptm", "ppttm", "pppttt", "ppppmmtttt"]))
    names = draw(st.sampled_from([["h100-80gb"], ["h100-80gb", "a100-80gb"]]))
    profiles = [load_profile("llama2-70b", name) for name in names]
    share = draw(st.sampled_from([1.0, 1.0, 0.01]))  # of their links
    profiles = [dataclasses.replace(own, link_bytes_per_s=share * own.link_bytes_per_s) for own in profiles]
    capacity = draw(st.sampled_from([None, None, 3_000, 20_000]))
    if capacity is not None:
        profiles = [dataclasses.replace(profile, kv_capacity_override_tokens=capacity) for profile in profiles]
    tested = Cluster(
        machines=tuple(Machine(ROLE[role], profiles[i % len(profiles)]) for i, role in enumerate(roles)),
        model=model_spec("llama2-70b"),
        baseline=load_profile("llama2-70b", "a100-80gb"),
        batching=Batching(draw(st.sampled_from([512, 2048])), draw(st.sampled_from([3, 16, 512])), 4),
        transfer=Transfer(
            draw(st.sampled_from(["serialized", "layerwise"])), *draw(OVERHEADS), draw(NETWORKS), draw(LEASES_S)
        ),
        slo=Slo(),
        switch_s=draw(st.sampled_from([0.0, 0.3])),
        first_token=draw(st.sampled_from(FIRST_TOKEN)),
        telemetry=draw(TELEMETRY),
        classes=draw(CLASSES),
        migrate=draw(st.booleans()),
    )
    if draw(st.booleans()):
        tested = draw(with_vllm(tested))
    if tested.transfer.mode == "serialized":
        tested = dataclasses.replace(tested, token_choice=draw(st.sampled_from(TOKEN_CHOICE)))
    if draw(st.booleans()):
        tested = draw(with_powers(tested))
    count = draw(st.integers(0, 120))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    rate = len(roles) * draw(st.sampled_from([0.5, 3.0, 30.0]))
    arrival_s = np.cumsum(rng.exponential(1 / rate, count))
    if draw(st.booleans()):
        arrival_s = arrival_s.round(1)  # many at once, some at ticks
    prompt_tokens = np.clip(rng.lognormal(6.5, 1.2, count), 1, 6000).astype(np.int64)
    output_tokens = np.clip(rng.lognormal(3.0, 1.3, count), 1, 500).astype(np.int64)
    predicted, slo_class = np.clip(rng.lognormal(3.0, 0.5, count), 1, 500), rng.integers(0, 2, count)
    if not tested.classes:
        slo_class[:] = 0
    arrivals = Requests(arrival_s, prompt_tokens, output_tokens, predicted, slo_class)
    if tested.vllm and draw(st.booleans()):
        arrivals = with_prefixes(arrivals, rng, 2 * common_block_tokens(tested))
    horizon_s = draw(st.sampled_from([float("inf"), 0.5, 3.0, 12.0]))
    scenario = Scenario(
        tested,
        arrivals,
        warmup_s=draw(st.sampled_from([0.0, 1.0])),
        horizon_s=horizon_s,
        drain_s=draw(st.sampled_from([float("inf"), 0.0, 2.0])),
        tick_s=draw(st.sampled_from([None, 0.1, 0.7])),
        seed=draw(st.integers(0, 100)),
    )
    return draw(disturbed(scenario))

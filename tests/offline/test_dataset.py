"""A router's log as a Minari dataset: what was seen, done, gained, and how likely it was."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium.spaces import Dict

from splitgym.cli import main
from splitgym.envs.observations import Observer
from splitgym.errors import SplitgymError
from splitgym.export import BundlePolicy, bundle_policy, export_policy
from splitgym.learn import NO_EVALUATION, PpoSettings, train
from splitgym.machines import build_machines, parse_machines
from splitgym.offline import Logged, make_dataset, read_decision_log
from splitgym.offline.dataset import stretches
from splitgym.policies import make_policy
from splitgym.sim.cluster import Cluster
from tests.router.stack import SCALE, in_loop, stack

minari: Any = pytest.importorskip("minari", reason="needs the extra offline")

MACHINES = "prompt=2:h100-80gb,token=2:h100-80gb"
Logs = Callable[[str], Path]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network that draws its decisions."""
    folder = tmp_path_factory.mktemp("bundle")
    settings = PpoSettings(num_steps=32, minibatch=32, epochs=1)
    common: dict[str, Any] = {"num_envs": 2, "evaluation": NO_EVALUATION, "progress": False}
    run = train("Quickstart", out=folder / "run", steps=64, settings=settings, **common)
    export_policy(run, folder / "mine.zip", decision="sample")
    return folder / "mine.zip"


@pytest.fixture(scope="module")
def log_of(tmp_path_factory: pytest.TempPathFactory) -> Logs:
    """The log of 24 requests under a policy, four at a time."""

    @cache
    def played(policy: str) -> Path:
        folder = tmp_path_factory.mktemp("log")

        @in_loop
        async def play() -> None:
            async with stack(MACHINES, log={"folder": folder}, policy={"name": policy, "tick_s": 1.0}) as s:
                for number in range(6):
                    prompt = [7] * (50 + 40 * number)
                    await asyncio.gather(*(s.complete(2 + k, prompt=prompt) for k in range(4)))

        play()
        return folder

    return played


@pytest.fixture(autouse=True)
def _own_datasets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "datasets"))


def arrivals(logged: Logged) -> list[Any]:
    return [one for one in logged.decisions if one.view.kind == 0]


def test_it_comes_back_as_it_was_logged(log_of: Logs) -> None:
    logged = read_decision_log(log_of("random"))
    make_dataset(logged, "router/back-v0", episode_decisions=10)
    loaded = minari.load_dataset("router/back-v0")
    assert (loaded.total_episodes, loaded.total_steps) == (3, 23)  # the last decision only ends the last episode
    observer = Observer(4, 4)
    assert isinstance(loaded.observation_space, Dict) and loaded.observation_space == observer.space
    episodes = list(loaded.iterate_episodes())
    decided = arrivals(logged)
    begin = 0
    for episode in episodes:
        steps = len(episode.rewards)
        for place in range(steps + 1):
            one = decided[begin + place]
            for name, meant in observer.observe(one.view).items():
                np.testing.assert_array_equal(episode.observations[name][place], meant)
            assert episode.infos["propensity"][place] == pytest.approx(1 / 4)  # two machines for each phase
            assert episode.infos["time_s"][place] == one.view.time_s
            assert episode.infos["status"][place] == 200
            np.testing.assert_array_equal(episode.infos["action_mask"][place], [1, 1, 0, 0, 0, 0, 1, 1])
            if place < steps:
                assert tuple(episode.actions[place]) == (one.decision.prompt_machine, one.decision.token_machine)
        assert loaded.action_space.contains(episode.actions[0])
        assert not episode.terminations.any() and list(np.flatnonzero(episode.truncations)) == [steps - 1]
        begin += steps


def test_propensities_are_the_bundles(log_of: Logs, bundle: Path) -> None:
    """Asked again with the same draws, the bundle decides the same with the same probabilities."""
    logged = read_decision_log(log_of(str(bundle)))
    make_dataset(logged, "router/drawn-v0")
    (episode,) = minari.load_dataset("router/drawn-v0").iterate_episodes()
    policy = bundle_policy(bundle)
    assert isinstance(policy, BundlePolicy)
    policy.reset(_cluster(), 0)
    meant = []
    for one in logged.decisions:
        assert policy.decide(one.view) == one.decision
        if one.view.kind == 0:
            meant.append(policy.propensity)
    np.testing.assert_array_equal(episode.infos["propensity"], meant)
    assert 0 < min(meant) < max(meant) < 1


def test_importance_weights(log_of: Logs) -> None:
    """Weighted by what a policy would have done: itself gives its mean, one that is in the data that of its part."""
    logged = read_decision_log(log_of("random"))
    make_dataset(logged, "router/weighted-v0")
    (episode,) = minari.load_dataset("router/weighted-v0").iterate_episodes()
    slowdown, propensity = episode.infos["slowdown"][:-1], episode.infos["propensity"][:-1]
    assert np.isfinite(slowdown).all() and slowdown.min() > 0
    itself = np.mean(propensity / propensity * slowdown)
    assert itself == pytest.approx(slowdown.mean(), rel=1e-12)
    chosen = [(one.decision.prompt_machine, one.decision.token_machine) for one in arrivals(logged)]
    always = np.array([machines == (0, 2) for machines in chosen[:-1]])
    weights = always / propensity
    assert np.sum(weights * slowdown) / np.sum(weights) == pytest.approx(slowdown[always].mean(), rel=1e-12)


def test_rewards_are_what_requests_cost(log_of: Logs) -> None:
    """Everything is answered before the last wave: the rewards up to there are the slowdowns of those before it."""
    (stretch,) = stretches(read_decision_log(log_of("least-kv")))
    assert (stretch.rewards[:-1] <= 0).all() and stretch.rewards[-1] == 0
    first_of_last_wave = 20
    paid = -stretch.rewards[:first_of_last_wave].sum()
    assert paid == pytest.approx(
        stretch.slowdowns[:first_of_last_wave].sum(), rel=0.02
    )  # a stream ends after its clock


def test_what_is_not_answered_stays_unfinished(log_of: Logs) -> None:
    """A failed request costs until the end; one whose client left until then."""
    logged = read_decision_log(log_of("least-kv"))
    first, *others = arrivals(logged)

    def paid(status: int) -> float:
        lost = replace(first, status=status, ttft_s=float("nan"), output_tokens=0)
        (stretch,) = stretches(replace(logged, decisions=(lost, *others)))
        assert np.isnan(stretch.slowdowns[0])
        return float(-stretch.rewards.sum())

    weight = 0.5 / first.view.of_request("baseline_ttft_s")
    left_s = first.view.time_s + SCALE * first.e2e_s
    assert paid(502) - paid(499) == pytest.approx(weight * (others[-1].view.time_s - left_s), rel=1e-9)


def test_policies_are_told_apart(log_of: Logs) -> None:
    logged = read_decision_log(log_of("least-kv"))
    half = len(logged.decisions) // 2
    swapped = [replace(one, policy="another") if n >= half else one for n, one in enumerate(logged.decisions)]
    assert [len(stretch.decisions) for stretch in stretches(replace(logged, decisions=tuple(swapped)))] == [
        sum(one.view.kind == 0 for one in part) for part in (swapped[:half], swapped[half:])
    ]
    again = replace(logged, decisions=logged.decisions * 2)
    assert [len(stretch.decisions) for stretch in stretches(again)] == [24, 24]  # the router was started again


def test_the_command(log_of: Logs, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["dataset", str(log_of("random")), "--out", "router/mine-v0", "--json"])
    assert end.value.code == 0
    assert json.loads(capsys.readouterr().out) == {"dataset": "router/mine-v0", "episodes": 1, "decisions": 23}


def test_mistakes_in_the_name(log_of: Logs) -> None:
    logged = read_decision_log(log_of("random"))
    make_dataset(logged, "router/twice-v0")
    for name, said in (("router/twice-v0", "exist"), ("", "dataset ''")):
        with pytest.raises(SplitgymError, match=said):
            make_dataset(logged, name)


def test_mistakes_in_the_log(log_of: Logs, tmp_path: Path) -> None:
    with pytest.raises(SplitgymError, match="no Parquet files there"):
        read_decision_log(tmp_path)
    (tmp_path / "x.parquet").write_bytes(b"no")
    with pytest.raises(SplitgymError, match="not a decision log"):
        read_decision_log(tmp_path)
    logged = read_decision_log(log_of("random"))
    with pytest.raises(SplitgymError, match="older version"):
        make_dataset(replace(logged, told={}), "router/old-v0")
    with pytest.raises(SplitgymError, match="two decisions"):
        make_dataset(replace(logged, decisions=logged.decisions[:1]), "router/short-v0")


def test_recorded_views_are_decided_alike(log_of: Logs) -> None:
    """A heuristic replayed on the log does what it did in the router, draws included."""
    logged = read_decision_log(log_of("random"))
    policy = make_policy("random")
    policy.reset(_cluster(), 0)
    assert all(policy.decide(one.view) == one.decision for one in logged.decisions)


def _cluster() -> Cluster:
    machines = build_machines(parse_machines(MACHINES), "llama2-70b", 8)
    return Cluster(machines, machines[0].profile.model, machines[0].profile)

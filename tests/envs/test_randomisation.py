"""Domain randomisation: other machines in each episode, the same ones for every policy, and nobody told."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from splitgym.cards import load_card
from splitgym.envs import ClusterEnv
from splitgym.envs.randomisation import with_drawn_laws
from splitgym.errors import SplitgymError
from splitgym.hardware import load_profile
from splitgym.randomness import Streams
from splitgym.sim.reference import ReferenceEngine
from tests.envs.play import play, sampler, shortest


def drawn_laws(env: ClusterEnv, seed: int) -> list[object]:
    env.reset(seed=seed)
    return [machine.true_law for machine in env.setting.scenario(seed, {}).cluster.machines]


def test_one_draw_for_each_profile_from_the_seed_alone(mini):
    laws = drawn_laws(ClusterEnv(mini, domain_randomisation=True), 3)
    assert laws == drawn_laws(ClusterEnv(mini, domain_randomisation=True, other="lmetric"), 3)
    assert laws[0] == laws[2] != laws[1] == laws[3]  # H100, A100, H100, A100
    fewer = ClusterEnv(mini, domain_randomisation=True, machines="prompt=1:a100-80gb,token=1:a100-80gb")
    assert drawn_laws(fewer, 3) == [laws[1]] * 2
    assert laws[0] != drawn_laws(ClusterEnv(mini, domain_randomisation=True), 4)[0]
    assert laws[0] != drawn_laws(ClusterEnv(mini, domain_randomisation=True, split="val"), 3)[0]
    assert drawn_laws(ClusterEnv(mini), 3) == [None] * 4


def test_the_draw_is_within_the_uncertainty(mini):
    cluster = load_card(mini).default_cluster
    profile = cluster.machines[0].profile
    assert profile.uncertainty is not None
    spread = profile.uncertainty.batch_points
    drawn = [with_drawn_laws(cluster, Streams(seed)).machines[0].true_law for seed in range(50)]
    ratios = [law.batch_points[0][1] / profile.law.batch_points[0][1] for law in drawn if law is not None]
    assert len(ratios) == 50
    assert max(abs(np.log(ratios))) <= 2 * spread + 1e-12
    assert np.std(np.log(ratios)) == pytest.approx(spread, rel=0.35)  # of 50 draws, clipped at two


def test_machines_change_and_what_is_predicted_does_not(mini):
    plain, drawn = ClusterEnv(mini), ClusterEnv(mini, domain_randomisation=True)
    scenarios = [env.setting.scenario(5, {}) for env in (plain, drawn)]
    views = [ReferenceEngine(scenario).advance() for scenario in scenarios]
    assert views[0] is not None
    assert views[1] is not None
    np.testing.assert_array_equal(views[0].machines, views[1].machines)
    assert scenarios[0].cluster.laws[1:] == ([0, 1, 0, 1], [0, 1, 0, 1])
    assert scenarios[1].cluster.laws[1:] == ([0, 1, 0, 1], [2, 3, 2, 3])
    assert scenarios[0].cluster.baseline == scenarios[1].cluster.baseline
    ends = [play(env, shortest, seed=5)["scorecard"]["ttft_mean_s"] for env in (plain, drawn)]
    assert ends[0] != ends[1]


def test_both_engines_agree(mini):
    ends = []
    for engine in ("reference", "compiled"):
        env = ClusterEnv(mini, domain_randomisation=True, engine=engine, horizon_s=15)
        ends.append([play(env, sampler(1, env), seed=seed) for seed in (2, 2, 7)])
    for reference, compiled in zip(*ends, strict=True):
        assert reference["rewards"] == compiled["rewards"]
        assert reference["scorecard"] == compiled["scorecard"]
    assert ends[0][0]["rewards"] == ends[0][1]["rewards"] != ends[0][2]["rewards"]


def test_mistakes_are_one_line(mini):
    with pytest.raises(SplitgymError, match=r"^domain_randomisation: 'yes'; give True or False$"):
        ClusterEnv(mini, domain_randomisation="yes")
    unknown = dataclasses.replace(load_profile("llama2-70b", "h100-80gb"), uncertainty=None)
    cluster = load_card(mini).default_cluster
    machines = tuple(dataclasses.replace(machine, profile=unknown) for machine in cluster.machines)
    with pytest.raises(SplitgymError, match=r"^domain_randomisation: llama2-70b\.h100-80gb\.tp8 states no uncertainty"):
        with_drawn_laws(dataclasses.replace(cluster, machines=machines), Streams(0))

import numpy as np
import pytest

from splitgym.envs import ClusterEnv
from splitgym.envs.observations import Observer
from splitgym.features import MACHINE_COLUMN, MACHINE_FEATURES, REQUEST_FEATURES
from tests.envs.play import play, sampler, shortest


def test_observation_is_the_feature_tables_formula(mini):
    env = ClusterEnv(mini)
    observation, _ = env.reset(seed=2)
    for _ in range(50):
        observation, *_ = env.step(shortest(env.view))
    for column, feature in enumerate(MACHINE_FEATURES):
        value = env.view.machines[:, column]
        expected = value / feature.scale if feature.bounded else value / (value + feature.scale)
        # float32 has 24 bits
        assert observation["machines"][:, column] == pytest.approx(expected, rel=1e-7, abs=1e-9)
    for column, feature in enumerate(REQUEST_FEATURES):
        value = env.view.request[column]
        assert observation["request"][column] == pytest.approx(value / (value + feature.scale), rel=1e-7)
    assert observation["decision_kind"].tolist() == [1, 0, 0]
    assert observation["present"].tolist() == [1, 1, 1, 1]


def test_rounding_below_zero_stays_in_the_space(mini):
    env = ClusterEnv(mini)
    env.reset(seed=2)
    env.view.machines[0, MACHINE_COLUMN["booked_kv_tokens"]] = -1e-9
    assert Observer(4, 4).observe(env.view) in env.observation_space


@pytest.mark.parametrize("engine", ["compiled", "reference"])
def test_what_is_stale_is_observed_as_it_is_shown(mini, tmp_path, engine):
    """Observations are brought up to date where something changes; reports change without their machines doing so."""
    card = tmp_path / "Stale.yaml"
    card.write_text(mini.read_text() + "telemetry: {scrape_interval_s: 0.4, jitter_s: 0.3, loss: 0.2}\n")
    env, observer = ClusterEnv(card, kind="joint", engine=engine), Observer(4, 4)
    observation, _ = env.reset(seed=3)
    act, ages = sampler(1, env), set()
    for _ in range(120):
        for name, values in observer.observe(env.view).items():
            np.testing.assert_array_equal(observation[name], values, err_msg=name)
        ages |= set(env.view["report_age_s"])
        observation, *_ = env.step(act(env.view))
    assert 0.4 < max(ages) < 4.0
    assert len(ages) > 200


def test_padding_changes_nothing_but_the_shape(mini):
    plain, padded = ClusterEnv(mini), ClusterEnv(mini, max_machines=6)
    first, _ = plain.reset(seed=2)
    second, info = padded.reset(seed=2)
    assert second["machines"].shape == (6, 27)
    assert not second["machines"][4:].any()
    assert second["present"].tolist() == [1, 1, 1, 1, 0, 0]
    assert not any(mask[4:].any() for mask in info["action_mask"])
    assert np.array_equal(first["machines"], second["machines"][:4])
    assert play(plain, shortest, seed=3)["rewards"] == play(padded, shortest, seed=3)["rewards"]


def test_machines_in_another_order_give_the_same_rows_in_that_order(mini):
    """A permutation permutes `machines` and masks, nothing else."""
    there = "prompt=1:h100-80gb,prompt=1:a100-80gb,token=1:h100-80gb,token=1:a100-80gb"
    back = "token=1:a100-80gb,prompt=1:a100-80gb,prompt=1:h100-80gb,token=1:h100-80gb"
    order = np.array([3, 1, 0, 2])  # row i of the second is this row of the first
    place = np.argsort(order)
    envs = [ClusterEnv(mini, machines=machines, other="static") for machines in (there, back)]
    for env in envs:
        env.reset(seed=4)
    act = sampler(0, envs[0])
    # the warm-up policy breaks ties by machine number: begin from an empty cluster
    scenario = envs[0].scenario
    trace = {"trace": scenario.requests}
    infos = [env.reset(seed=4, options=trace)[1] for env in envs]
    for _ in range(150):
        action = act(envs[0].view)
        first, reward, *_, infos[0] = envs[0].step(action)
        second, same_reward, *_, infos[1] = envs[1].step(place[action])
        assert second["machines"] == pytest.approx(first["machines"][order], rel=1e-6)
        assert second["cluster"] == pytest.approx(first["cluster"], rel=1e-6)
        assert second["request"] == pytest.approx(first["request"])
        assert same_reward == pytest.approx(reward, rel=1e-9, abs=1e-9)  # sums in another order
        for mask, same in zip(infos[0]["action_mask"], infos[1]["action_mask"], strict=True):
            assert np.array_equal(mask[order], same)

"""The vector environment: what Stable-Baselines3 expects at the end of an episode, staggering, going back."""

from __future__ import annotations

import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from stable_baselines3.common.vec_env import VecMonitor, VecNormalize

from splitgym.envs.setting import Setting
from splitgym.errors import SplitgymError
from splitgym.learn.vec_env import SchedulingVecEnv


def make(count: int, *, stagger: bool = False, scale: float = 1.0) -> SchedulingVecEnv:
    vec = SchedulingVecEnv(count, "Toy", kind="routing", stagger=stagger, reward_scale=scale)
    vec.seed(5)
    vec.reset()
    return vec


def play(vec: SchedulingVecEnv, steps: int, seed: int = 0) -> list[tuple]:  # type: ignore[type-arg]
    rng = np.random.default_rng(seed)
    return [vec.step(rng.integers(0, 2, (vec.num_envs, 2))) for _ in range(steps)]


def test_an_episode_ends_and_the_next_begins_in_one_step() -> None:
    vec = make(1)
    total, steps = 0.0, 0
    while True:
        observation, rewards, dones, infos = play(vec, 1, seed=steps)[0]
        total, steps = total + float(rewards[0]), steps + 1
        if dones[0]:
            break
    info = infos[0]
    assert info["TimeLimit.truncated"]
    assert info["episode"]["l"] == steps
    assert info["episode"]["r"] == pytest.approx(total, rel=1e-4)  # float32 rewards
    assert info["episode"]["t"] == info["time_s"]
    assert set(info["terminal_observation"]) == set(observation)
    assert "scorecard" in info
    assert not np.array_equal(info["terminal_observation"]["machines"], observation["machines"][0])


def test_rewards_are_scaled_and_returns_are_not() -> None:
    plain, scaled = make(2), make(2, scale=0.1)
    left, right = play(plain, 300), play(scaled, 300)
    np.testing.assert_allclose([0.1 * step[1] for step in left], [step[1] for step in right], rtol=1e-6)
    returns = [[info["episode"]["r"] for step in run for info in step[3] if "episode" in info] for run in (left, right)]
    assert returns[0] and returns[0] == returns[1]


def test_first_episodes_are_staggered_and_later_ones_whole() -> None:
    vec = make(4, stagger=True)
    lengths: list[list[int]] = [[] for _ in range(4)]
    for step in play(vec, 450):
        for index, info in enumerate(step[3]):
            if "episode" in info:
                lengths[index].append(info["episode"]["l"])
    firsts = [own[0] for own in lengths]
    assert firsts == sorted(firsts) and firsts[0] <= 0.3 * firsts[3]
    assert all(own[1] == firsts[3] for own in lengths)


def test_masks_come_in_one_array() -> None:
    vec = make(3)
    masks = vec.action_masks()
    assert masks.shape == (3, 4) and masks.dtype == np.bool_
    np.testing.assert_array_equal(masks, np.stack(vec.env_method("action_masks")))


def test_a_restored_state_goes_on_as_the_original() -> None:
    original = make(2, stagger=True)
    play(original, 70)
    state = original.state()
    copy = make(2)
    copy.restore(state)
    for key, values in original.observations().items():
        np.testing.assert_array_equal(values, copy.observations()[key])
    for left, right in zip(play(original, 250, seed=1), play(copy, 250, seed=1), strict=True):
        for key in left[0]:
            np.testing.assert_array_equal(left[0][key], right[0][key])
        np.testing.assert_array_equal(left[1], right[1])
        np.testing.assert_array_equal(left[2], right[2])
        assert [info.get("episode") for info in left[3]] == [info.get("episode") for info in right[3]]


def test_the_tools_of_stable_baselines_wrap_it() -> None:
    vec = VecMonitor(VecNormalize(SchedulingVecEnv(2, "Toy", kind="routing"), norm_obs=False))
    vec.reset()
    ends = [info for step in range(450) for info in vec.step(np.zeros((2, 2), int))[3] if "episode" in info]
    assert ends and all(info["scorecard"]["slowdown"] > 1 for info in ends)


def test_mistakes() -> None:
    with pytest.raises(ResetNeeded):
        SchedulingVecEnv(2, "Toy").step(np.zeros((2, 2), int))
    with pytest.raises(SplitgymError, match="kind: the setting that is given says it already"):
        SchedulingVecEnv(2, Setting("Toy"), kind="joint")
    vec = SchedulingVecEnv(2, "Toy")
    vec.set_options({"tracee": 1})
    with pytest.raises(SplitgymError, match="options: unknown 'tracee'"):
        vec.reset()

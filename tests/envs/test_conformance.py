"""What every card and kind must stand."""

import warnings

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from splitgym.cards import KINDS, list_cards
from splitgym.envs import ClusterEnv
from tests.envs.play import sampler

CASES = [(card, kind) for card in list_cards() for kind in KINDS]
VARIANTS = [
    {"kind": "routing", "heads": "prompt"},
    {"kind": "routing", "heads": "token"},
    {"kind": "repurposing", "action": "pool"},
    {"kind": "routing", "max_machines": 7},
    {"kind": "repurposing", "max_machines": 7},
    {"kind": "joint", "max_machines": 7},
]


def make(card, kind, **kwargs):
    return gymnasium.make(f"splitgym/{card}-{kind.capitalize()}-v0", disable_env_checker=True, **kwargs).unwrapped


def conforms(env):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check_env(env, skip_render_check=True)
        checker = pytest.importorskip("stable_baselines3.common.env_checker")
        checker.check_env(env, skip_render_check=True)
    remarks = [str(warning.message) for warning in caught if issubclass(warning.category, UserWarning)]
    # what environment.md expects, and that Gymnasium would rather see a made environment
    expected = ("machines has an unconventional shape", "different from the unwrapped version", "No render fps")
    assert [text for text in remarks if not any(part in text for part in expected)] == []


def survives(env, steps, *, masked):
    """Random actions; every observation is in its space, no mask is empty, rewards are finite."""
    act = sampler(3, env, masked=masked)
    env.reset(seed=0)
    invalid = 0
    for _ in range(steps):
        observation, reward, terminated, truncated, info = env.step(act(env.view))
        assert observation in env.observation_space
        assert np.isfinite(reward)
        assert info["dt_s"] >= 0
        heads = info["action_mask"] if isinstance(info["action_mask"], tuple) else (info["action_mask"],)
        assert all(head.any() for head in heads)
        assert np.array_equal(env.action_masks(), np.concatenate(heads).astype(bool))
        if terminated or truncated:
            invalid += info["invalid_actions"]
            assert "scorecard" in info
            env.reset()
    invalid += info["invalid_actions"]
    assert (invalid == 0) == masked


@pytest.mark.parametrize(("card", "kind"), CASES)
def test_both_checkers(card, kind):
    conforms(make(card, kind, rate=8.0))  # few requests, for time's sake: the checkers reset ten times and more


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_both_checkers_on_variants(mini, variant):
    conforms(ClusterEnv(mini, **variant))


@pytest.mark.parametrize("masked", [True, False], ids=["masked", "unmasked"])
@pytest.mark.parametrize(("card", "kind"), CASES)
def test_random_actions(card, kind, masked):
    env = make(card, kind)
    steps = {"repurposing": 25}.get(kind, 300)
    roles = {machine.role_name for machine in env.cluster.machines}
    if not masked and kind == "routing" and roles == {"mixed"}:
        pytest.skip("nothing is masked here")
    survives(env, steps, masked=masked)


@pytest.mark.parametrize("masked", [True, False], ids=["masked", "unmasked"])
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_random_actions_on_variants(mini, variant, masked):
    survives(ClusterEnv(mini, **variant), 300, masked=masked)


@pytest.mark.thousand
@pytest.mark.parametrize("masked", [True, False], ids=["masked", "unmasked"])
@pytest.mark.parametrize(("card", "kind"), CASES)
def test_ten_thousand_random_actions(card, kind, masked):
    # 10,000 ticks are 14 hours: at the large cards' rates millions of requests
    env = make(card, kind, rate=0.3) if kind == "repurposing" else make(card, kind)
    act = sampler(4, env, masked=masked)
    env.reset(seed=1)
    for _ in range(10_000):
        _, _, terminated, truncated, _ = env.step(act(env.view))
        if terminated or truncated:
            env.reset()


def test_flat_observations_conform(mini):
    from splitgym.envs import FlatObservation

    env = FlatObservation(ClusterEnv(mini))
    observation, _ = env.reset(seed=0)
    assert observation.shape == (4 * 27 + 4 + 6 + 11 + 3,)
    assert observation in env.observation_space
    assert env.get_wrapper_attr("action_masks")().shape == (8,)


def test_mask_in_the_observation(mini):
    from splitgym.envs import MaskInObservation

    env = MaskInObservation(ClusterEnv(mini, kind="joint"))
    observation, _ = env.reset(seed=0)
    assert observation in env.observation_space
    assert observation["action_mask"].shape == (4 + 4 + 13,)
    observation, *_ = env.step(env.action_space.sample())
    assert np.array_equal(observation["action_mask"], env.unwrapped.action_masks())

"""The vector environment is its environments one by one, to the last bit."""

from __future__ import annotations

import copy
import pickle

import gymnasium
import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode, SyncVectorEnv

import splitgym  # noqa: F401  (registers the environments)
from splitgym.envs import ClusterEnv, ClusterVectorEnv
from splitgym.errors import SplitgymError
from splitgym.policies import make_policy
from tests.envs.play import sampler

VARIANTS = [
    {"kind": "routing"},
    {"kind": "routing", "heads": "prompt", "other": "lmetric"},
    {"kind": "routing", "heads": "token", "max_machines": 6, "reward": "slowdown+0.1*energy+slo"},
    {"kind": "repurposing"},
    {"kind": "repurposing", "action": "pool", "rate": 12.0},
    {"kind": "joint", "reward": "cost+time_in_system"},
    {"kind": "routing", "domain_randomisation": True},
]


class InPython:
    """A built-in policy that compiled code does not recognise."""

    def __init__(self, name):
        self.name = name
        self._policy = make_policy(name)

    def reset(self, cluster, seed):
        self._policy.reset(cluster, seed)

    def decide(self, view):
        return self._policy.decide(view)


def actions_of(rng, envs, *, masked=True):
    """Uniform ones, (num_envs, num_heads)."""
    sizes = envs.setting.actions.rules.sizes
    heads = envs.setting.actions.by_head(envs.action_masks())
    weights = [rng.random(head.shape) * (head if masked else 1) for head in heads]
    chosen = np.stack([weight.argmax(axis=1) for weight in weights], axis=1)
    assert (chosen < sizes).all()
    return chosen if len(sizes) > 1 else chosen[:, 0]


def same(left, right):
    """Whether two observations, infos or arrays are equal to the last bit."""
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[name], right[name]) for name in left)
    if isinstance(left, tuple | list):
        return len(left) == len(right) and all(map(same, left, right))
    return np.array_equal(left, right, equal_nan=np.asarray(left).dtype.kind == "f")


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: "-".join(map(str, variant.values())))
@pytest.mark.parametrize("masked", [True, False])
def test_a_vector_is_its_environments(mini, variant, masked):
    vector = ClusterVectorEnv(3, mini, **variant)
    alone = [ClusterEnv(mini, **variant) for _ in range(3)]
    observations, infos = vector.reset(seed=11)
    for env, single in enumerate(alone):
        observation, info = single.reset(seed=11 + env)
        assert same(observation, {name: values[env] for name, values in observations.items()})
        assert info["time_s"] == infos["time_s"][env]
    rng, ended, ends = np.random.default_rng(0), np.zeros(3, bool), 0
    for _ in range(400):
        masks = np.stack([single.action_masks() for single in alone])
        assert np.array_equal(vector.action_masks(), masks)
        actions = actions_of(rng, vector, masked=masked)
        observations, rewards, terminated, truncated, infos = vector.step(actions)
        for env, single in enumerate(alone):
            if ended[env]:
                observation, info = single.reset()
                reward, over = 0.0, (False, False)
            else:
                observation, reward, *over, info = single.step(actions[env])
            assert same(observation, {name: values[env] for name, values in observations.items()})
            assert (reward, *over) == (rewards[env], terminated[env], truncated[env])
            for name in ("time_s", "dt_s", "decision_kind", "invalid_actions"):
                assert infos[name][env] == info[name]
            if any(over):
                ends += 1
                mine = {name: values[env] for name, values in infos["scorecard"].items() if name[0] != "_"}
                assert infos["_scorecard"][env] and same(mine, info["scorecard"])
        ended = terminated | truncated
    assert ends >= 2


@pytest.mark.parametrize(
    "variant", [{"kind": "routing"}, {"kind": "repurposing"}, {"kind": "routing", "heads": "prompt"}]
)
def test_a_policy_in_python_decides_as_its_compiled_twin(mini, variant):
    played = []
    for other in ("splitwise", InPython("splitwise")):
        vector = ClusterVectorEnv(2, mini, other=other, **variant)
        vector.reset(seed=3)
        rng = np.random.default_rng(1)
        played.append([vector.step(actions_of(rng, vector)) for _ in range(300)])
    for left, right in zip(*played, strict=True):
        assert same(left[:4], right[:4])


def test_threads_change_nothing(mini):
    played = []
    for threads in (1, 2, 5):
        vector = ClusterVectorEnv(4, mini, kind="joint", threads=threads)
        vector.reset(seed=3)
        rng = np.random.default_rng(1)
        played.append([vector.step(actions_of(rng, vector)) for _ in range(300)])
        vector.close()
    assert all(same(one[:4], other[:4]) for run in played[1:] for one, other in zip(played[0], run, strict=True))


def play_to_an_end(vector, seed=5):
    """Until the first episode ends: the last step's answer, and how many steps there were."""
    vector.reset(seed=seed)
    rng = np.random.default_rng(2)
    for step in range(1, 2000):
        answer = vector.step(actions_of(rng, vector))
        if (answer[2] | answer[3]).any():
            return answer, step
    raise AssertionError("no episode ended")


def test_next_step_ignores_the_action_after_an_end(mini):
    vector = ClusterVectorEnv(2, mini)
    (observations, rewards, _, truncated, infos), _ = play_to_an_end(vector)
    env = int(np.flatnonzero(truncated)[0])
    assert infos["time_s"][env] == 35.0 and "final_obs" not in infos
    before = observations["machines"][env]
    observations, rewards, terminated, truncated, infos = vector.step(np.tile([0, 2], (2, 1)))
    assert rewards[env] == 0.0 and not terminated[env] and not truncated[env]
    assert infos["time_s"][env] < 10.0 and infos["invalid_actions"][env] == 0
    assert not np.array_equal(observations["machines"][env], before)


def test_same_step_begins_the_next_episode_at_once(mini):
    following, same_step = ClusterVectorEnv(2, mini), ClusterVectorEnv(2, mini, autoreset_mode="SameStep")
    assert same_step.metadata["autoreset_mode"] == AutoresetMode.SAME_STEP
    (last, rewards, _, truncated, infos), steps = play_to_an_end(following)
    (first, same_rewards, _, same_truncated, same_infos), same_steps = play_to_an_end(same_step)
    assert steps == same_steps and same(rewards, same_rewards) and same(truncated, same_truncated)
    env = int(np.flatnonzero(truncated)[0])
    assert same_infos["_final_obs"][env]
    assert same(same_infos["final_obs"][env], {name: values[env] for name, values in last.items()})
    assert same_infos["final_info"]["time_s"][env] == 35.0
    assert same_infos["final_info"]["scorecard"]["slowdown"][env] == infos["scorecard"]["slowdown"][env]
    assert same_infos["time_s"][env] < 10.0
    fresh = following.step(np.tile([0, 2], (2, 1)))[0]
    assert same({name: values[env] for name, values in fresh.items()}, {n: v[env] for n, v in first.items()})


def test_disabled_waits_for_a_reset(mini):
    vector = ClusterVectorEnv(2, mini, autoreset_mode=AutoresetMode.DISABLED)
    (*_, truncated, _), _ = play_to_an_end(vector)
    with pytest.raises(ResetNeeded, match="reset_mask"):
        vector.step(np.tile([0, 2], (2, 1)))
    other = int(np.flatnonzero(~truncated)[0])
    before = vector.clone_state()[other].slot["time_s"][0]
    _, infos = vector.reset(options={"reset_mask": truncated})
    assert infos["_time_s"].tolist() == truncated.tolist()
    assert infos["time_s"][other] == before
    vector.step(np.tile([0, 2], (2, 1)))


@pytest.mark.parametrize("other", ["splitwise", InPython("splitwise")])
def test_a_restored_state_goes_on_as_the_original(mini, other):
    vector = ClusterVectorEnv(2, mini, other=other)
    vector.reset(seed=5)
    rng = np.random.default_rng(2)
    for _ in range(60):
        seen = vector.step(actions_of(rng, vector))[0]
    state = vector.clone_state()
    first, masks = vector.step(actions_of(np.random.default_rng(9), vector)), vector.action_masks()

    def go_on(envs):
        rng = np.random.default_rng(9)
        return [envs.step(actions_of(rng, envs, masked=False)) for _ in range(350)]  # into the next episodes

    original = go_on(vector)
    for other_one in (vector, ClusterVectorEnv(2, mini, other=other)):
        assert same(other_one.restore_state(state), seen)
        assert same(other_one.step(actions_of(np.random.default_rng(9), other_one)), first)
        assert np.array_equal(other_one.action_masks(), masks)
        assert all(map(same, go_on(other_one), original))


def test_the_end_of_an_episode_can_be_restored(mini):
    vector = ClusterVectorEnv(2, mini)
    (observations, *_), _ = play_to_an_end(vector)
    masks = vector.action_masks()
    twin = ClusterVectorEnv(2, mini)
    assert same(twin.restore_state(vector.clone_state()), observations)
    assert np.array_equal(twin.action_masks(), masks)
    actions = np.tile([0, 2], (2, 1))
    assert same(vector.step(actions)[:4], twin.step(actions)[:4])


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda env: pickle.loads(pickle.dumps(env))])
@pytest.mark.parametrize("kind", ["routing", "joint"])
def test_a_copy_lives_its_own_life(mini, duplicate, kind):
    env = ClusterEnv(mini, kind=kind)
    env.reset(seed=5)
    act = sampler(0, env)
    for _ in range(30):
        env.step(act(env.view))
    twin = duplicate(env)
    before = env.clone_state().slot
    action = act(env.view)
    answers = [twin.step(action)]
    assert env.clone_state().slot == before
    answers.append(env.step(action))
    assert same(answers[0], answers[1])


def test_a_state_of_another_environment_is_refused(mini):
    states = []
    for variant in (
        {"machines": "prompt=30:h100-80gb,token=30:h100-80gb"},
        {"engine": "reference"},
        {"kind": "joint"},
        {},
    ):
        env = ClusterEnv(mini, **variant)
        env.reset(seed=1)
        states.append(env.clone_state())
    for state in states[:3]:
        with pytest.raises(
            SplitgymError, match=r"restore_state: the state of a \w+ environment with \d+ machines does not fit"
        ):
            env.restore_state(state)
    env.restore_state(states[3])
    env.step(np.array([0, 2]))


def test_every_id_makes_a_vector():
    for name in [name for name in gymnasium.registry if name.startswith("splitgym/") and "Cluster" not in name]:
        envs = gymnasium.make_vec(name, num_envs=2)
        observations, _ = envs.reset(seed=0)
        assert observations in envs.observation_space
        assert envs.step(actions_of(np.random.default_rng(0), envs))[0] in envs.observation_space


def test_gymnasiums_vector_wrappers(mini):
    envs = gymnasium.wrappers.vector.RecordEpisodeStatistics(ClusterVectorEnv(2, mini))
    envs.reset(seed=0)
    rng = np.random.default_rng(0)
    infos = {}
    while "episode" not in infos:
        *_, infos = envs.step(actions_of(rng, envs.unwrapped))
    assert (infos["episode"]["l"] > 100).any()


def test_one_and_several_are_made_by_gymnasium():
    vector = gymnasium.make_vec("splitgym/Toy-Routing-v0", num_envs=5, rate=1.5)
    assert isinstance(vector.unwrapped, ClusterVectorEnv)
    assert vector.spec.id == "splitgym/Toy-Routing-v0"
    assert vector.metadata["autoreset_mode"] == AutoresetMode.NEXT_STEP
    observations, _ = vector.reset(seed=0)
    assert observations in vector.observation_space
    actions = vector.action_space.sample()
    observations, rewards, *_ = vector.step(actions)
    assert observations in vector.observation_space and rewards.shape == (5,)
    slow = gymnasium.make_vec("splitgym/Toy-Routing-v0", num_envs=5, vectorization_mode="sync", rate=1.5)
    assert isinstance(slow, SyncVectorEnv)
    slow.reset(seed=0)
    assert same(slow.step(actions)[0], observations)


def test_seeds(mini):
    vector = ClusterVectorEnv(3, mini)
    first, _ = vector.reset(seed=4)
    again, _ = vector.reset(seed=[4, 5, 6])
    assert same(first, again)
    later = [vector.reset()[0]["request"] for _ in range(2)]
    vector.reset(seed=4)
    assert same(later, [vector.reset()[0]["request"] for _ in range(2)])
    assert not same(later[0], later[1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_envs": 0}, "num_envs: 0; give a whole number"),
        ({"num_envs": 2, "threads": 0}, "threads: 0; give a whole number"),
        ({"num_envs": 2, "autoreset_mode": "samestep"}, "autoreset_mode: unknown 'samestep'; did you mean 'SameStep'?"),
        ({"num_envs": 2, "render_mode": "ansi"}, "render_mode: 'ansi' is for one environment"),
        ({"num_envs": 2, "max_machine": 4}, "max_machine: unknown argument; did you mean 'max_machines'?"),
        ({"num_envs": 2, "rate": "8"}, "rate: '8' is not a number"),
        ({"num_envs": 2, "other": 3}, "other: 3 is no policy"),
        ({"num_envs": 2, "kind": "rooting"}, "kind: unknown 'rooting'; did you mean 'routing'?"),
    ],
)
def test_mistakes_in_arguments(mini, arguments, message):
    with pytest.raises(SplitgymError) as error:
        ClusterVectorEnv(card=mini, **arguments)
    assert message in str(error.value)


def test_mistakes_in_calls(mini):
    vector = ClusterVectorEnv(2, mini)
    for call in (lambda: vector.step(np.zeros((2, 2), int)), vector.clone_state):
        with pytest.raises(ResetNeeded):
            call()
    vector.reset(seed=0)
    for actions in (np.zeros((3, 2), int), np.zeros(4, int), [[1], [1, 2]], np.full((2, 2), 4), np.zeros((2, 2)), None):
        with pytest.raises(SplitgymError, match=r"is not in MultiDiscrete\(\[4 4\]\) for each of 2 environments"):
            vector.step(actions)
    with pytest.raises(SplitgymError, match="3 seeds for 2 environments"):
        vector.reset(seed=[1, 2, 3])
    for mask in ([True], np.zeros(2, bool), "x"):
        with pytest.raises(SplitgymError, match="reset_mask is"):
            vector.reset(options={"reset_mask": mask})
    with pytest.raises(SplitgymError, match="options: unknown 'tracee'"):
        vector.reset(options={"tracee": 1})
    with pytest.raises(SplitgymError, match="1 states for 2"):
        vector.restore_state(vector.clone_state()[:1])


def test_who_decides_what_is_not_permitted_is_named(mini):
    threshold = make_policy("static+threshold").pool  # names no machines
    vector = ClusterVectorEnv(2, mini, heads="prompt", other=threshold)
    vector.reset(seed=0)
    with pytest.raises(SplitgymError, match=r"policy 'threshold', request .*token machine -1 does not exist"):
        vector.step(np.zeros(2, int))

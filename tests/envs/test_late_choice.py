"""Environments whose token machines are chosen when prompt phases end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from splitgym.envs import ClusterEnv, ClusterVectorEnv
from tests.envs.conftest import MINI
from tests.envs.play import sampler, shortest
from tests.envs.test_conformance import conforms, survives

VARIANTS: list[dict[str, Any]] = [
    {"kind": "routing"},
    {"kind": "joint", "max_machines": 6},
    {"kind": "routing", "heads": "prompt"},
    {"kind": "routing", "heads": "token", "other": "lmetric"},
    {"kind": "repurposing"},
]
each = pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: "-".join(map(str, variant.values())))


@pytest.fixture(scope="module")
def late(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small card; machines go down now and then."""
    path = tmp_path_factory.mktemp("cards") / "Late.yaml"
    faults = "  faults: {mtbf_s: 20, mttr_s: 3}\n"
    path.write_text(MINI.replace("  switch_s", f"  token_choice: prompt_end\n{faults}  switch_s"))
    return path


@each
def test_both_checkers(late: Path, variant: dict[str, Any]) -> None:
    conforms(ClusterEnv(late, **variant))


@each
@pytest.mark.parametrize("masked", [True, False])
def test_random_actions(late: Path, variant: dict[str, Any], masked: bool) -> None:
    survives(ClusterEnv(late, **variant), 300, masked=masked)


def test_each_decision_asks_for_one_machine(late: Path) -> None:
    """Nearly every request is asked about twice; the mask of what is not asked for has one index."""
    env = ClusterEnv(late, kind="routing")
    observation, info = env.reset(seed=0)
    seen = {"arrival": 0, "prompt_end": 0}
    for _ in range(300):
        kind = info["decision_kind"]
        prompt, token = info["action_mask"]
        assert observation["decision_kind"].tolist() == [kind == "arrival", kind == "prompt_end", 0.0]
        if kind == "arrival":
            assert token.tolist() == [1, 0, 0, 0]
        else:
            assert prompt.sum() == 1
            assert env.view["transfer_s"][prompt.argmax()] == 0.0
        seen[kind] += 1
        observation, _, terminated, truncated, info = env.step(shortest(env.view))
        if terminated or truncated:
            observation, info = env.reset()
    assert 0.6 < seen["prompt_end"] / seen["arrival"] < 1.0  # some requests end there, some still wait


@pytest.mark.parametrize(("heads", "kind"), [("prompt", "arrival"), ("token", "prompt_end")])
def test_one_head_decides_one_half(late: Path, heads: str, kind: str) -> None:
    env = ClusterEnv(late, kind="routing", heads=heads)
    act = sampler(1, env)
    _, info = env.reset(seed=0)
    for _ in range(100):
        assert info["decision_kind"] == kind
        *_, info = env.step(act(env.view))


def test_the_other_head_counts_for_nothing(late: Path) -> None:
    envs = [ClusterEnv(late, kind="routing") for _ in range(2)]
    infos = [env.reset(seed=0)[1] for env in envs]
    rng = np.random.default_rng(0)
    for _ in range(150):
        masks = infos[0]["action_mask"]
        action = np.array([int((rng.random(4) * mask).argmax()) for mask in masks])
        other = action.copy()
        other[1 if infos[0]["decision_kind"] == "arrival" else 0] = rng.integers(4)
        (seen, *_, infos[0]), (also, *_, infos[1]) = envs[0].step(action), envs[1].step(other)
        for name, values in seen.items():
            np.testing.assert_array_equal(values, also[name])
    assert infos[1]["invalid_actions"] == 0


@each
@pytest.mark.parametrize("masked", [True, False])
def test_one_and_many_and_both_engines_are_alike(late: Path, variant: dict[str, Any], masked: bool) -> None:
    vector = ClusterVectorEnv(3, late, **variant)
    alone = [ClusterEnv(late, engine=engine, **variant) for engine in ("compiled", "compiled", "reference")]
    seen, _ = vector.reset(seed=5)
    single = [env.reset(seed=5 + n)[0] for n, env in enumerate(alone)]
    rng = np.random.default_rng(0)
    steps = 12 if variant["kind"] == "repurposing" else 150
    for _ in range(steps):
        for n in range(3):
            for name, values in single[n].items():
                np.testing.assert_array_equal(seen[name][n], values)
        np.testing.assert_array_equal(vector.action_masks(), [env.action_masks() for env in alone])
        heads = vector.setting.actions.by_head(vector.action_masks())
        weights = [rng.random(head.shape) * (head if masked else 1) for head in heads]
        actions = np.stack([weight.argmax(axis=1) for weight in weights], axis=1)
        if len(heads) == 1:
            actions = actions[:, 0]
        seen, rewards, terminated, truncated, infos = vector.step(actions)
        assert not (terminated | truncated).any()
        single = []
        for n, env in enumerate(alone):
            observation, reward, *_, info = env.step(actions[n])
            single.append(observation)
            assert (reward, info["invalid_actions"]) == (rewards[n], infos["invalid_actions"][n])


@pytest.mark.parametrize("engine", ["compiled", "reference"])
def test_a_restored_state_goes_on_as_the_original(late: Path, engine: str) -> None:
    env = ClusterEnv(late, kind="joint", engine=engine)
    act = sampler(2, env)
    _, info = env.reset(seed=3)
    for _ in range(60):
        *_, info = env.step(act(env.view))
    while info["decision_kind"] != "prompt_end":
        *_, info = env.step(act(env.view))
    state = env.clone_state()
    actions = [act(env.view)]
    first = [env.step(actions[0])]
    for _ in range(40):
        actions.append(act(env.view))
        first.append(env.step(actions[-1]))
    env.restore_state(state)
    for action, (observation, reward, *_) in zip(actions, first, strict=True):
        again, its_reward, *_ = env.step(action)
        assert its_reward == reward
        for name, values in observation.items():
            np.testing.assert_array_equal(again[name], values)

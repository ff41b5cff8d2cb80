import subprocess
import sys
from pathlib import Path

import gymnasium
import numpy as np
import pytest

from splitgym import cards, registration
from splitgym.envs import ClusterEnv
from splitgym.errors import SplitgymError


def test_every_card_has_an_id_for_each_kind():
    assert registration.KINDS == cards.KINDS
    for name in cards.list_cards():
        for kind in ("Routing", "Repurposing", "Joint"):
            spec = gymnasium.spec(f"splitgym/{name}-{kind}-v0")
            assert spec.max_episode_steps is None
            assert spec.kwargs == {"card": name, "kind": kind.lower()}


def test_import_is_quick_and_light():
    code = (
        "import sys, time; start = time.perf_counter(); import splitgym; print(time.perf_counter() - start);"
        "assert not {'torch', 'numba', 'simpy', 'matplotlib'} & set(sys.modules)"
    )
    assert min(float(subprocess.check_output([sys.executable, "-c", code])) for _ in range(3)) < 1.0


def test_make_imports_the_package_itself():
    code = "import gymnasium; print(gymnasium.make('splitgym:splitgym/Toy-Joint-v0').unwrapped.kind)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "joint"


def test_a_card_by_its_path(mini):
    env = gymnasium.make("splitgym/Cluster-v0", card=mini, kind="repurposing")
    assert env.action_space == gymnasium.spaces.Discrete(1 + 3 * 4)
    assert gymnasium.make("splitgym/Cluster-v0", card=str(mini)).unwrapped.kind == "routing"
    with pytest.raises(SplitgymError, match=r"card: missing"):
        gymnasium.make("splitgym/Cluster-v0")


def test_a_file_name_may_carry_a_version(tmp_path, monkeypatch, mini):
    (tmp_path / "Zoo-v3.yaml").write_text(Path(mini).read_text())
    monkeypatch.setattr(registration, "shipped_folder", lambda name: tmp_path)
    try:
        registration.register_envs()
        assert gymnasium.spec("splitgym/Zoo-Joint-v3").kwargs["card"] == "Zoo-v3"
    finally:
        for kind in ("Routing", "Repurposing", "Joint"):
            gymnasium.registry.pop(f"splitgym/Zoo-{kind}-v3", None)


def test_kind_may_be_given_over_the_id():
    assert gymnasium.make("splitgym/Toy-Routing-v0", kind="joint").unwrapped.kind == "joint"


def test_vectorised():
    envs = gymnasium.make_vec("splitgym/Toy-Routing-v0", num_envs=8, vectorization_mode="sync")
    observations, infos = envs.reset(seed=0)
    assert observations["machines"].shape[:2] == (8, 2)
    for _ in range(210):  # past the end of an episode
        observations, rewards, _, _, infos = envs.step(envs.action_space.sample())
    assert rewards.shape == (8,) and np.isfinite(rewards).all()
    assert infos["dt_s"].shape == (8,)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"kind": "rooting"}, "kind: unknown 'rooting'; did you mean 'routing'?"),
        ({"reward": "slodown"}, "reward: unknown 'slodown'; did you mean 'slowdown'?"),
        ({"split": "tests"}, "split: unknown 'tests'; did you mean 'test'?"),
        ({"other": "splitwize"}, "splitwise"),
        ({"render_mode": "human"}, "render_mode: unknown 'human'"),
        ({"heads": "prompts"}, "heads: unknown 'prompts'; did you mean 'prompt'?"),
        ({"kind": "joint", "heads": "prompt"}, "heads: 'prompt' is for kind 'routing'"),
        ({"kind": "repurposing", "action": "pools"}, "action: unknown 'pools'; did you mean 'pool'?"),
        ({"action": "pool"}, "action: 'pool' is for kind 'repurposing'"),
        ({"kind": "joint", "other": "splitwise"}, "other: kind 'joint' leaves nothing to decide"),
        ({"max_machines": 1}, "max_machines: 1 is less than the card's 2"),
        ({"engine": "compile"}, "engine: unknown 'compile'; did you mean 'compiled'?"),
        ({"gamma": 1.5}, "gamma: 1.5 is not in"),
        ({"rate": 0}, "rate: 0 requests per second"),
        ({"reward_scale": float("nan")}, "reward_scale: nan"),
    ],
)
def test_misuse_is_told_in_one_line(kwargs, message):
    with pytest.raises(SplitgymError) as error:
        ClusterEnv("Toy", **kwargs)
    assert message in str(error.value)
    assert "\n" not in str(error.value)

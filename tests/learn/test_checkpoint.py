"""A resumed run equals one that was never interrupted; a run is resumed only as it began."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from splitgym.errors import SplitgymError
from splitgym.learn import NO_EVALUATION, DqnSettings, EvaluationPlan, PpoSettings, train
from splitgym.learn.run_folder import RunFolder

QUICK: dict[str, Any] = {"card": "Toy", "num_envs": 3, "evaluation": NO_EVALUATION, "progress": False}
PPO = PpoSettings(num_steps=32, minibatch=32, epochs=2)
DQN = DqnSettings(
    num_steps=4, gradient_steps=2, minibatch=16, learning_starts=60, exploration_steps=200, buffer_size=600
)

VARIANTS = {
    "maskable-ppo": {"algo": "maskable-ppo", "settings": PPO},
    "ppo, mlp": {"algo": "ppo", "settings": PPO, "network": "mlp"},
    "drawn laws": {"algo": "maskable-ppo", "settings": PPO, "environment": {"domain_randomisation": True}},
    "by time": {"algo": "maskable-ppo", "settings": PPO, "discounting": "time"},
    "dqn": {"algo": "dqn", "settings": DQN, "environment": {"heads": "prompt"}},
    "repurposing": {"algo": "maskable-ppo", "settings": PPO, "kind": "repurposing", "num_envs": 2},
}


def equal(left: Path, right: Path) -> bool:
    weights = [RunFolder(path).weights() for path in (left, right)]
    assert weights[0].keys() == weights[1].keys()
    return all(np.array_equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_resumed_run_equals_an_uninterrupted_one(variant: str, tmp_path: Path) -> None:
    chosen = QUICK | VARIANTS[variant]
    whole = train(**chosen, steps=576, out=tmp_path / "whole")
    parts = train(**chosen, steps=192, out=tmp_path / "parts")
    assert not equal(whole, parts)
    np.random.rand(7)  # noqa: NPY002  (the global generators are elsewhere now)
    train(**chosen, steps=576, out=parts, resume=True)
    assert equal(whole, parts)
    assert RunFolder(parts).config() == RunFolder(whole).config()


def test_evaluation_and_checkpoints_change_nothing_that_is_learned(tmp_path: Path) -> None:
    plain = train(**QUICK, settings=PPO, steps=384, out=tmp_path / "plain")
    watching = EvaluationPlan(every=96, seeds=1, final_seeds=1, references=("lmetric",))
    watched = train(
        **(QUICK | {"evaluation": watching}), settings=PPO, steps=384, out=tmp_path / "watched", checkpoint_every=96
    )
    assert equal(plain, watched)
    config = RunFolder(watched).config()
    assert config.decision == min(config.validation, key=lambda mode: config.validation[mode])


def test_interrupted_between_checkpoints_it_goes_on_from_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(**QUICK, settings=PPO, steps=480, out=tmp_path / "whole")

    from splitgym.learn.vec_env import SchedulingVecEnv

    step_wait, calls = SchedulingVecEnv.step_wait, []

    def failing(self: SchedulingVecEnv) -> Any:
        calls.append(None)
        if len(calls) == 90:  # in the third rollout of 32
            raise KeyboardInterrupt
        return step_wait(self)

    monkeypatch.setattr(SchedulingVecEnv, "step_wait", failing)
    with pytest.raises(KeyboardInterrupt):
        train(**QUICK, settings=PPO, steps=480, out=tmp_path / "broken", checkpoint_every=96)
    monkeypatch.undo()
    train(**QUICK, settings=PPO, steps=480, out=tmp_path / "broken", checkpoint_every=96, resume=True)
    assert equal(whole, tmp_path / "broken")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(**QUICK, settings=PPO, steps=96, seed=3, out=tmp_path_factory.mktemp("runs") / "run")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seed": 4}, "seed: the run was trained with 3, asked for is 4"),
        ({"kind": "repurposing"}, "kind: the run was trained with 'routing'"),
        ({"algo": "ppo"}, "algorithm: the run was trained with 'maskable-ppo'"),
        ({"card": "Quickstart"}, "card: the run was trained with 'Toy', asked for is 'Quickstart'"),
        ({"reward": "slo"}, "reward: the run was trained with 'slowdown-shaped'"),
        ({"network": "mlp"}, "network: the run was trained with 'equivariant'"),
    ],
)
def test_another_run_is_not_resumed(trained: Path, change: dict[str, Any], named: str) -> None:
    before = {path: path.stat().st_mtime_ns for path in trained.rglob("*")}
    with pytest.raises(SplitgymError, match=named) as error:
        train(**(QUICK | {"settings": PPO, "seed": 3} | change), steps=192, out=trained, resume=True)
    assert "\n" not in str(error.value)
    assert {path: path.stat().st_mtime_ns for path in trained.rglob("*")} == before


def test_a_card_that_says_something_else_is_another_card(trained: Path) -> None:
    from splitgym.cards import load_card

    card = load_card("Toy")
    changed = card.model_copy(update={"slo": card.slo.model_copy(update={"ttft": (3.0, 4.0, 6.0)})})
    changed._path = card._path
    with pytest.raises(SplitgymError, match="card_digest: the run was trained with another version of the card"):
        train(**(QUICK | {"card": changed}), settings=PPO, steps=192, seed=3, out=trained, resume=True)


def test_a_damaged_checkpoint_is_told(trained: Path, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(trained, copy)
    content = (copy / "checkpoint.pt").read_bytes()
    (copy / "checkpoint.pt").write_bytes(content[: len(content) // 2])
    with pytest.raises(SplitgymError, match=r"checkpoint\.pt: damaged"):
        train(**QUICK, settings=PPO, steps=192, seed=3, out=copy, resume=True)
    (copy / "checkpoint.pt").unlink()
    with pytest.raises(SplitgymError, match=r"checkpoint\.pt: missing"):
        train(**QUICK, settings=PPO, steps=192, seed=3, out=copy, resume=True)

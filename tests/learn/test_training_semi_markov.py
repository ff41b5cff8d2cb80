"""Discounting by time: the stock buffer to the bit where steps are equal, and the defining sum where they are not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from gymnasium import spaces
from sb3_contrib.common.maskable.buffers import MaskableDictRolloutBuffer
from stable_baselines3.common.buffers import DictRolloutBuffer

from splitgym.learn import NO_EVALUATION, PpoSettings, train
from splitgym.learn.run_folder import RunFolder
from splitgym.learn.semi_markov import SemiMarkovBuffer, SemiMarkovMaskableBuffer

STEPS, ENVS, GAMMA, LAMBDA = 40, 3, 0.97, 0.9
SPACE = spaces.Dict({"x": spaces.Box(0.0, 1.0, (1,), np.float32)})


def filled(kind: type) -> DictRolloutBuffer:
    buffer = kind(STEPS, SPACE, spaces.Discrete(2), "cpu", LAMBDA, GAMMA, ENVS)
    rng = np.random.default_rng(0)
    buffer.reset()
    buffer.rewards[:] = rng.normal(size=(STEPS, ENVS))
    buffer.values[:] = rng.normal(size=(STEPS, ENVS))
    buffer.episode_starts[:] = rng.random((STEPS, ENVS)) < 0.1
    return buffer


@pytest.mark.parametrize(
    ("ours", "stock"),
    [(SemiMarkovBuffer, DictRolloutBuffer), (SemiMarkovMaskableBuffer, MaskableDictRolloutBuffer)],
)
def test_equal_steps_give_the_stock_buffer_to_the_bit(ours: type, stock: type) -> None:
    last, dones = torch.tensor([0.3, -1.2, 0.7]), np.array([False, True, False])
    buffers = filled(ours), filled(stock)
    buffers[0].discounts[:] = GAMMA ** (0.05 / 0.05)  # type: ignore[attr-defined]
    for buffer in buffers:
        buffer.compute_returns_and_advantage(last, dones)
    np.testing.assert_array_equal(buffers[0].advantages, buffers[1].advantages)
    np.testing.assert_array_equal(buffers[0].returns, buffers[1].returns)


def test_unequal_steps_give_the_defining_sum() -> None:
    buffer = filled(SemiMarkovBuffer)
    buffer.gae_lambda = 1.0
    discounts = np.random.default_rng(1).uniform(0.8, 1.0, (STEPS, ENVS))
    buffer.discounts[:] = discounts
    last = np.array([0.3, -1.2, 0.7])
    buffer.compute_returns_and_advantage(torch.tensor(last, dtype=torch.float32), np.zeros(ENVS, np.bool_))
    for env in range(ENVS):
        expected = last[env]  # with λ = 1 a return is the discounted rewards up to the episode's or buffer's end
        for step in reversed(range(STEPS)):
            ends = step + 1 < STEPS and buffer.episode_starts[step + 1, env] > 0
            expected = buffer.rewards[step, env] + discounts[step, env] * (0.0 if ends else expected)
            assert buffer.returns[step, env] == pytest.approx(expected, abs=1e-4)  # float32 over 40 steps


@pytest.mark.parametrize(("card", "equal"), [("Toy", True), ("Quickstart", False)])
def test_training_by_time_is_training_by_decision_where_steps_are_equal(card: str, equal: bool, tmp_path: Path) -> None:
    weights = {}
    for discounting in ("decision", "time"):
        out = train(
            card,  # a request every 0.1 s in Toy, at random times in Quickstart
            steps=256,
            out=tmp_path / discounting,
            num_envs=2,
            settings=PpoSettings(num_steps=64),
            discounting=discounting,
            evaluation=NO_EVALUATION,
            progress=False,
        )
        weights[discounting] = RunFolder(out).weights()["actor.own.weight"]
    assert np.isfinite(weights["time"]).all()
    assert np.array_equal(weights["decision"], weights["time"]) == equal

"""Discounting by time instead of by decision: a rollout buffer with one discount for each transition.

Steps take unequal time. With reference step d and discount γ per d, a transition of dt seconds is discounted by
γ^(dt/d) = exp(−β·dt), β = −ln γ / d (a semi-Markov decision process; Bradtke and Duff, NIPS 1994).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from sb3_contrib.common.maskable.buffers import MaskableDictRolloutBuffer
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback

FloatArray = npt.NDArray[np.float64]


class _TransitionDiscounts:
    """Advantages with one discount per transition; mixed in before a rollout buffer's class.

    The arithmetic is that of Stable-Baselines3 in the same order and precision, so that equal discounts give equal
    bits.
    """

    discounts: FloatArray  # (buffer_size, num_envs), of the transition taken at a step

    def reset(self) -> None:
        self.discounts = np.full((self.buffer_size, self.n_envs), self.gamma)  # type: ignore[attr-defined,arg-type]
        super().reset()  # type: ignore[misc]

    def compute_returns_and_advantage(self, last_values: torch.Tensor, dones: npt.NDArray[np.bool_]) -> None:
        values, rewards, starts = self.values, self.rewards, self.episode_starts  # type: ignore[attr-defined]
        step_discounts = self.discounts.astype(np.float32)
        trace_discounts = (self.discounts * self.gae_lambda).astype(np.float32)  # type: ignore[attr-defined]
        next_values = last_values.clone().cpu().numpy().flatten()
        goes_on = 1.0 - dones.astype(np.float32)
        advantage: Any = 0
        for step in reversed(range(len(values))):
            surprise = rewards[step] + step_discounts[step] * next_values * goes_on - values[step]
            advantage = surprise + trace_discounts[step] * goes_on * advantage
            self.advantages[step] = advantage  # type: ignore[attr-defined]
            next_values, goes_on = values[step], 1.0 - starts[step]
        self.returns = self.advantages + values  # type: ignore[attr-defined]


class SemiMarkovBuffer(_TransitionDiscounts, DictRolloutBuffer):
    """For PPO."""


class SemiMarkovMaskableBuffer(_TransitionDiscounts, MaskableDictRolloutBuffer):
    """For MaskablePPO."""


class SemiMarkovCallback(BaseCallback):
    """Fills the buffer's discounts from ``info["dt_s"]``, and corrects the bootstrap where an episode is truncated.

    Args:
        reference_s: the time over which the algorithm's γ discounts.
    """

    def __init__(self, reference_s: float) -> None:
        super().__init__()
        self._reference_s = reference_s

    def _on_step(self) -> bool:
        buffer: RolloutBuffer = self.locals["rollout_buffer"]
        gamma = buffer.gamma
        for index, info in enumerate(self.locals["infos"]):
            discount = gamma ** (float(info["dt_s"]) / self._reference_s)
            buffer.discounts[buffer.pos, index] = discount  # type: ignore[attr-defined]
            if info.get("TimeLimit.truncated", False) and discount != gamma:
                # The algorithm itself will add gamma times this value to the reward.
                last, _ = self.model.policy.obs_to_tensor(info["terminal_observation"])
                with torch.no_grad():
                    value = self.model.policy.predict_values(last)[0]  # type: ignore[operator]
                self.locals["rewards"][index] += (discount - gamma) * float(value)
        return True

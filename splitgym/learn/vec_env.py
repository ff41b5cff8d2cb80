"""Many environments for Stable-Baselines3, one after the other in one process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvStepReturn

FloatArray = npt.NDArray[np.float32]
Observations = dict[str, FloatArray]


class SchedulingVecEnv(VecEnv):
    """Environments with dictionary observations, reset in the step that ends their episode.

    The last step of an episode returns the next one's first observation; its own is in ``terminal_observation``, and
    ``TimeLimit.truncated`` says whether it still has a value. ``episode`` there holds the return ``r``, the decisions
    ``l`` and, as ``t``, the simulated seconds: a wall clock would make two equal runs differ.

    Args:
        environments: `splitgym.envs.ClusterEnv`, with equal spaces.
        reward_scale: rewards are multiplied by it; the returns in ``episode`` are not.
        stagger: cut off first episodes, each at another share of its length, so that the episodes do not all end
            together.
    """

    def __init__(
        self,
        environments: Sequence[gymnasium.Env[Any, Any]],
        *,
        reward_scale: float = 1.0,
        stagger: bool = False,
    ) -> None:
        self.environments = [environment.unwrapped for environment in environments]
        self._reward_scale = reward_scale
        self._stagger = stagger
        self._cut_at_s = [np.inf] * len(environments)
        self._returns = [0.0] * len(environments)
        self._lengths = [0] * len(environments)
        self._actions: npt.NDArray[np.int64] = np.zeros(0, np.int64)
        space = environments[0].observation_space
        if not isinstance(space, spaces.Dict):
            raise TypeError(f"the observation space must be a Dict, not {space}")
        self._observations: Observations = {
            key: np.zeros((len(environments), *(part.shape or ())), np.float32) for key, part in space.spaces.items()
        }
        super().__init__(len(environments), space, environments[0].action_space)

    def reset(self) -> Observations:
        """Start all episodes, with the seeds last given to ``seed``."""
        for index, environment in enumerate(self.environments):
            observation, self.reset_infos[index] = environment.reset(seed=self._seeds[index])
            self._start(index, observation)
            if self._stagger and index + 1 < self.num_envs:
                scenario = environment.scenario  # type: ignore[attr-defined]
                counted_s = scenario.horizon_s - scenario.warmup_s
                self._cut_at_s[index] = scenario.warmup_s + counted_s * (index + 1) / self.num_envs
        self._reset_seeds()
        return self.observations()

    def observations(self) -> Observations:
        """A copy of the last observations, (num_envs, …) each."""
        return {key: values.copy() for key, values in self._observations.items()}

    def step_async(self, actions: npt.NDArray[np.int64]) -> None:
        """Keep the actions for ``step_wait``."""
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        """Take one step everywhere."""
        rewards = np.zeros(self.num_envs, np.float32)
        dones = np.zeros(self.num_envs, np.bool_)
        infos: list[dict[str, Any]] = []
        for index, environment in enumerate(self.environments):
            observation, reward, terminated, truncated, info = environment.step(self._actions[index])
            self._returns[index] += float(reward)
            self._lengths[index] += 1
            seconds = float(info["time_s"])
            truncated = truncated or seconds >= self._cut_at_s[index]
            rewards[index] = float(reward) * self._reward_scale
            if terminated or truncated:
                dones[index] = True
                info["terminal_observation"] = observation
                info["TimeLimit.truncated"] = truncated and not terminated
                info["episode"] = {"r": self._returns[index], "l": self._lengths[index], "t": seconds}
                observation, self.reset_infos[index] = environment.reset()
                self._cut_at_s[index] = np.inf
                self._start(index, observation)
            else:
                self._keep(index, observation)
            infos.append(info)
        return self.observations(), rewards, dones, infos

    def _start(self, index: int, observation: Observations) -> None:
        self._returns[index], self._lengths[index] = 0.0, 0
        self._keep(index, observation)

    def _keep(self, index: int, observation: Observations) -> None:
        for key, values in self._observations.items():
            values[index] = observation[key]

    def action_masks(self) -> npt.NDArray[np.bool_]:
        """(num_envs, n) what may be chosen now."""
        return np.stack([environment.action_masks() for environment in self.environments])  # type: ignore[attr-defined]

    def state(self) -> list[dict[str, Any]]:
        """All that is needed to go on from here later, one dictionary for each environment."""
        return [
            {
                "environment": environment.clone_state(),  # type: ignore[attr-defined]
                "return": self._returns[index],
                "length": self._lengths[index],
                "cut_at_s": self._cut_at_s[index],
                "observation": {key: values[index].copy() for key, values in self._observations.items()},
            }
            for index, environment in enumerate(self.environments)
        ]

    def restore(self, states: Sequence[dict[str, Any]]) -> None:
        """Go on from a `state`."""
        for index, (environment, state) in enumerate(zip(self.environments, states, strict=True)):
            environment.restore_state(state["environment"])  # type: ignore[attr-defined]
            self._returns[index], self._lengths[index] = state["return"], state["length"]
            self._cut_at_s[index] = state["cut_at_s"]
            self._keep(index, state["observation"])

    def close(self) -> None:
        """Close the environments."""
        for environment in self.environments:
            environment.close()

    def env_method(self, method_name: str, *args: Any, indices: VecEnvIndices = None, **kwargs: Any) -> list[Any]:
        """Call a method of the environments."""
        return [getattr(self.environments[i], method_name)(*args, **kwargs) for i in self._get_indices(indices)]

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """Read an attribute of the environments."""
        return [getattr(self.environments[i], attr_name) for i in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Set an attribute of the environments."""
        for i in self._get_indices(indices):
            setattr(self.environments[i], attr_name, value)

    def env_is_wrapped(
        self, wrapper_class: type[gymnasium.Wrapper[Any, Any, Any, Any]], indices: VecEnvIndices = None
    ) -> list[bool]:
        """False: wrappers were taken off."""
        return [False for _ in self._get_indices(indices)]

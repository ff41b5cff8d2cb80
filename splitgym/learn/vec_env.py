"""Many environments for Stable-Baselines3, in one call of compiled code for a step of all."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvStepReturn

from splitgym.cards import Card
from splitgym.envs.batch import Batch
from splitgym.envs.observations import Observation
from splitgym.envs.setting import Setting

FloatArray = npt.NDArray[np.float64]


class SchedulingVecEnv(VecEnv):
    """Environments with dictionary observations, reset in the step that ends their episode.

    The last step of an episode returns the next one's first observation; its own is in ``terminal_observation``, and
    ``TimeLimit.truncated`` says whether it still has a value. ``episode`` there holds the return ``r``, the decisions
    ``l`` and, as ``t``, the simulated seconds: a wall clock would make two equal runs differ. Each info has ``time_s``
    and ``dt_s``, and at the end of an episode its ``scorecard``.

    Args:
        num_envs: how many.
        card: a shipped card's name, a card file's path, a `Card`, or the `Setting` of another environment.
        reward_scale: rewards are multiplied by it; the returns in ``episode`` are not.
        stagger: cut off first episodes, each at another share of its length, so that the episodes do not all end
            together.
        threads: for compiled code, each takes a share of the environments.
        environment: further arguments of `splitgym.envs.ClusterEnv`.
    """

    def __init__(
        self,
        num_envs: int,
        card: str | Path | Card | Setting | None = None,
        *,
        reward_scale: float = 1.0,
        stagger: bool = False,
        threads: int = 1,
        **environment: Any,
    ) -> None:
        self.setting = Setting.of(card, environment)
        self.render_mode = None
        self._batch = Batch(self.setting, num_envs, threads)
        self._reward_scale = reward_scale
        self._stagger = stagger
        self._cut_at_s: FloatArray = np.full(num_envs, np.inf)
        self._returns: FloatArray = np.zeros(num_envs)
        self._lengths: npt.NDArray[np.int64] = np.zeros(num_envs, np.int64)
        self._actions: npt.NDArray[np.int64] = np.zeros(0, np.int64)
        super().__init__(num_envs, self.setting.observer.space, self.setting.actions.space)

    def reset(self) -> Observation:
        """Start all episodes, with the seeds last given to ``seed``."""
        if any(self._options):
            for env in range(self.num_envs):
                self._batch.reset([env], [self._seeds[env]], self._options[env])
        else:
            self._batch.reset(range(self.num_envs), self._seeds)
        self.reset_infos = [self._batch.info(env) for env in range(self.num_envs)]
        self._returns[:], self._lengths[:], self._cut_at_s[:] = 0.0, 0, np.inf
        if self._stagger:
            for env in range(self.num_envs - 1):
                episode = self._batch.episodes[env]
                assert episode is not None
                scenario = episode.scenario
                counted_s = scenario.horizon_s - scenario.warmup_s
                self._cut_at_s[env] = scenario.warmup_s + counted_s * (env + 1) / self.num_envs
        self._reset_seeds()
        self._reset_options()
        return self.observations()

    def observations(self) -> Observation:
        """A copy of the last observations, (num_envs, …) each."""
        return self._batch.observations()

    def step_async(self, actions: npt.NDArray[np.int64]) -> None:
        """Keep the actions for ``step_wait``."""
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        """Take one step everywhere."""
        batch, slots = self._batch, self._batch.slots
        batch.step(batch.every, self.setting.actions.parse(self._actions, self.num_envs))
        rewards = (slots["reward"] * self._reward_scale).astype(np.float32)
        self._returns += slots["reward"]
        self._lengths += 1
        dones = batch.is_over | (slots["time_s"] >= self._cut_at_s)
        times = zip(slots["time_s"].tolist(), slots["dt_s"].tolist(), strict=True)
        infos: list[dict[str, Any]] = [{"time_s": time_s, "dt_s": dt_s} for time_s, dt_s in times]
        ended = np.flatnonzero(dones).tolist()
        for env in ended:
            infos[env] = self._last_info(env)
        if ended:
            batch.reset(ended, [None] * len(ended))
            self._returns[ended], self._lengths[ended], self._cut_at_s[ended] = 0.0, 0, np.inf
            for env in ended:
                self.reset_infos[env] = batch.info(env)
        return self.observations(), rewards, dones, infos

    def _last_info(self, env: int) -> dict[str, Any]:
        batch = self._batch
        is_over, time_s = bool(batch.is_over[env]), float(batch.slots["time_s"][env])
        info = batch.info(env)
        info["terminal_observation"] = batch.observation(env)
        info["TimeLimit.truncated"] = not (is_over and batch.terminates(env))
        info["episode"] = {"r": float(self._returns[env]), "l": int(self._lengths[env]), "t": time_s}
        if is_over:
            info["scorecard"] = batch.scorecard(env)
        return info

    def action_masks(self) -> npt.NDArray[np.bool_]:
        """(num_envs, n) what may be chosen now."""
        valid: npt.NDArray[np.bool_] = self._batch.outlook.valid.copy()
        return valid

    def state(self) -> list[dict[str, Any]]:
        """All that is needed to go on from here later, one dictionary for each environment."""
        return [
            {
                "environment": self._batch.clone_state(env),
                "return": float(self._returns[env]),
                "length": int(self._lengths[env]),
                "cut_at_s": float(self._cut_at_s[env]),
            }
            for env in range(self.num_envs)
        ]

    def restore(self, states: Sequence[dict[str, Any]]) -> None:
        """Go on from a `state`."""
        for env, state in enumerate(states):
            self._batch.restore_state(env, state["environment"])
            self._returns[env], self._lengths[env] = state["return"], state["length"]
            self._cut_at_s[env] = state["cut_at_s"]

    def close(self) -> None:
        """Let go of the threads."""
        self._batch.close()

    def env_method(self, method_name: str, *args: Any, indices: VecEnvIndices = None, **kwargs: Any) -> list[Any]:
        """``action_masks`` of each environment, which is all that Stable-Baselines3 asks for."""
        if method_name != "action_masks":
            raise AttributeError(f"the environments have no method {method_name!r}; they are one batch")
        masks = self.action_masks()
        return [masks[env] for env in self._get_indices(indices)]

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """An attribute that all environments share, once for each."""
        value = getattr(self, attr_name)
        return [value for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Refused: the environments share their attributes."""
        raise AttributeError(f"{attr_name!r} cannot be set: the environments are one batch")

    def env_is_wrapped(
        self, wrapper_class: type[gymnasium.Wrapper[Any, Any, Any, Any]], indices: VecEnvIndices = None
    ) -> list[bool]:
        """False: there are no wrappers."""
        return [False for _ in self._get_indices(indices)]

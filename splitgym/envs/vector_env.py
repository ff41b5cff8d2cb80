"""ClusterVectorEnv: many clusters as one Gymnasium vector environment."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from splitgym.cards import Card
from splitgym.envs.batch import Batch, EnvState
from splitgym.envs.observations import Observation
from splitgym.envs.setting import Setting
from splitgym.errors import SplitgymError, did_you_mean
from splitgym.view import DECISION_KINDS

BoolArray = npt.NDArray[np.bool_]
FloatArray = npt.NDArray[np.float64]
_KINDS = np.array(DECISION_KINDS)
Returned = tuple[Observation, FloatArray, BoolArray, BoolArray, dict[str, Any]]


class ClusterVectorEnv(VectorEnv[Observation, Any, Any]):
    """`ClusterEnv`, ``num_envs`` times, in one call of compiled code for a step of all.

    What ``gymnasium.make_vec`` makes. Environment ``i`` goes through the same states as a `ClusterEnv` that is reset
    with ``seed + i`` and takes the same actions. Observations, rewards and masks are fresh arrays with the environments
    in front. **info** holds arrays over the environments: ``time_s``, ``dt_s``, ``decision_kind`` (names),
    ``invalid_actions`` and ``action_mask``, an array (num_envs, choices) or a tuple of one for each head; at ends of
    episodes ``scorecard``.

    Args:
        num_envs: how many.
        card: a shipped card's name, a card file's path, or a `Card`.
        autoreset_mode: ``NextStep``: the step after the last of an episode begins the next, its action is ignored;
            ``SameStep``: the last step of an episode begins the next and has ``final_obs`` and ``final_info``;
            ``Disabled``: whoever steps on must first call ``reset(options={"reset_mask": …})``.
        threads: for compiled code, each takes a share of the environments.
        render_mode: none is there; render a `ClusterEnv`.
        environment: further arguments of `ClusterEnv`. A policy object given as ``other`` is copied for each.

    Raises:
        SplitgymError: for any mistake in these, in one line.
    """

    def __init__(
        self,
        num_envs: int = 1,
        card: str | Path | Card | None = None,
        *,
        autoreset_mode: str | AutoresetMode = AutoresetMode.NEXT_STEP,
        threads: int = 1,
        render_mode: str | None = None,
        **environment: Any,
    ) -> None:
        if render_mode is not None:
            raise SplitgymError(f"render_mode: {render_mode!r} is for one environment; use gymnasium.make")
        self.setting = Setting.of(card, environment)
        self._batch = Batch(self.setting, num_envs, threads)
        self.num_envs = num_envs
        self.autoreset_mode = _mode(autoreset_mode)
        self.metadata = {"render_modes": [], "autoreset_mode": self.autoreset_mode}
        self.single_action_space = self.setting.actions.space
        self.single_observation_space = self.setting.observer.space
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.observation_space = batch_space(self.single_observation_space, num_envs)

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start episodes: everywhere, or where ``options["reset_mask"]`` (num_envs,) says.

        Args:
            seed: of the first environment, the others take the next ones; or one for each; ``None``: drawn.
            options: see `ClusterEnv.reset`.

        Raises:
            SplitgymError: if an option is unknown or a trace cannot be read, if seeds or mask do not fit.
        """
        options = dict(options or {})
        chosen = self._chosen(options.pop("reset_mask", None))
        seeds = [seed + env for env in range(self.num_envs)] if isinstance(seed, int | np.integer) else seed
        seeds = [None] * self.num_envs if seeds is None else list(seeds)
        if len(seeds) != self.num_envs:
            raise SplitgymError(f"seed: {len(seeds)} seeds for {self.num_envs} environments; give one for each")
        if isinstance(seed, int):
            super().reset(seed=seed)
        self._batch.reset(chosen, [seeds[env] for env in chosen], options)
        infos = self._infos()
        here = np.isin(np.arange(self.num_envs), chosen)
        infos.update({name: here.copy() for name in infos if name.startswith("_")})
        return self._batch.observations(), infos

    def step(self, actions: Any) -> Returned:
        """Take a decision in each environment and run to the learner's next.

        Raises:
            SplitgymError: if an action is not in the action space.
        """
        batch = self._batch
        choices = self.setting.actions.parse(actions, self.num_envs)
        going = batch.every
        if batch.has_begun and batch.some_over:  # NextStep: their next episode begins now
            going, ended = np.flatnonzero(~batch.is_over), np.flatnonzero(batch.is_over).tolist()
            if self.autoreset_mode == AutoresetMode.DISABLED:
                raise ResetNeeded(f"episodes {ended} are over: call reset(options={{'reset_mask': …}}) before step()")
            batch.reset(ended, [None] * len(ended))
        batch.step(going, choices)
        rewards: FloatArray = batch.slots["reward"].copy()
        terminated, truncated = np.zeros((2, self.num_envs), np.bool_)
        if batch.some_over:
            terminated = batch.is_over & ~batch.slots["ends_at_horizon"]
            truncated = batch.is_over & ~terminated
            infos = self._ends(np.flatnonzero(batch.is_over).tolist())
        else:
            infos = self._infos()
        return batch.observations(), rewards, terminated, truncated, infos

    def action_masks(self) -> BoolArray:
        """(num_envs, n) what is valid now, all heads one after another."""
        valid: BoolArray = self._batch.outlook.valid.copy()
        return valid

    def clone_state(self) -> tuple[EnvState, ...]:
        """Where the episodes stand, to come back to with `restore_state`, here or in an equal environment."""
        if not self._batch.has_begun:
            raise ResetNeeded("nothing to clone yet: call reset()")
        return tuple(self._batch.clone_state(env) for env in range(self.num_envs))

    def restore_state(self, states: Sequence[EnvState]) -> Observation:
        """Go back to a `clone_state`; see `ClusterEnv.restore_state`.

        Returns:
            the observations there.
        """
        if len(states) != self.num_envs:
            raise SplitgymError(f"restore_state: {len(states)} states for {self.num_envs} environments")
        for env, state in enumerate(states):
            self._batch.restore_state(env, state)
        return self._batch.observations()

    def close_extras(self, **kwargs: Any) -> None:
        """Let go of the threads."""
        self._batch.close()

    def _chosen(self, mask: object) -> list[int]:
        if mask is None:
            return list(range(self.num_envs))
        values = np.asarray(mask)
        if values.dtype != np.bool_ or values.shape != (self.num_envs,) or not values.any():
            raise SplitgymError(f"options: reset_mask is {mask!r}; give {self.num_envs} booleans, one of them true")
        return np.flatnonzero(values).tolist()

    def _infos(self) -> dict[str, Any]:
        slots, everywhere = self._batch.slots, np.ones(self.num_envs, np.bool_)
        masks = self._batch.masks()
        return {
            "time_s": slots["time_s"].copy(),
            "dt_s": slots["dt_s"].copy(),
            "invalid_actions": slots["invalid_actions"].copy(),
            "decision_kind": _KINDS[slots["decision_kind"]],
            "action_mask": masks[0] if len(masks) == 1 else masks,
            "_time_s": everywhere,
            "_dt_s": everywhere,
            "_invalid_actions": everywhere,
            "_decision_kind": everywhere,
            "_action_mask": everywhere,
        }

    def _ends(self, ended: list[int]) -> dict[str, Any]:
        """The infos of a step in which episodes ended; SameStep begins the next ones."""
        batch = self._batch
        if self.autoreset_mode == AutoresetMode.SAME_STEP:
            finals = [self._final(env) for env in ended]
            batch.reset(ended, [None] * len(ended))
        else:
            finals = [{"scorecard": batch.scorecard(env)} for env in ended]
        infos = self._infos()
        for env, final in zip(ended, finals, strict=True):
            infos = self._add_info(infos, final, env)
        return infos

    def _final(self, env: int) -> dict[str, Any]:
        batch = self._batch
        info = batch.info(env) | {"scorecard": batch.scorecard(env)}
        return {"final_obs": batch.observation(env), "final_info": info}


def _mode(mode: str | AutoresetMode) -> AutoresetMode:
    names = {name: choice for choice in AutoresetMode for name in (choice.name, choice.value)}
    if isinstance(mode, AutoresetMode):
        return mode
    if mode not in names:
        raise SplitgymError(
            f"autoreset_mode: unknown {mode!r}{did_you_mean(str(mode), [m.value for m in AutoresetMode])}"
        )
    return names[mode]

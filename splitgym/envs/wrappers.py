"""Wrappers: the mask in the observation, and observations as one flat array."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.wrappers import FlattenObservation

from splitgym.envs.observations import Observation


class MaskInObservation(gymnasium.ObservationWrapper[Observation, Any, Observation]):
    """Adds ``action_mask`` (sum of the heads' sizes,), 1 where an index is valid, to the observation.

    For learners that take masks from there. Do not give it to a policy that feeds every entry to its network.
    """

    def __init__(self, env: gymnasium.Env[Observation, Any]) -> None:
        super().__init__(env)
        space: Any = env.observation_space
        mask = spaces.Box(0.0, 1.0, (spaces.flatdim(env.action_space),), np.float32)
        self.observation_space: spaces.Space[Any] = spaces.Dict({**space.spaces, "action_mask": mask})

    def observation(self, observation: Observation) -> Observation:
        """The observation and its mask."""
        return {**observation, "action_mask": self.get_wrapper_attr("action_masks")().astype(np.float32)}


class FlatObservation(FlattenObservation[Any, Any]):
    """All observations one after another in one float32 array, names in alphabetical order, for plain networks."""

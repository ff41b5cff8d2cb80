"""Playing an environment to the end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from splitgym.envs import ClusterEnv
from splitgym.view import ClusterView

Act = Callable[[ClusterView], Any]


def play(
    env: ClusterEnv, act: Act, *, seed: int | None = None, options: dict[str, Any] | None = None
) -> dict[str, Any]:
    """One episode; the last info, with the rewards, ``terminated`` and ``truncated`` beside."""
    _, info = env.reset(seed=seed, options=options)
    rewards, ends, over = [], (False, False), False
    while not over:
        action = act(env.view)
        _, reward, *ends, info = env.step(action)
        rewards.append(reward)
        over = any(ends)
    return {**info, "rewards": rewards, "terminated": ends[0], "truncated": ends[1]}


def shortest(view: ClusterView) -> np.ndarray:
    """Least predicted TTFT, then fewest decodes."""
    prompts = np.where(view.prompt_mask, view["predicted_ttft_s"], np.inf)
    tokens = np.where(view.token_mask, view["decodes"] + view["coming_decodes"], np.inf)
    return np.array([prompts.argmin(), tokens.argmin()])


def sampler(seed: int, env: ClusterEnv, *, masked: bool = True) -> Act:
    """Uniform actions."""
    env.action_space.seed(seed)

    def act(view: ClusterView) -> Any:
        if not masked:
            return env.action_space.sample()
        masks = [mask.astype(np.int8) for mask in env.setting.actions.masks(view)]
        return env.action_space.sample(masks[0] if len(masks) == 1 else tuple(masks))

    return act

"""Checkpoints: everything a run needs to go on as if it had never stopped.

They are taken between two rollouts and hold the network, the optimiser, all random generators, the environments, and
what the callbacks remember. They are pickles: load only your own.
"""

from __future__ import annotations

import pickle
import random
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stable_baselines3 import DQN

from splitgym.errors import SplitgymError
from splitgym.learn.agents import Agent
from splitgym.learn.run_folder import write_whole
from splitgym.learn.vec_env import SchedulingVecEnv

_REPLAYED = ("observations", "next_observations", "actions", "rewards", "dones", "timeouts")


def save(path: Path, agent: Agent, environments: SchedulingVecEnv, callbacks: dict[str, Any]) -> None:
    """Write a checkpoint.

    Args:
        path: the file.
        agent: between two rollouts.
        environments: the agent's.
        callbacks: what they remember, by name.
    """
    state: dict[str, Any] = {
        "policy": agent.policy.state_dict(),
        "optimizer": agent.policy.optimizer.state_dict(),
        "num_timesteps": agent.num_timesteps,
        "updates": agent._n_updates,
        "episodes": agent._episode_num,
        "recent_episodes": list(agent.ep_info_buffer or ()),
        "episode_starts": np.array(agent._last_episode_starts),
        "environments": environments.state(),
        "generators": {
            "torch": torch.get_rng_state(),
            "numpy": np.random.get_state(),  # noqa: NPY002  (Stable-Baselines3 shuffles with it)
            "python": random.getstate(),
            "actions": agent.action_space.np_random.bit_generator.state,
        },
        "callbacks": callbacks,
    }
    if isinstance(agent, DQN):
        state["replay"] = _replay_of(agent)
    write_whole(path, lambda file: torch.save(state, file))


def restore(path: Path, agent: Agent, environments: SchedulingVecEnv) -> dict[str, Any]:
    """Put a fresh agent and its environments where a checkpoint was taken.

    Returns:
        what the callbacks remembered.

    Raises:
        SplitgymError: if there is no checkpoint, or it is damaged.
    """
    try:
        state = torch.load(path, weights_only=False)
    except FileNotFoundError:
        raise SplitgymError(
            f"{path}: missing, the run ended before its first checkpoint; delete it and start anew"
        ) from None
    except (OSError, EOFError, RuntimeError, pickle.UnpicklingError) as error:
        raise SplitgymError(
            f"{path}: damaged ({' '.join(str(error).split())}); delete the run and start anew"
        ) from None
    agent.policy.load_state_dict(state["policy"])
    agent.policy.optimizer.load_state_dict(state["optimizer"])
    environments.restore(state["environments"])
    agent.num_timesteps = state["num_timesteps"]
    agent._n_updates = state["updates"]
    agent._episode_num = state["episodes"]
    agent.ep_info_buffer = deque(state["recent_episodes"], maxlen=agent._stats_window_size)
    agent.ep_success_buffer = deque(maxlen=agent._stats_window_size)
    agent._last_obs = environments.observations()
    agent._last_episode_starts = state["episode_starts"]
    if isinstance(agent, DQN):
        _refill(agent, state["replay"])
    generators = state["generators"]
    agent.action_space.np_random.bit_generator.state = generators["actions"]
    torch.set_rng_state(generators["torch"])
    np.random.set_state(generators["numpy"])  # noqa: NPY002
    random.setstate(generators["python"])
    remembered: dict[str, Any] = state["callbacks"]
    return remembered


def _replay_of(agent: DQN) -> dict[str, Any]:
    buffer = agent.replay_buffer
    assert buffer is not None
    used = buffer.buffer_size if buffer.full else buffer.pos

    def cut(values: Any) -> Any:
        return {key: part[:used] for key, part in values.items()} if isinstance(values, dict) else values[:used]

    return {
        "calls": agent._n_calls,
        "exploration_rate": agent.exploration_rate,
        "pos": buffer.pos,
        "full": buffer.full,
        "arrays": {name: cut(getattr(buffer, name)) for name in _REPLAYED},
    }


def _refill(agent: DQN, state: dict[str, Any]) -> None:
    buffer = agent.replay_buffer
    assert buffer is not None
    agent._n_calls, agent.exploration_rate = state["calls"], state["exploration_rate"]
    buffer.pos, buffer.full = state["pos"], state["full"]
    for name, values in state["arrays"].items():
        target = getattr(buffer, name)
        pairs = [(target[key], values[key]) for key in values] if isinstance(values, dict) else [(target, values)]
        for whole, part in pairs:
            whole[: len(part)] = part

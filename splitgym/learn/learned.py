"""Trained policies: as a `Policy` that decides in any simulation, and as an agent of Stable-Baselines3."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np

from splitgym.envs.actions import Actions, make_actions
from splitgym.envs.observations import Observer
from splitgym.errors import SplitgymError
from splitgym.export.actions import choose
from splitgym.learn.inference import NumpyNetwork, Weights
from splitgym.learn.run_folder import RunConfig, RunFolder
from splitgym.policies import Policy, make_policy
from splitgym.policies.role_changes import decide_beside
from splitgym.randomness import Streams, hashed_uniform
from splitgym.sim.cluster import Cluster
from splitgym.view import ClusterView, Decision

if TYPE_CHECKING:
    import gymnasium

    from splitgym.envs import ClusterEnv
    from splitgym.learn.agents import Agent

DecisionMode = Literal["argmax", "sample"]
DECISION_MODES: tuple[DecisionMode, ...] = ("argmax", "sample")


def heads_of(kind: str, environment: dict[str, Any]) -> tuple[Literal["machine", "role", "plain"], ...]:
    """The kinds of the action space's heads, from what the environment was made with."""
    if kind == "joint":
        return ("machine", "machine", "role")
    if kind == "repurposing":
        return ("plain",) if environment.get("action") == "pool" else ("role",)
    return ("machine", "machine") if environment.get("heads", "both") == "both" else ("machine",)


class LearnedPolicy:
    """A trained network as a policy; what its kind leaves open, its run's other policy decides.

    It works on any number of machines if its network is ``equivariant``. Draws are hashes of the run's seed and the
    decision's number, so that equal runs decide alike.

    Args:
        name: as shown.
        config: of its run.
        weights: of its network.
        mode: the better-scored choice (``argmax``), or one drawn from the scores (``sample``).
    """

    def __init__(self, name: str, config: RunConfig, weights: Weights, mode: DecisionMode) -> None:
        self.name = name
        self._config = config
        self._mode = mode
        self._network = NumpyNetwork(config.network, weights, heads_of(config.kind, config.environment))
        self._other: Policy | None = None if config.other is None else make_policy(config.other)
        self._observer: Observer | None = None

    def reset(self, cluster: Cluster, seed: int) -> None:
        """Start a run.

        Raises:
            SplitgymError: if the network knows another number of machines only.
        """
        config, count = self._config, cluster.num_machines
        rows = count
        if config.network == "mlp":
            rows = config.num_machines
            padded = "max_machines" in config.environment and count <= rows
            if count != rows and not padded:
                raise SplitgymError(
                    f"policy {self.name!r}: its network 'mlp' was trained on {rows} machines, here are {count}; "
                    "train one with network 'equivariant'"
                )
        heads = config.environment.get("heads", "both")
        self._actions: Actions = make_actions(
            config.kind, cluster, rows, heads, config.environment.get("action", "machine")
        )
        self._observer = Observer(count, rows)
        self._key = Streams(seed).key("learned-policy")
        self._count = 0
        if self._other is not None:
            self._other.reset(cluster, seed)

    def decide(self, view: ClusterView) -> Decision:
        """The network's decision, or the other policy's."""
        return decide_beside(self._other, self._config.kind, view, self._choose)

    def _choose(self, view: ClusterView, suggested: Decision) -> Decision:
        assert self._observer is not None, "call reset() first"
        if not self._actions.decides[view.kind]:
            return suggested
        scores = self._network.scores(self._observer.observe(view))
        choice: list[int] = []
        start = 0
        for head, mask in enumerate(self._actions.masks(view)):
            uniform = None if self._mode == "argmax" else hashed_uniform(self._key, head, self._count)
            choice.append(choose(scores[start : start + len(mask)], mask, uniform))
            start += len(mask)
        self._count += 1
        return self._actions.decision(np.array(choice), view, suggested)


def load_policy(run_dir: str | Path, decision: DecisionMode | None = None) -> LearnedPolicy:
    """The policy of a trained run, ready for `splitgym.sim.run.run` and `splitgym.learn.compare`. Needs no torch.

    Args:
        run_dir: the run's folder.
        decision: ``argmax`` or ``sample``, in place of what was chosen on validation seeds and stored with the run.

    Raises:
        SplitgymError: if the folder is not that of a run, or damaged.
    """
    folder = RunFolder(Path(run_dir))
    config = folder.config()
    mode = decision or config.decision
    if mode not in DECISION_MODES:
        raise SplitgymError(f"{folder.path}: decision {mode!r}; one of: {', '.join(DECISION_MODES)}")
    return LearnedPolicy(folder.path.resolve().name, config, folder.weights(), mode)


def load(run_dir: str | Path, environment: gymnasium.Env[Any, Any]) -> Agent:
    """The agent of a trained run, built for ``environment``, which may have another number of machines.

    Its ``predict(observation, deterministic=…, action_masks=…)`` works, and so does training it further.

    Raises:
        SplitgymError: if the folder is not that of a run, or its network does not fit.
    """
    import torch

    from splitgym.learn.agents import default_settings, make_agent, network_of
    from splitgym.learn.network import Shape
    from splitgym.learn.vec_env import SchedulingVecEnv

    folder = RunFolder(Path(run_dir))
    config = folder.config()
    heads = heads_of(config.kind, config.environment)
    plain = getattr(environment.action_space, "n", 0) if heads == ("plain",) else 0
    settings = dataclasses.replace(default_settings(config.algorithm), **config.settings)  # type: ignore[arg-type]
    agent = make_agent(
        config.algorithm,  # type: ignore[arg-type]
        SchedulingVecEnv(1, cast("ClusterEnv", environment.unwrapped).setting),
        network=config.network,
        shape=Shape.of(environment.observation_space, heads, int(plain)),
        settings=settings,
        seed=config.seed,
    )
    weights = {name: torch.from_numpy(values) for name, values in folder.weights().items()}
    try:
        network_of(agent).load_state_dict(weights)
    except RuntimeError:
        raise SplitgymError(
            f"{folder.path}: its network {config.network!r} was trained on {config.num_machines} machines and heads "
            f"{'+'.join(heads)}; it does not fit {environment.action_space}"
        ) from None
    return agent

"""The learning algorithms of Stable-Baselines3 and sb3-contrib, fitted with the project's networks and settings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from gymnasium import spaces
from sb3_contrib import MaskablePPO
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.dqn.policies import DQNPolicy, QNetwork
from torch import Tensor, nn

from splitgym.learn.network import Observation, SchedulingNet, Shape, make_network

Algorithm = Literal["maskable-ppo", "ppo", "dqn"]
ALGORITHMS: tuple[Algorithm, ...] = ("maskable-ppo", "ppo", "dqn")
Agent = MaskablePPO | PPO | DQN


@dataclass(frozen=True)
class PpoSettings:
    """Settings of PPO and MaskablePPO. The rate falls with the decisions taken, whatever their planned number.

    Attributes:
        num_steps: decisions of each environment between two updates.
        minibatch: decisions in a gradient step.
        epochs: passes over the decisions of an update.
        learning_rate: of Adam, at the start.
        halving_steps: decisions after which the learning rate is half of that.
        discount: γ, per decision.
        gae_lambda: λ of generalised advantage estimation.
        clip_range: of the probability ratio.
        entropy_weight: in the loss.
        value_weight: in the loss.
        max_grad_norm: gradients are clipped to this norm. It is that of actor and critic together, so that a critic
            far off at the start would hold the actor still; Adam needs no clipping.
    """

    num_steps: int = 128
    minibatch: int = 256
    epochs: int = 10
    learning_rate: float = 1e-3
    halving_steps: int = 65_536
    discount: float = 0.995
    gae_lambda: float = 0.95
    clip_range: float = 0.2
    entropy_weight: float = 0.0
    value_weight: float = 0.5
    max_grad_norm: float = float("inf")


@dataclass(frozen=True)
class DqnSettings:
    """Settings of DQN.

    Attributes:
        num_steps: decisions of each environment between two rounds of updates.
        gradient_steps: in a round.
        minibatch: decisions in a gradient step.
        buffer_size: decisions remembered.
        learning_starts: decisions taken at random before the first update.
        learning_rate: of Adam, at the start.
        halving_steps: decisions after which the learning rate is half of that.
        discount: γ, per decision.
        target_interval: decisions between two copies to the target network.
        exploration_steps: decisions over which exploration falls from 1 to ``exploration_end``.
        exploration_end: share of random decisions from then on.
    """

    num_steps: int = 4
    gradient_steps: int = 8
    minibatch: int = 256
    buffer_size: int = 50_000
    learning_starts: int = 2_000
    learning_rate: float = 1e-3
    halving_steps: int = 65_536
    discount: float = 0.995
    target_interval: int = 2_000
    exploration_steps: int = 30_000
    exploration_end: float = 0.05


Settings = PpoSettings | DqnSettings


class _AsItIs(BaseFeaturesExtractor):
    """Hands the observation through: the network itself knows its parts."""

    def __init__(self, observation_space: spaces.Space[Any]) -> None:
        super().__init__(observation_space, features_dim=1)

    def forward(self, observations: Observation) -> Observation:
        return observations


class _ActorCritic(nn.Module):
    """A network in the place of Stable-Baselines3's two perceptrons: what it calls latent are logits and value."""

    def __init__(self, network: SchedulingNet) -> None:
        super().__init__()
        self.network = network
        self.latent_dim_pi = self.latent_dim_vf = 1  # of layers that are replaced by identities

    def forward(self, observation: Observation) -> tuple[Tensor, Tensor]:
        scores: tuple[Tensor, Tensor] = self.network(observation)
        return scores

    def forward_actor(self, observation: Observation) -> Tensor:
        return self.network.scores(observation)

    def forward_critic(self, observation: Observation) -> Tensor:
        return self.network.value(observation)


class _OwnNetwork:
    """Puts the project's network into an actor-critic policy; mixed in before the policy's class."""

    def __init__(self, *args: Any, network: str, shape: Shape, **kwargs: Any) -> None:
        self._network = (network, shape)
        super().__init__(*args, features_extractor_class=_AsItIs, ortho_init=False, **kwargs)  # type: ignore[call-arg]

    def _build_mlp_extractor(self) -> None:
        self.mlp_extractor = _ActorCritic(make_network(*self._network))

    def _build(self, lr_schedule: Callable[[float], float]) -> None:
        super()._build(lr_schedule)  # type: ignore[misc]
        self.action_net = nn.Identity()
        self.value_net = nn.Identity()
        policy = cast(ActorCriticPolicy, self)
        policy.optimizer = policy.optimizer_class(
            policy.parameters(),
            lr=lr_schedule(1),
            **policy.optimizer_kwargs,  # type: ignore[call-arg]
        )


class MaskablePolicy(_OwnNetwork, MaskableActorCriticPolicy):  # type: ignore[misc]
    """The policy of MaskablePPO."""


class PlainPolicy(_OwnNetwork, ActorCriticPolicy):  # type: ignore[misc]
    """The policy of PPO, which sees no masks."""


class _Scores(nn.Module):
    def __init__(self, network: SchedulingNet) -> None:
        super().__init__()
        self.network = network

    def forward(self, observation: Observation) -> Tensor:
        return self.network.scores(observation)


class QPolicy(DQNPolicy):
    """The policy of DQN: the network's scores are Q-values."""

    def __init__(self, *args: Any, network: str, shape: Shape, **kwargs: Any) -> None:
        self._network = (network, shape)
        super().__init__(*args, **(kwargs | {"features_extractor_class": _AsItIs}))

    def make_q_net(self) -> QNetwork:
        """A fresh Q-network."""
        arguments = self._update_features_extractor(self.net_args, features_extractor=None)
        q_network = QNetwork(**arguments)
        q_network.q_net = _Scores(make_network(*self._network))  # type: ignore[assignment]
        return q_network.to(self.device)


def default_settings(algorithm: Algorithm) -> Settings:
    """What an algorithm is run with unless told otherwise."""
    return DqnSettings() if algorithm == "dqn" else PpoSettings()


def make_agent(
    algorithm: Algorithm,
    environment: VecEnv,
    *,
    network: str,
    shape: Shape,
    settings: Settings,
    seed: int,
    buffer: type[RolloutBuffer] | None = None,
    buffer_settings: dict[str, Any] | None = None,
) -> Agent:
    """A fresh agent on the CPU, its network initialised from ``seed``."""
    common: dict[str, Any] = {
        "env": environment,
        "learning_rate": settings.learning_rate,
        "gamma": settings.discount,
        "batch_size": settings.minibatch,
        "policy_kwargs": {"network": network, "shape": shape},
        "seed": seed,
        "device": "cpu",
    }
    agent: Agent
    if isinstance(settings, DqnSettings):
        agent = DQN(
            QPolicy,
            buffer_size=settings.buffer_size,
            learning_starts=settings.learning_starts,
            train_freq=(settings.num_steps, "step"),
            gradient_steps=settings.gradient_steps,
            target_update_interval=settings.target_interval,
            **common,
        )
        # By decisions taken, not by their share of the planned number: a run can be prolonged.
        agent.exploration_schedule = lambda _: max(
            1.0 - (1.0 - settings.exploration_end) * agent.num_timesteps / settings.exploration_steps,
            settings.exploration_end,
        )
    else:
        common["policy"] = MaskablePolicy if algorithm == "maskable-ppo" else PlainPolicy
        maker = MaskablePPO if algorithm == "maskable-ppo" else PPO
        agent = maker(
            n_steps=settings.num_steps,
            n_epochs=settings.epochs,
            gae_lambda=settings.gae_lambda,
            clip_range=settings.clip_range,
            ent_coef=settings.entropy_weight,
            vf_coef=settings.value_weight,
            max_grad_norm=settings.max_grad_norm,
            rollout_buffer_class=buffer,
            rollout_buffer_kwargs=buffer_settings,
            **common,
        )
    agent.lr_schedule = lambda _: settings.learning_rate * 0.5 ** (agent.num_timesteps / settings.halving_steps)
    return agent


def network_of(agent: Agent) -> SchedulingNet:
    """The agent's network."""
    policy = agent.policy
    holder: Any = policy.q_net.q_net if isinstance(policy, QPolicy) else policy.mlp_extractor
    return cast(SchedulingNet, holder.network)


def use_threads(count: int) -> None:
    """Give torch ``count`` threads: left to itself it takes every core, and results then depend on the machine."""
    torch.set_num_threads(count)

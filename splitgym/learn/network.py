"""The networks: one that treats all machines alike, and a plain multilayer perceptron to compare it with.

Both turn a dictionary of observations into one score (logit, or Q-value) for each entry of the action space, heads one
after the other, and into one value.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from gymnasium import spaces
from torch import Tensor, nn

NetworkName = Literal["equivariant", "mlp"]
NETWORKS: tuple[NetworkName, ...] = ("equivariant", "mlp")

HeadKind = Literal["machine", "role", "plain"]
"""What a head scores: each machine; no change, then each (machine, role); or choices that are no machines."""

CONTEXT_KEYS = ("request", "cluster", "decision_kind")

_FINAL_GAIN = 0.01  # of the last layer's weights: an untrained policy is near uniform
_HIDDEN_GAIN = 2.0**0.5

Observation = dict[str, Tensor]


@dataclass(frozen=True)
class Shape:
    """What a network must know of its environment.

    Attributes:
        machine_features: columns of ``machines``.
        context_features: numbers in ``request``, ``cluster`` and ``decision_kind`` together.
        num_machines: rows of ``machines``; only the ``mlp`` depends on it.
        heads: the kind of each head of the action space.
        plain_size: the size of a ``plain`` head.
    """

    machine_features: int
    context_features: int
    num_machines: int
    heads: tuple[HeadKind, ...]
    plain_size: int = 0

    @classmethod
    def of(cls, observation_space: spaces.Space[object], heads: Sequence[HeadKind], plain_size: int = 0) -> Shape:
        """Read off a dictionary space with ``machines`` (M, F), ``request``, ``cluster`` and ``decision_kind``."""
        if not isinstance(observation_space, spaces.Dict):
            raise TypeError(f"the observation space must be a Dict, not {observation_space}")
        lengths = {key: space.shape for key, space in observation_space.spaces.items()}
        machines = lengths["machines"]
        assert machines is not None
        context = sum((lengths[key] or (0,))[0] for key in CONTEXT_KEYS)
        return cls(machines[1], context, machines[0], tuple(heads), plain_size)

    def head_size(self, head: HeadKind) -> int:
        """Choices of a head."""
        return {"machine": self.num_machines, "role": 1 + 3 * self.num_machines, "plain": self.plain_size}[head]

    @property
    def num_scores(self) -> int:
        """Choices of all heads together."""
        return sum(self.head_size(head) for head in self.heads)


def context_of(observation: Observation) -> Tensor:
    """(batch, context_features): what does not belong to one machine."""
    return torch.cat([observation[key] for key in CONTEXT_KEYS], dim=-1)


class Inputs(NamedTuple):
    """What actor and critic both begin with, computed once for the two."""

    machines: Tensor  # (batch, M, machine_features)
    present: Tensor  # (batch, M, 1)
    context: Tensor  # (batch, context_features)
    surroundings: Tensor  # (batch, 2 * machine_features + context_features)

    @classmethod
    def of(cls, observation: Observation) -> Inputs:
        """The parts of an observation, its machines pooled."""
        machines, present = observation["machines"], observation["present"].unsqueeze(-1)
        context = context_of(observation)
        return cls(machines, present, context, torch.cat([*_pool(machines, present), context], dim=-1))


class Trunk(nn.Module):
    """Encodes each machine with shared weights, then pools the present ones: (hidden (B, M, W), pooled (B, P)).

    What a machine is compared with enters first: each input column's mean and largest value over the present machines.
    """

    def __init__(self, shape: Shape, width: int) -> None:
        super().__init__()
        self.own = nn.Linear(shape.machine_features, width)
        self.shared = nn.Linear(2 * shape.machine_features + shape.context_features, width)
        self.hidden = nn.Linear(width, width)
        self.pooled_size = 2 * width + shape.context_features

    def forward(self, inputs: Inputs) -> tuple[Tensor, Tensor]:
        """(batch, M, width) each machine's, (batch, pooled_size) all machines' and the context."""
        hidden = torch.relu_(self.own(inputs.machines) + self.shared(inputs.surroundings).unsqueeze(1))
        hidden = torch.relu(self.hidden(hidden))
        return hidden, torch.cat([*_pool(hidden, inputs.present), inputs.context], dim=-1)


def _pool(values: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and largest over the present machines of (B, M, W) values ≥ 0."""
    if not present.all():
        values = values * present
    total, largest = _SumAndLargest.apply(values)  # type: ignore[no-untyped-call]
    return total / present.sum(dim=1).clamp(min=1.0), largest


class _SumAndLargest(torch.autograd.Function):
    """Over the machines. The gradient is torch's own to the last bit, in fewer passes through memory."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> tuple[Tensor, Tensor]:
        largest = values.amax(dim=1)
        ctx.save_for_backward(values, largest)
        return values.sum(dim=1), largest

    @staticmethod
    def backward(ctx: Any, of_sum: Tensor, of_largest: Tensor) -> Tensor:
        values, largest = ctx.saved_tensors
        ties = torch.sub(values, largest.unsqueeze(1)).sign_().add_(1.0)  # 1 where largest, else 0; bool is slower
        of_each = (of_largest / ties.sum(dim=1)).unsqueeze(1)
        return ties.mul_(of_each).add_(of_sum.unsqueeze(1))


class EquivariantNet(nn.Module):
    """Shared weights score each machine from its features, the request, the cluster and the pooled machines.

    Its parameters do not depend on the number of machines. A permutation of the machines permutes the scores.
    """

    def __init__(self, shape: Shape, width: int = 64) -> None:
        super().__init__()
        self.shape = shape
        self.actor = Trunk(shape, width)
        self.actor_own = nn.Linear(width, width)
        self.actor_pooled = nn.Linear(self.actor.pooled_size, width)
        per_machine = sum({"machine": 1, "role": 3, "plain": 0}[head] for head in shape.heads)
        shared = sum({"machine": 0, "role": 1, "plain": shape.plain_size}[head] for head in shape.heads)
        self.machine_scores = nn.Linear(width, per_machine) if per_machine else None
        self.shared_scores = nn.Linear(width, shared) if shared else None
        self.critic = Trunk(shape, width)
        self.critic_pooled = nn.Linear(self.critic.pooled_size, width)
        self.critic_value = nn.Linear(width, 1)
        initialise(self, final=(self.machine_scores, self.shared_scores))

    def forward(self, observation: Observation) -> tuple[Tensor, Tensor]:
        """(batch, num_scores), (batch, 1)."""
        inputs = Inputs.of(observation)
        return self._scores(inputs), self._value(inputs)

    def scores(self, observation: Observation) -> Tensor:
        """(batch, num_scores)."""
        return self._scores(Inputs.of(observation))

    def value(self, observation: Observation) -> Tensor:
        """(batch, 1)."""
        return self._value(Inputs.of(observation))

    def _scores(self, inputs: Inputs) -> Tensor:
        hidden, pooled = self.actor(inputs)
        shared = self.actor_pooled(pooled)
        own = torch.relu_(self.actor_own(hidden) + shared.unsqueeze(1))
        own = own if self.machine_scores is None else self.machine_scores(own)  # (B, M, per_machine)
        common = shared if self.shared_scores is None else self.shared_scores(torch.relu(shared))
        parts: list[Tensor] = []
        column = place = 0
        for head in self.shape.heads:
            if head == "machine":
                parts.append(own[:, :, column])
                column += 1
            elif head == "role":
                parts += [common[:, place : place + 1], own[:, :, column : column + 3].flatten(1)]
                column, place = column + 3, place + 1
            else:
                parts.append(common[:, place : place + self.shape.plain_size])
                place += self.shape.plain_size
        return torch.cat(parts, dim=1)

    def _value(self, inputs: Inputs) -> Tensor:
        _, pooled = self.critic(inputs)
        value: Tensor = self.critic_value(torch.relu(self.critic_pooled(pooled)))
        return value


class MlpNet(nn.Module):
    """A plain perceptron on all numbers of the observation in a row. It knows one number of machines only."""

    def __init__(self, shape: Shape, width: int = 64) -> None:
        super().__init__()
        self.shape = shape
        inputs = shape.num_machines * (shape.machine_features + 1) + shape.context_features
        self.actor = nn.Sequential(
            nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, shape.num_scores)
        )
        self.critic = nn.Sequential(
            nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1)
        )
        initialise(self, final=(self.actor[-1],))

    def forward(self, observation: Observation) -> tuple[Tensor, Tensor]:
        """(batch, num_scores), (batch, 1)."""
        row = _row(observation)
        return self.actor(row), self.critic(row)

    def scores(self, observation: Observation) -> Tensor:
        """(batch, num_scores)."""
        scores: Tensor = self.actor(_row(observation))
        return scores

    def value(self, observation: Observation) -> Tensor:
        """(batch, 1)."""
        value: Tensor = self.critic(_row(observation))
        return value


def _row(observation: Observation) -> Tensor:
    return torch.cat([observation["machines"].flatten(1), observation["present"], context_of(observation)], dim=-1)


SchedulingNet = EquivariantNet | MlpNet


def make_network(name: str, shape: Shape) -> SchedulingNet:
    """A fresh network of the kind ``equivariant`` or ``mlp``."""
    return EquivariantNet(shape) if name == "equivariant" else MlpNet(shape)


def initialise(network: nn.Module, final: Sequence[nn.Module | None]) -> None:
    """Orthogonal weights, zero biases, and small weights in the ``final`` layers."""
    for module in network.modules():
        if isinstance(module, nn.Linear):
            nn.init.orthogonal_(module.weight, _FINAL_GAIN if module in final else _HIDDEN_GAIN)
            nn.init.zeros_(module.bias)

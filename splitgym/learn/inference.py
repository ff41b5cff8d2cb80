"""The networks' scores in plain NumPy: for one decision at a time this is many times quicker than torch.

It needs the weights alone, no torch. `splitgym.learn.network` says what the numbers mean; a test holds both equal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]
Weights = Mapping[str, FloatArray]

CONTEXT_KEYS = ("request", "cluster", "decision_kind")


class NumpyNetwork:
    """Scores of one observation.

    Args:
        name: ``equivariant`` or ``mlp``.
        weights: by parameter name, as `torch.nn.Module.state_dict` names them.
        heads: the kind of each head: ``machine``, ``role`` or ``plain``.
    """

    def __init__(self, name: str, weights: Weights, heads: Sequence[str]) -> None:
        self._weights = {key: np.ascontiguousarray(value.T) for key, value in weights.items()}
        self._heads = tuple(heads)
        self._score = self._equivariant if name == "equivariant" else self._mlp

    def scores(self, observation: Mapping[str, FloatArray]) -> FloatArray:
        """(num_scores,) for an observation without a batch dimension."""
        context = np.concatenate([observation[key] for key in CONTEXT_KEYS])
        return self._score(observation["machines"], observation["present"], context)

    def _linear(self, name: str, inputs: FloatArray) -> FloatArray:
        return inputs @ self._weights[name + ".weight"] + self._weights[name + ".bias"]

    def _equivariant(self, machines: FloatArray, present: FloatArray, context: FloatArray) -> FloatArray:
        mask = present[:, None]
        count = max(float(present.sum()), 1.0)
        seen = machines * mask
        surroundings = np.concatenate([seen.sum(axis=0) / np.float32(count), seen.max(axis=0), context])
        hidden = _relu(self._linear("actor.own", machines) + self._linear("actor.shared", surroundings))
        hidden = _relu(self._linear("actor.hidden", hidden))
        seen = hidden * mask
        pooled = np.concatenate([seen.sum(axis=0) / np.float32(count), seen.max(axis=0), context])
        shared = self._linear("actor_pooled", pooled)
        own = _relu(self._linear("actor_own", hidden) + shared)
        if "machine_scores.weight" in self._weights:
            own = self._linear("machine_scores", own)
        common = _relu(shared)
        if "shared_scores.weight" in self._weights:
            common = self._linear("shared_scores", common)
        parts: list[FloatArray] = []
        column = place = 0
        for head in self._heads:
            if head == "machine":
                parts.append(own[:, column])
                column += 1
            elif head == "role":
                parts += [common[place : place + 1], own[:, column : column + 3].ravel()]
                column, place = column + 3, place + 1
            else:
                parts.append(common[place:])
        return np.concatenate(parts)

    def _mlp(self, machines: FloatArray, present: FloatArray, context: FloatArray) -> FloatArray:
        row = np.concatenate([machines.ravel(), present, context])
        return self._linear("actor.4", _relu(self._linear("actor.2", _relu(self._linear("actor.0", row)))))


def _relu(values: FloatArray) -> FloatArray:
    return np.maximum(values, np.float32(0))

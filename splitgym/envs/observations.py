"""Observations: a view's numbers on fixed scales, as arrays in [0, 1]."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from splitgym.features import (
    CLUSTER_FEATURES,
    MACHINE_FEATURES,
    NUM_CLUSTER_FEATURES,
    NUM_MACHINE_FEATURES,
    NUM_REQUEST_FEATURES,
    REQUEST_FEATURES,
    Feature,
)
from splitgym.view import DECISION_KINDS, ClusterView

Float32Array = npt.NDArray[np.float32]
FloatArray = npt.NDArray[np.float64]
Observation = dict[str, Float32Array]


class Observer:
    """Turns views into observations, by the formula of `splitgym.features.Feature`.

    An observation has ``machines`` (max_machines, NUM_MACHINE_FEATURES), ``present`` (max_machines,), 0 where a row
    is padding, ``request`` (NUM_REQUEST_FEATURES,), ``cluster`` (NUM_CLUSTER_FEATURES,) and ``decision_kind`` (3,),
    one-hot in the order of `splitgym.view.DECISION_KINDS`. All are float32 in [0, 1] and fresh each time.

    Args:
        num_machines: machines there are.
        max_machines: rows of ``machines``.
    """

    def __init__(self, num_machines: int, max_machines: int) -> None:
        self._num_machines = num_machines
        self._present: Float32Array = np.zeros(max_machines, np.float32)
        self._present[:num_machines] = 1.0
        self._kinds: Float32Array = np.eye(len(DECISION_KINDS), dtype=np.float32)
        self._machine_scales = _scales(MACHINE_FEATURES)
        self._request_scales = _scales(REQUEST_FEATURES)
        self._cluster_scales = _scales(CLUSTER_FEATURES)
        self._shape = (max_machines, NUM_MACHINE_FEATURES)
        shapes: dict[str, tuple[int, ...]] = {
            "machines": self._shape,
            "present": (max_machines,),
            "request": (NUM_REQUEST_FEATURES,),
            "cluster": (NUM_CLUSTER_FEATURES,),
            "decision_kind": (len(DECISION_KINDS),),
        }
        boxes: dict[str, spaces.Space[Any]] = {
            name: spaces.Box(0.0, 1.0, shape, np.float32) for name, shape in shapes.items()
        }
        self.space: spaces.Space[Any] = spaces.Dict(boxes)

    def observe(self, view: ClusterView) -> Observation:
        """The observation of ``view``."""
        machines: Float32Array = np.zeros(self._shape, np.float32)
        _squash(view.machines, self._machine_scales, machines[: self._num_machines])
        request: Float32Array = np.empty(NUM_REQUEST_FEATURES, np.float32)
        cluster: Float32Array = np.empty(NUM_CLUSTER_FEATURES, np.float32)
        return {
            "machines": machines,
            "present": self._present.copy(),
            "request": _squash(view.request, self._request_scales, request),
            "cluster": _squash(view.cluster, self._cluster_scales, cluster),
            "decision_kind": self._kinds[view.kind].copy(),
        }


def _scales(features: tuple[Feature, ...]) -> tuple[FloatArray, FloatArray]:
    """Scales, and 1 where a feature is not bounded by its scale; each (num_features,)."""
    scale = np.array([feature.scale for feature in features])
    return scale, np.array([not feature.bounded for feature in features], np.float64)


def _squash(values: FloatArray, scales: tuple[FloatArray, FloatArray], out: Float32Array) -> Float32Array:
    scale, unbounded = scales
    positive = np.maximum(values, 0.0)  # sums of predicted lengths may end a rounding below 0
    return np.divide(positive, positive * unbounded + scale, out=out, casting="same_kind")

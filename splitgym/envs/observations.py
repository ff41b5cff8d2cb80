"""Observations: a view's numbers on fixed scales, as arrays in [0, 1]."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from splitgym.features import (
    CLUSTER_FEATURES,
    MACHINE_COLUMN,
    MACHINE_FEATURES,
    NUM_CLUSTER_FEATURES,
    NUM_MACHINE_FEATURES,
    NUM_REQUEST_FEATURES,
    REQUEST_FEATURES,
    TIME_FEATURES,
    Feature,
)
from splitgym.jit import inner_njit, lean_njit, vector_njit
from splitgym.view import DECISION_KINDS, ClusterView

Float32Array = npt.NDArray[np.float32]
FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
Observation = dict[str, Float32Array]


class Scales(NamedTuple):
    """What compiled functions must know of `splitgym.features`, group by group.

    A row of scales, then a row with 1 where a feature is not bounded by its scale.
    """

    machines: FloatArray  # (2, NUM_MACHINE_FEATURES)
    request: FloatArray  # (2, NUM_REQUEST_FEATURES)
    cluster: FloatArray  # (2, NUM_CLUSTER_FEATURES)


def _scales(features: tuple[Feature, ...]) -> FloatArray:
    return np.array([[feature.scale for feature in features], [not feature.bounded for feature in features]], float)


WORK = slice(MACHINE_COLUMN["pending_prompts"], MACHINE_COLUMN["kv_held_tokens"] + 1)
"""Columns of ``machines`` that change when something happens to a machine, and one of the `TIMES` among them."""

TIMES = tuple(MACHINE_COLUMN[name] for name in TIME_FEATURES)
"""Columns of ``machines`` that change with time and request."""

AGE = MACHINE_COLUMN["report_age_s"]
"""The column that changes with time where reports are stale, and is 0 else."""

SCALES = Scales(_scales(MACHINE_FEATURES), _scales(REQUEST_FEATURES), _scales(CLUSTER_FEATURES))


class Arrays(NamedTuple):
    """The observations of several environments."""

    machines: Float32Array  # (num_envs, max_machines, NUM_MACHINE_FEATURES)
    present: Float32Array  # (num_envs, max_machines)
    request: Float32Array  # (num_envs, NUM_REQUEST_FEATURES)
    cluster: Float32Array  # (num_envs, NUM_CLUSTER_FEATURES)
    decision_kind: Float32Array  # (num_envs, 3)


class Observer:
    """Turns views into observations, by the formula of `splitgym.features.Feature`.

    An observation has ``machines`` (max_machines, NUM_MACHINE_FEATURES), ``present`` (max_machines,), 0 where a row
    is padding, ``request`` (NUM_REQUEST_FEATURES,), ``cluster`` (NUM_CLUSTER_FEATURES,) and ``decision_kind`` (3,),
    one-hot in the order of `splitgym.view.DECISION_KINDS`. All are float32 in [0, 1].

    Args:
        num_machines: machines there are.
        max_machines: rows of ``machines``.
    """

    def __init__(self, num_machines: int, max_machines: int) -> None:
        self._num_machines = num_machines
        self._shapes: dict[str, tuple[int, ...]] = {
            "machines": (max_machines, NUM_MACHINE_FEATURES),
            "present": (max_machines,),
            "request": (NUM_REQUEST_FEATURES,),
            "cluster": (NUM_CLUSTER_FEATURES,),
            "decision_kind": (len(DECISION_KINDS),),
        }
        boxes: dict[str, spaces.Space[Any]] = {
            name: spaces.Box(0.0, 1.0, shape, np.float32) for name, shape in self._shapes.items()
        }
        self.space: spaces.Space[Any] = spaces.Dict(boxes)

    def blank(self, num_envs: int) -> Arrays:
        """Room for the observations of ``num_envs`` environments."""
        blank = Arrays(**{name: np.zeros((num_envs, *shape), np.float32) for name, shape in self._shapes.items()})
        blank.present[:, : self._num_machines] = 1.0
        return blank

    def observe(self, view: ClusterView) -> Observation:
        """The observation of ``view``, in fresh arrays."""
        arrays = self.blank(1)
        observe(view.kind, view.machines, view.request, view.cluster, SCALES, arrays, 0)
        return {name: values[0] for name, values in arrays._asdict().items()}


@lean_njit
def observe(
    kind: int,
    machines: FloatArray,
    request: FloatArray,
    cluster: FloatArray,
    scales: Scales,
    arrays: Arrays,
    env: int,
) -> None:
    """Write the observation of a view as that of environment ``env``."""
    for m in range(len(machines)):
        squash(machines[m], scales.machines, arrays.machines[env, m])
    observe_rest(kind, request, cluster, scales, arrays, env)


@inner_njit
def observe_changes(
    kind: int,
    machines: FloatArray,
    times: FloatArray,
    scaled: FloatArray,
    request: FloatArray,
    cluster: FloatArray,
    changed: IntArray,
    is_stale: bool,
    scales: Scales,
    arrays: Arrays,
    env: int,
) -> None:
    """`observe`, where no role has changed since the last look, and of the work only that of machines ``changed``.

    The `TIMES` are taken from ``times`` (5, num_machines) instead of the view; ``scaled`` is as large, to work in.
    """
    for i in range(len(changed)):
        m = changed[i]
        squash(machines[m, WORK], scales.machines[:, WORK], arrays.machines[env, m, WORK])
    for i in range(len(TIMES)):
        squash_column(times[i], scales.machines[0, TIMES[i]], scales.machines[1, TIMES[i]], scaled[i])
    for m in range(len(machines)):
        for i in range(len(TIMES)):
            arrays.machines[env, m, TIMES[i]] = scaled[i, m]
    if is_stale:
        for m in range(len(machines)):
            arrays.machines[env, m, AGE] = squashed(machines[m, AGE], scales.machines[0, AGE], scales.machines[1, AGE])
    observe_rest(kind, request, cluster, scales, arrays, env)


@inner_njit
def observe_rest(kind: int, request: FloatArray, cluster: FloatArray, scales: Scales, arrays: Arrays, env: int) -> None:
    """Write what is not about one machine."""
    squash(request, scales.request, arrays.request[env])
    squash(cluster, scales.cluster, arrays.cluster[env])
    for other in range(3):
        arrays.decision_kind[env, other] = 1.0 if other == kind else 0.0


@vector_njit
def squash(values: FloatArray, scales: FloatArray, out: Float32Array) -> None:
    """Write ``values`` (n,) on their scales."""
    for k in range(len(values)):
        out[k] = squashed(values[k], scales[0, k], scales[1, k])


@vector_njit
def squash_column(values: FloatArray, scale: float, unbounded: float, out: FloatArray) -> None:
    """Write ``values`` (n,) of one feature on its scale, side by side: that is what makes it fast."""
    for m in range(len(values)):
        out[m] = squashed(values[m], scale, unbounded)


@vector_njit
def squashed(value: float, scale: float, unbounded: float) -> float:
    """A value on its scale: value/scale, or value/(value + scale) where ``unbounded`` is 1."""
    value = max(value, 0.0)  # sums of predicted lengths may end a rounding below 0
    return value / (value * unbounded + scale)

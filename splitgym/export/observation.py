"""A view as the networks see it, in NumPy: what `splitgym.envs.observations` compiles, equal to the last bit."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import numpy.typing as npt

from splitgym.features import CLUSTER_FEATURES, MACHINE_FEATURES, REQUEST_FEATURES, Feature
from splitgym.view import DECISION_KINDS, ClusterView

Float32Array = npt.NDArray[np.float32]
FloatArray = npt.NDArray[np.float64]

INPUTS = ("machines", "present", "request", "cluster", "decision_kind")
"""What a network is given, in this order; a row of ``machines`` is padding where ``present`` is 0."""

FORMULA = "x = max(value, 0); x / scale where bounded, else x / (x + scale); as float32"

_GROUPS = {"machines": MACHINE_FEATURES, "request": REQUEST_FEATURES, "cluster": CLUSTER_FEATURES}
_KINDS = np.eye(len(DECISION_KINDS), dtype=np.float32)


def _scales(features: tuple[Feature, ...]) -> FloatArray:
    """(2, num_features): the scales, and 1 where a feature is not bounded by its own."""
    return np.array([[feature.scale for feature in features], [not feature.bounded for feature in features]], float)


_MACHINES, _REQUEST, _CLUSTER = map(_scales, _GROUPS.values())


def observe(view: ClusterView, rows: int) -> dict[str, Float32Array]:
    """The `INPUTS` of ``view``, its machines padded to ``rows``."""
    count = view.num_machines
    machines = _squash(view.machines, _MACHINES)
    present = np.ones(rows, np.float32)
    if rows > count:
        machines = np.concatenate([machines, np.zeros((rows - count, machines.shape[1]), np.float32)])
        present[count:] = 0.0
    request, cluster = _squash(view.request, _REQUEST), _squash(view.cluster, _CLUSTER)
    return dict(zip(INPUTS, (machines, present, request, cluster, _KINDS[view.kind]), strict=True))


def _squash(values: FloatArray, scales: FloatArray) -> Float32Array:
    above = np.maximum(values, 0.0)
    squashed: Float32Array = (above / (above * scales[1] + scales[0])).astype(np.float32)
    return squashed


def table() -> list[dict[str, str | float | bool]]:
    """The features as a bundle lists them, in the order of their columns."""
    return [
        {
            "group": group,
            "name": feature.name,
            "unit": feature.unit,
            "scale": feature.scale,
            "bounded": feature.bounded,
            "source": feature.source,
            "text": feature.text,
        }
        for group, features in _GROUPS.items()
        for feature in features
    ]


def table_digest() -> str:
    """SHA-256 of what decides a network's inputs: everything in `table` but the text, and the formula."""
    rows = [{name: value for name, value in row.items() if name != "text"} for row in table()]
    return hashlib.sha256(json.dumps([FORMULA, rows], sort_keys=True).encode()).hexdigest()

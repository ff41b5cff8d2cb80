"""Views by hand: a string of roles, and the features that matter."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from splitgym.features import (
    CLUSTER_COLUMN,
    MACHINE_COLUMN,
    NUM_CLUSTER_FEATURES,
    NUM_MACHINE_FEATURES,
    NUM_REQUEST_FEATURES,
    REQUEST_COLUMN,
)
from splitgym.view import ARRIVAL, MIXED, PROMPT, TOKEN, ClusterView

ROLES = {"p": PROMPT, "t": TOKEN, "m": MIXED}


def view(
    roles: str,
    *,
    kind: int = ARRIVAL,
    time_s: float = 1.0,
    prompt_tokens: float = 1000.0,
    output_tokens: float = 101.0,
    cluster: dict[str, float] | None = None,
    role_mask: np.ndarray | None = None,
    promised: tuple[float, float] = (0.0, 0.0),
    **machines: Sequence[float],
) -> ClusterView:
    """Ready machines with a letter of ``roles`` each (p, t, m), alike but for the features given by name."""
    indices = [ROLES[letter] for letter in roles]
    features = np.zeros((len(roles), NUM_MACHINE_FEATURES))
    features[np.arange(len(roles)), indices] = 1.0
    features[:, MACHINE_COLUMN["ready"]] = 1.0
    alike = {"kv_capacity_tokens": 1e6, "prompt_tokens_per_s": 1e4, "decode_iteration_s": 0.04}
    alike |= {"prompt_s": 0.1, "predicted_ttft_s": 0.1, "predicted_tbt_s": 0.04, "transfer_s": 0.01}
    for name, value in (alike | machines).items():
        features[:, MACHINE_COLUMN[name]] = value
    request = np.zeros(NUM_REQUEST_FEATURES)
    request[REQUEST_COLUMN["prompt_tokens"]] = prompt_tokens
    request[REQUEST_COLUMN["predicted_output_tokens"]] = output_tokens
    request[REQUEST_COLUMN["baseline_ttft_s"]] = 0.1
    request[REQUEST_COLUMN["baseline_tbt_s"]] = 0.04
    request[REQUEST_COLUMN["ttft_slo_s"]], request[REQUEST_COLUMN["tbt_slo_s"]] = promised
    totals = np.zeros(NUM_CLUSTER_FEATURES)
    for name, value in (cluster or {}).items():
        totals[CLUSTER_COLUMN[name]] = value
    may_prompt = np.array([role != TOKEN for role in indices])
    may_decode = np.array([role != PROMPT for role in indices])
    if role_mask is None:
        role_mask = permitted(indices)
    return ClusterView(kind, time_s, features, request, totals, may_prompt, may_decode, role_mask)


def permitted(roles: Sequence[int]) -> np.ndarray:
    """(num_machines, 3) the role changes that leave neither phase without a machine."""
    mask = np.zeros((len(roles), 3), np.bool_)
    for machine, old in enumerate(roles):
        for new in range(3):
            after = [*roles[:machine], new, *roles[machine + 1 :]]
            mask[machine, new] = new != old and any(r != TOKEN for r in after) and any(r != PROMPT for r in after)
    return mask

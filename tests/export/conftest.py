"""Runs of every algorithm, network and kind, trained for a moment, and bundles of them."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from splitgym.export import export_policy
from splitgym.learn import NO_EVALUATION, DqnSettings, PpoSettings, train

PPO = PpoSettings(num_steps=32, minibatch=32, epochs=2)
DQN = DqnSettings(learning_starts=32, buffer_size=500, minibatch=32)

RUNS: dict[str, dict[str, Any]] = {
    "routing": {"card": "Quickstart", "algo": "maskable-ppo"},
    "joint": {"card": "Quickstart", "kind": "joint", "algo": "ppo"},
    "repurposing": {"card": "Quickstart", "kind": "repurposing", "algo": "dqn", "settings": DQN},
    "prompt": {"card": "Quickstart", "algo": "dqn", "settings": DQN, "environment": {"heads": "prompt"}},
    "pool": {"card": "Quickstart", "kind": "repurposing", "environment": {"action": "pool"}},
    "moving": {"card": "Quickstart", "other": "splitwise"},
    "mlp": {"card": "Quickstart", "algo": "maskable-ppo", "network": "mlp"},
    "mlp-token": {
        "card": "Quickstart",
        "algo": "dqn",
        "network": "mlp",
        "settings": DQN,
        "environment": {"heads": "token"},
    },
    "mlp-joint": {"card": "Quickstart", "kind": "joint", "algo": "ppo", "network": "mlp"},
    "mlp-padded": {"card": "Toy", "network": "mlp", "environment": {"max_machines": 5}},
    "mlp-pool": {"card": "Quickstart", "kind": "repurposing", "network": "mlp", "environment": {"action": "pool"}},
}

Runs = Callable[[str], Path]
Bundles = Callable[..., Path]


@pytest.fixture(scope="session")
def run_of(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """The folder of a run of `RUNS`, trained when it is first asked for."""
    folder = tmp_path_factory.mktemp("runs")
    common: dict[str, Any] = {"num_envs": 2, "evaluation": NO_EVALUATION, "progress": False, "steps": 128}

    @cache
    def trained(name: str) -> Path:
        return train(out=folder / name, **{"settings": PPO, **common, **RUNS[name]})

    return trained


@pytest.fixture(scope="session")
def bundle_of(run_of: Runs, tmp_path_factory: pytest.TempPathFactory) -> Bundles:
    """The bundle of a run of `RUNS`, or of a heuristic."""
    folder = tmp_path_factory.mktemp("bundles")

    @cache
    def exported(name: str, decision: str | None = None) -> Path:
        path = folder / f"{name}-{decision}.zip"
        export_policy(run_of(name) if name in RUNS else name, path, decision=decision)
        return path

    return exported

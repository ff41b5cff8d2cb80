"""Learning: training, trained policies, evaluation, comparison.

A trained policy decides without torch, so `load_policy` and `compare` need none. What does is imported at first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from splitgym.learn.compare import Comparison, compare
from splitgym.learn.learned import LearnedPolicy, load, load_policy

if TYPE_CHECKING:
    from splitgym.learn.agents import DqnSettings, PpoSettings
    from splitgym.learn.training import NO_EVALUATION, EvaluationPlan, train

_NEED_TORCH = {
    "DqnSettings": "agents",
    "EvaluationPlan": "training",
    "NO_EVALUATION": "training",
    "PpoSettings": "agents",
    "train": "training",
}

__all__ = [
    "NO_EVALUATION",
    "Comparison",
    "DqnSettings",
    "EvaluationPlan",
    "LearnedPolicy",
    "PpoSettings",
    "compare",
    "load",
    "load_policy",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _NEED_TORCH:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_NEED_TORCH[name]}"), name)

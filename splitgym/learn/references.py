"""The heuristics a training run is measured against, on the seeds it is evaluated on."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from splitgym.cards import Card
from splitgym.learn.evaluation import Scorecard, evaluate, mean_of
from splitgym.learn.event_file import EventFile
from splitgym.policies import make_policy

ROUTING = ("splitwise", "splitwise-tuned", "jsq-tokens", "least-ttft", "least-e2e", "lmetric")
POOLS = ("static", "mixed-pool", "threshold", "proportional", "forecast")

SHOWN = (
    "slowdown",
    "ttft_mean_s",
    "ttft_p99_s",
    "tbt_mean_s",
    "tbt_p99_s",
    "e2e_mean_s",
    "e2e_p99_s",
    "slo_met",
    "goodput_rps",
)
"""The figures of a scorecard that are drawn during training, as ``eval/<figure>``."""


def contenders(kind: str, other: str | None) -> tuple[str, ...]:
    """Names of the policies a run of this kind is compared with: Splitwise's first, then those that may be best."""
    if kind == "routing":
        return ROUTING
    if kind == "repurposing":
        return ("splitwise", *(f"{other}+{pool}" for pool in POOLS))
    return (*ROUTING, *(f"lmetric+{pool}" for pool in POOLS[1:]))


def measure(card: Card, names: Sequence[str], seeds: Sequence[int], variant: Mapping[str, Any]) -> dict[str, Scorecard]:
    """The mean scorecard of each policy on the validation seeds."""
    return {name: mean_of(evaluate(card, make_policy(name, card.folder), seeds, variant=variant)) for name in names}


def best_of(measured: Mapping[str, Scorecard]) -> str:
    """The name of least slowdown."""
    return min(measured, key=lambda name: measured[name]["slowdown"])


def draw(board: Path, measured: Mapping[str, Scorecard], last_step: int) -> None:
    """Write ``ref/splitwise`` and ``ref/best-heuristic``: the run's own tags, level from the first step to the last."""
    shown = {"splitwise": measured["splitwise"], "best-heuristic": measured[best_of(measured)]}
    for name, figures in shown.items():
        lines = EventFile(time.time())
        for figure in SHOWN:
            for step in (0, last_step):
                lines.scalar(f"eval/{figure}", step, figures[figure])
        lines.write(board / "ref" / name)

"""How good a policy is: the mean of its scorecards over seeds, on a card as the run's environment varies it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from splitgym.cards import Card
from splitgym.metrics import scorecard
from splitgym.policies import Policy, make_policy
from splitgym.sim.run import run

Scorecard = dict[str, float]

_VARIANT = {"rate": "rate_rps", "horizon_s": "horizon_s", "machines": "machines", "model": "model"}


def evaluate(
    card: Card, policy: Policy, seeds: Sequence[int], *, split: str = "val", variant: Mapping[str, Any] | None = None
) -> list[Scorecard]:
    """One scorecard for each seed; the card's warm-up policy decides while it warms up.

    Args:
        card: what is simulated.
        policy: who decides.
        seeds: of the scenarios; the same ones for policies that are to be compared.
        split: of the seeds.
        variant: arguments an environment was made with; those that change the scenario count.
    """
    changes = {_VARIANT[name]: value for name, value in (variant or {}).items() if name in _VARIANT}
    warmup = card.defaults.warmup_policy
    cards = []
    for seed in seeds:
        scenario = card.scenario(seed, split, **changes)
        result = run(scenario, policy, warmup_policy=None if warmup is None else make_policy(warmup, card.folder))
        cards.append(scorecard(result.rows, scenario, result.meters))
    return cards


def mean_of(cards: Sequence[Scorecard]) -> Scorecard:
    """The mean of each figure, leaving out seeds that have none."""
    means = {}
    for name in cards[0]:
        known = [card[name] for card in cards if not np.isnan(card[name])]
        means[name] = float(np.mean(known)) if known else float("nan")
    return means

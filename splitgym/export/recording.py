"""Golden views: recorded in simulation, and answered by the policy that is exported."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from splitgym.cards import Card
from splitgym.errors import SplitgymError
from splitgym.export.actions import choose
from splitgym.export.golden import NUM_VIEWS, Golden, stacked
from splitgym.export.manifest import TOLERANCE
from splitgym.export.policy import hardware_of
from splitgym.features import CLUSTER_FEATURES, MACHINE_FEATURES, REQUEST_FEATURES, Feature
from splitgym.policies import Policy
from splitgym.policies.base import need_early_choice
from splitgym.sim.compiled import CompiledEngine
from splitgym.sim.run import start
from splitgym.view import ARRIVAL, TICK, ClusterView, Decision

BoolArray = npt.NDArray[np.bool_]
Float32Array = npt.NDArray[np.float32]
FloatArray = npt.NDArray[np.float64]

SEED = 0  # of what is drawn here
_STRIDE = 5  # of arrivals: neighbours are alike
_RUNS = 500  # at most
_TRIES = 40  # views looked at for each that is kept, at most
_ARRIVALS, _TICKS = {ARRIVAL: NUM_VIEWS}, {TICK: NUM_VIEWS}
_BOTH = {ARRIVAL: NUM_VIEWS * 3 // 4, TICK: NUM_VIEWS // 4}
QUOTAS = {"routing": _ARRIVALS, "repurposing": _TICKS}
"""How many views of which kind, for what decides both unless it is named here."""


class Answer(NamedTuple):
    """What a network says to a view."""

    scores: Float32Array  # (num_scores,)
    masks: Sequence[BoolArray]  # head by head
    decision: Decision


Answerer = Callable[[ClusterView, FloatArray, Decision], Answer]
"""Of a view, a uniform number for each head, and what the other policy suggests."""


def heuristic_golden(policy: Policy, card: Card) -> Golden:
    """Views of a run under ``policy`` on ``card``, and what it decides when it is asked about these alone."""
    views = [_rounded(view) for view in _kept(_views(card, policy), dict(_BOTH))]
    cluster = card.default_cluster
    policy.reset(cluster, SEED)
    decisions = [policy.decide(view) for view in views]
    blank = np.zeros((NUM_VIEWS, 0))
    return _golden(card, views, [Decision()] * NUM_VIEWS, decisions, blank, blank)


def network_golden(
    policy: Policy, card: Card, decides: str, num_heads: int, answer: Answerer, *, samples: bool
) -> Golden:
    """Views of a run under ``policy`` on ``card``, a little changed, and what the network says to them.

    They are changed so that no two machines are alike, and only those are kept whose decision is the same for all
    scores within the tolerance: another machine's sums may differ in their last bits.

    Raises:
        SplitgymError: if hardly any decision is so.
    """
    rng = np.random.default_rng(SEED)
    quota = dict(QUOTAS.get(decides, _BOTH))
    views, suggestions, draws, answers = [], [], [], []
    for tried, view in enumerate(_of_kinds(_views(card, policy), quota)):
        if tried == NUM_VIEWS * _TRIES:
            raise SplitgymError(f"policy {policy.name!r}: its scores are all alike; train it before it is exported")
        changed, drawn = _rounded(_apart(view, rng)), rng.random(num_heads)
        suggested = Decision(_drawn(changed.prompt_mask, rng), _drawn(changed.token_mask, rng))
        said = answer(changed, drawn, suggested)
        if not np.isfinite(said.scores).all():
            raise SplitgymError(f"policy {policy.name!r}: its scores are not finite; train the run anew")
        if not _is_clear(said, drawn if samples else None):
            continue
        quota[view.kind] -= 1
        views.append(changed)
        suggestions.append(suggested)
        draws.append(drawn)
        answers.append(said)
        if len(views) == NUM_VIEWS:
            break
    scores = np.array([said.scores for said in answers])
    return _golden(card, views, suggestions, [said.decision for said in answers], np.array(draws), scores)


def _views(card: Card, policy: Policy) -> Iterator[ClusterView]:
    """Every view of validation runs under ``policy``, one run after another. Copy what must last.

    Raises:
        SplitgymError: after the last run; or if the card chooses token machines late, which no router does.
    """
    need_early_choice(f"card {card.name!r}: a bundle", card.default_cluster)
    for seed in range(_RUNS):
        scenario = card.scenario(seed, "val")
        start(policy, scenario)
        engine = CompiledEngine(scenario)
        while (view := engine.advance()) is not None:
            yield view
            engine.decide(policy.decide(view))
    raise SplitgymError(f"card {card.name!r}: {_RUNS} runs have too few decisions of this kind; name another card")


def _of_kinds(views: Iterable[ClusterView], quota: dict[int, int]) -> Iterator[ClusterView]:
    """Those of a kind of which there are to be more, of arrivals each `_STRIDE`-th."""
    arrivals = 0
    for view in views:
        arrivals += view.kind == ARRIVAL
        if quota.get(view.kind, 0) > 0 and (view.kind == TICK or arrivals % _STRIDE == 0):
            yield view


def _kept(views: Iterable[ClusterView], quota: dict[int, int]) -> Iterator[ClusterView]:
    for view in _of_kinds(views, quota):
        quota[view.kind] -= 1
        yield view
        if not any(quota.values()):
            return


def _apart(view: ClusterView, rng: np.random.Generator) -> ClusterView:
    """``view`` with every number a little larger, and a tenth of what is permitted forbidden."""
    return dataclasses.replace(
        view,
        machines=_larger(view.machines, MACHINE_FEATURES, rng),
        request=_larger(view.request, REQUEST_FEATURES, rng),
        cluster=_larger(view.cluster, CLUSTER_FEATURES, rng),
        prompt_mask=_fewer(view.prompt_mask, rng),
        token_mask=_fewer(view.token_mask, rng),
        role_mask=_fewer(view.role_mask, rng),
    )


def _larger(values: FloatArray, features: tuple[Feature, ...], rng: np.random.Generator) -> FloatArray:
    """By up to a twentieth, and up to a hundredth of the scale; flags stay as they are."""
    steps = np.array([0.0 if feature.bounded else 0.01 * feature.scale for feature in features])
    shares = 0.05 * (steps > 0)
    larger: FloatArray = values * (1.0 + shares * rng.random(values.shape)) + steps * rng.random(values.shape)
    return larger


def _fewer(mask: BoolArray, rng: np.random.Generator) -> BoolArray:
    left = mask & (rng.random(mask.shape) < 0.9)
    return left if left.any() else mask


def _drawn(mask: BoolArray, rng: np.random.Generator) -> int:
    return int(rng.choice(np.flatnonzero(mask))) if mask.any() else -1


def _rounded(view: ClusterView) -> ClusterView:
    """A copy as `Golden` holds it, whose memory the engine does not use again."""
    return dataclasses.replace(
        view,
        machines=_to_float32(view.machines),
        request=_to_float32(view.request),
        cluster=_to_float32(view.cluster),
        prompt_mask=view.prompt_mask.copy(),
        token_mask=view.token_mask.copy(),
        role_mask=view.role_mask.copy(),
    )


def _to_float32(values: FloatArray) -> FloatArray:
    return values.astype(np.float32).astype(np.float64)


def _is_clear(said: Answer, draws: FloatArray | None) -> bool:
    """Whether all scores within the tolerance choose alike.

    Scores that are off by δ at most shift the cumulative probabilities by less than δ.
    """
    first = 0
    for head, mask in enumerate(said.masks):
        scores = said.scores[first : first + len(mask)]
        first += len(mask)
        if draws is not None:
            low, high = max(draws[head] - TOLERANCE, 0.0), min(draws[head] + TOLERANCE, 1.0)
            if choose(scores, mask, low) != choose(scores, mask, high):
                return False
        elif mask.sum() > 1:
            second, best = np.sort(scores[mask])[-2:]
            if best - second <= 2 * TOLERANCE:
                return False
    return True


def _golden(
    card: Card,
    views: Sequence[ClusterView],
    suggestions: Sequence[Decision],
    decisions: Sequence[Decision],
    draws: FloatArray,
    scores: npt.NDArray[Any],
) -> Golden:
    cluster = card.default_cluster
    chosen, new_roles = stacked(decisions, cluster.num_machines)
    return Golden(
        seed=np.array([SEED]),
        roles=np.array([machine.role for machine in cluster.machines]),
        hardware=hardware_of(cluster),
        kind=np.array([view.kind for view in views]),
        time_s=np.array([view.time_s for view in views]),
        machines=np.array([view.machines for view in views], np.float32),
        request=np.array([view.request for view in views], np.float32),
        cluster=np.array([view.cluster for view in views], np.float32),
        prompt_mask=np.array([view.prompt_mask for view in views]),
        token_mask=np.array([view.token_mask for view in views]),
        role_mask=np.array([view.role_mask for view in views]),
        suggested=stacked(suggestions, cluster.num_machines)[0],
        draws=draws,
        scores=scores.astype(np.float32),
        chosen=chosen,
        new_roles=new_roles,
    )

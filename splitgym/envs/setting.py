"""A setting: everything about an environment that does not change from episode to episode."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from splitgym.cards import KINDS, Card, load_card
from splitgym.envs.actions import make_actions
from splitgym.envs.episode import Roster
from splitgym.envs.observations import SCALES, Observer
from splitgym.envs.randomisation import with_drawn_laws
from splitgym.envs.rewards import Reward, RewardSpec
from splitgym.envs.stepping import LEARNERS, Rules
from splitgym.errors import SplitgymError, did_you_mean
from splitgym.policies.registry import make_policy
from splitgym.randomness import SPLITS, Streams
from splitgym.sim.cluster import Cluster, Scenario
from splitgym.sim.run import DEFAULT_ENGINE, ENGINES, Decider
from splitgym.workload import Requests, read_trace

OPTIONS = ("trace",)
"""What ``reset(options=…)`` understands."""


class Setting:
    """A card, who decides what on it, and what the learner sees, chooses and is paid.

    The arguments are those of `splitgym.envs.ClusterEnv`.

    Raises:
        SplitgymError: for any mistake in them, in one line.
    """

    def __init__(
        self,
        card: str | Path | Card | None = None,
        *,
        kind: str | None = None,
        reward: RewardSpec | None = None,
        reward_scale: float = 1.0,
        gamma: float = 0.99,
        split: str = "train",
        horizon_s: float | None = None,
        rate: float | None = None,
        machines: str | None = None,
        model: str | None = None,
        max_machines: int | None = None,
        other: str | Decider | None = None,
        heads: str = "both",
        action: str = "machine",
        arrival_group: int | None = None,
        domain_randomisation: bool = False,
        engine: str = DEFAULT_ENGINE,
        record: bool = False,
    ) -> None:
        if card is None:
            raise SplitgymError("card: missing; give the path of a card, card='mine.yaml' for example")
        self.card = card if isinstance(card, Card) else load_card(card)
        self.kind = known("kind", kind or self.card.defaults.kind, KINDS)
        self.split = known("split", split, SPLITS)
        for name, number in (
            ("rate", rate),
            ("gamma", gamma),
            ("horizon_s", horizon_s),
            ("max_machines", max_machines),
        ):
            if number is not None and (isinstance(number, bool) or not isinstance(number, int | float | np.number)):
                raise SplitgymError(f"{name}: {number!r} is not a number")
        if not 0 <= gamma <= 1:
            raise SplitgymError(f"gamma: {gamma!r} is not in [0, 1]; give the learner's discount")
        if rate is not None and not 0 < rate < float("inf"):
            raise SplitgymError(f"rate: {rate!r} requests per second; give a number above 0")
        self.cluster: Cluster = self.card.build_cluster(machines, model)
        count = self.cluster.num_machines
        if max_machines is not None and max_machines < count:
            raise SplitgymError(f"max_machines: {max_machines} is less than the card's {count}; raise it")
        self.arrival_group = arrival_group
        if not isinstance(domain_randomisation, bool):
            raise SplitgymError(f"domain_randomisation: {domain_randomisation!r}; give True or False")
        self.domain_randomisation = domain_randomisation
        if domain_randomisation:
            with_drawn_laws(self.cluster, Streams(0, split))  # raises where there is nothing to draw from
        self.engine = known("engine", engine, tuple(ENGINES))
        self.record = record
        self.actions = make_actions(self.kind, self.cluster, max_machines or count, heads, action)
        self.observer = Observer(count, max_machines or count)
        self.reward = Reward(reward or self.card.defaults.reward, self._arrivals_per_step(rate), reward_scale)
        self.rules = Rules(
            learner=LEARNERS.index(self.kind),
            decides=self.actions.decides,
            actions=self.actions.rules,
            scales=SCALES,
            reward=self.reward.mix,
            is_shaped="slowdown-shaped" in self.reward.weights,
            counts_missed="slo" in self.reward.weights,
            gamma=float(gamma),
            usd_per_s=sum(machine.profile.cost_usd_per_hour for machine in self.cluster.machines) / 3600,
        )
        self._variant: dict[str, Any] = {"rate_rps": rate, "horizon_s": horizon_s, "machines": machines, "model": model}
        self._other = other
        if self.kind == "joint" and other is not None:
            raise SplitgymError("other: kind 'joint' leaves nothing to decide; leave it out")

    @classmethod
    def of(cls, card: str | Path | Card | Setting | None, arguments: Mapping[str, Any]) -> Setting:
        """A setting with these further arguments, or the one that is given.

        Raises:
            SplitgymError: if one is unknown, or a setting is given and arguments as well.
        """
        if isinstance(card, Setting):
            if arguments:
                raise SplitgymError(f"{next(iter(arguments))}: the setting that is given says it already; leave it out")
            return card
        known_names = inspect.signature(cls).parameters
        for name in arguments:
            if name not in known_names:
                raise SplitgymError(f"{name}: unknown argument{did_you_mean(name, known_names)}")
        return cls(card, **arguments)

    def roster(self, env: int) -> Roster:
        """Policies for environment ``env`` of a batch, its own; a policy that was handed over serves the first."""
        defaults, folder = self.card.defaults, self.card.folder

        def policy(spec: str | Decider) -> Decider:
            if isinstance(spec, str):
                return make_policy(spec, folder)
            if not (hasattr(spec, "decide") and hasattr(spec, "reset")):
                raise SplitgymError(f"other: {spec!r} is no policy; give a name, or an object with reset and decide")
            return spec if env == 0 else copy.deepcopy(spec)

        other = None if self.kind == "joint" else policy(self._other or defaults.other)
        return Roster(self.kind, other, policy(defaults.warmup_policy or defaults.other), self.actions.decides)

    def scenario(self, seed: int, options: Mapping[str, Any]) -> Scenario:
        """Scenario ``seed`` of the split, or one of the trace in ``options``.

        Raises:
            SplitgymError: if an option is unknown, or a trace cannot be read.
        """
        requests = _requests(options)
        scenario = self.card.scenario(seed, self.split, requests=requests, **self._variant)
        if requests is not None and self._variant["horizon_s"] is not None:
            scenario = replace(scenario, horizon_s=self._variant["horizon_s"], drain_s=self.card.episode.drain_s)
        if self.domain_randomisation:
            scenario = replace(scenario, cluster=with_drawn_laws(scenario.cluster, Streams(seed, self.split)))
        return scenario

    def _arrivals_per_step(self, rate: float | None) -> float:
        tick_s = self.card.episode.tick_s
        rate_rps = rate or self.card.workload.resolved(self.card.folder).mean_rate_rps
        per_request = sum(self.actions.decides[:2])  # decisions; where it ends at its prompt end there is one less
        if self.kind == "repurposing":
            return rate_rps * tick_s
        return 1 / per_request if self.kind == "routing" else rate_rps / (per_request * rate_rps + 1 / tick_s)


def known(what: str, value: str, options: tuple[str, ...] | list[str]) -> str:
    """``value``, if it is one of ``options``.

    Raises:
        SplitgymError: if it is not.
    """
    if value not in options:
        raise SplitgymError(f"{what}: unknown {value!r}{did_you_mean(str(value), options)}")
    return value


def _requests(options: Mapping[str, Any]) -> Requests | None:
    for name in options:
        if name not in OPTIONS:
            raise SplitgymError(f"options: unknown {name!r}{did_you_mean(str(name), OPTIONS)}")
    trace = options.get("trace")
    if trace is None or isinstance(trace, Requests):
        return trace
    if isinstance(trace, str | Path):
        return read_trace(trace)
    raise SplitgymError(f"options: trace is {trace!r}; give the path of a trace file, or Requests")

"""ClusterEnv: a cluster as a Gymnasium environment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
from gymnasium.error import ResetNeeded

from splitgym.cards import KINDS, Card, load_card
from splitgym.envs import rendering
from splitgym.envs.actions import BoolArray, Masks, make_actions
from splitgym.envs.episode import Episode, Roster
from splitgym.envs.history import History
from splitgym.envs.observations import Observation, Observer
from splitgym.envs.rewards import Reward, RewardSpec, Step
from splitgym.errors import SplitgymError, did_you_mean
from splitgym.policies.registry import make_policy
from splitgym.randomness import SPLITS, Streams
from splitgym.sim.cluster import Cluster, Scenario
from splitgym.sim.recorder import Recorder
from splitgym.sim.run import DEFAULT_ENGINE, ENGINES, Decider
from splitgym.view import DECISION_KINDS, ClusterView, Decision
from splitgym.workload import Requests, read_trace

Action = int | np.integer[Any] | npt.NDArray[np.integer[Any]]

OPTIONS = ("trace",)
"""What ``reset(options=…)`` understands."""


@dataclass(frozen=True)
class EnvState:
    """A `ClusterEnv` in the middle of an episode: enough to be there again by replay."""

    scenario: Scenario
    decisions: tuple[Decision, ...]
    invalid_actions: int
    episode_number: int
    draws: Mapping[str, Any]  # state of the generator of replacements
    np_random: Mapping[str, Any]


class ClusterEnv(gymnasium.Env[Observation, Action]):
    """Schedule LLM inference on a cluster whose machines are split by phase.

    **A step** is one of the learner's decisions: an arrival (``routing``), a control tick (``repurposing``), or
    whichever comes next (``joint``). Other decisions are taken by the policy ``other``; in ``routing`` its role
    changes at an arrival are applied before the learner sees it. A warm-up is over before ``reset`` returns.

    **Action space**, with M machines (``max_machines`` if that is given):

    | kind | space | meaning |
    |---|---|---|
    | ``routing`` | ``MultiDiscrete([M, M])`` | prompt machine, token machine |
    | ``routing``, ``heads="prompt"`` or ``"token"`` | ``Discrete(M)`` | one; ``other`` names the other |
    | ``repurposing`` | ``Discrete(1 + 3M)`` | 0 no change, else 1 + 3 · machine + role |
    | ``repurposing``, ``action="pool"`` | ``Discrete(1 + 6 · hardware types)`` | see `PoolRoleActions` |
    | ``joint`` | ``MultiDiscrete([M, M, 1 + 3M])`` | both; a head that is not due has only index 0 |

    An action that is masked becomes a valid one drawn uniformly, at a tick "no change"; it is counted.
    Masks hide what is impossible (a machine that is not ready or too small, a pool left empty), not what is unwise.

    **Observation space**: a ``Dict`` of float32 arrays in [0, 1]: ``machines`` (M, F), ``present`` (M,), ``request``
    (R,), ``cluster`` (C,), ``decision_kind`` (3,); see `Observer` and the table in `splitgym.features`.

    **Reward**: see `splitgym.envs.rewards`; the default is the card's, ``slowdown-shaped`` as a rule.

    **End**: the horizon truncates, and the final observation is the state there. A run without a horizon (one of a
    trace) terminates when every request is done. ``info`` then has the run's ``scorecard``, which does not depend
    on the reward: see `splitgym.metrics.scorecard`.

    **info**: ``time_s``; ``dt_s``, simulated seconds since the last decision; ``decision_kind``, a name;
    ``invalid_actions``, so far; ``action_mask``, as ``action_space.sample(mask=…)`` demands; at the end ``scorecard``.

    **Seeds**: ``reset(seed=s)`` plays scenario ``s`` of the split. Later resets without a seed draw theirs from
    ``np_random``, so that episodes differ and the sequence is reproducible. ``reset(options={"trace": …})`` plays a
    trace file or `Requests` instead of the card's workload, without warm-up, until all is done or ``horizon_s``.

    Args:
        card: a shipped card's name, a card file's path, or a `Card`.
        kind: ``routing``, ``repurposing`` or ``joint``; the card's default for ``None``.
        reward: a name, a sum or weights by name; the card's default for ``None``.
        reward_scale: multiplies the reward.
        gamma: the learner's discount, for ``slowdown-shaped``.
        split: ``train``, ``val`` or ``test``: part of every seed, and the stretch of a trace.
        horizon_s: end of an episode in place of the card's, warm-up included.
        rate: mean arrivals per second in place of the card's.
        machines: other machines than the card's, as in `splitgym.machines.parse_machines`.
        model: another model than the card's.
        max_machines: pad machines to this many: ``present`` is 0, choosing them is masked.
        other: the policy that decides the other half, by name, or one of this environment's own; the card's default
            for ``None``.
        heads: ``both``, ``prompt`` or ``token`` (routing).
        action: ``machine`` or ``pool`` (repurposing).
        arrival_group: environments of one group play the same scenarios, episode by episode, whatever their seeds;
            ``reset(seed=…)`` goes back to the first. For baselines that depend on the arrivals.
        engine: what simulates: ``compiled`` or ``reference``; they are equal to the last bit.
        record: keep the event log (`recorder`).
        render_mode: ``ansi`` or ``rgb_array`` (needs matplotlib).

    Raises:
        SplitgymError: for any mistake in these, in one line.

    Version history: v0, the first.
    """

    metadata = {"render_modes": ["ansi", "rgb_array"], "render_fps": 4}  # noqa: RUF012  (Gymnasium's)

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
        engine: str = DEFAULT_ENGINE,
        record: bool = False,
        render_mode: str | None = None,
    ) -> None:
        if card is None:
            raise SplitgymError("card: missing; give the path of a card, card='mine.yaml' for example")
        self.card = card if isinstance(card, Card) else load_card(card)
        self.kind = _known("kind", kind or self.card.defaults.kind, KINDS)
        self.split = _known("split", split, SPLITS)
        self.render_mode = (
            render_mode if render_mode is None else _known("render_mode", render_mode, self.metadata["render_modes"])
        )
        if not 0 <= gamma <= 1:
            raise SplitgymError(f"gamma: {gamma!r} is not in [0, 1]; give the learner's discount")
        if rate is not None and not 0 < rate < float("inf"):
            raise SplitgymError(f"rate: {rate!r} requests per second; give a number above 0")
        self.gamma = gamma
        self.cluster: Cluster = self.card.build_cluster(machines, model)
        count = self.cluster.num_machines
        if max_machines is not None and max_machines < count:
            raise SplitgymError(f"max_machines: {max_machines} is less than the card's {count}; raise it")
        self._variant: dict[str, Any] = {"rate_rps": rate, "horizon_s": horizon_s, "machines": machines, "model": model}
        self._actions = make_actions(self.kind, self.cluster, max_machines or count, heads, action)
        self._observer = Observer(count, max_machines or count)
        self._reward = Reward(reward or self.card.defaults.reward, self._arrivals_per_step(rate), reward_scale)
        self._usd_per_s = sum(machine.profile.cost_usd_per_hour for machine in self.cluster.machines) / 3600
        self._roster = self._make_roster(other)
        self._arrival_group = arrival_group
        self._engine = _known("engine", engine, tuple(ENGINES))
        self._record = record
        self.action_space = self._actions.space
        self.observation_space = self._observer.space
        self._episode: Episode | None = None
        self._episode_number = 0
        self._is_over = True
        self._history: History | None = None

    # --- Gymnasium ----------------------------------------------------------------------------------------------

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start an episode.

        Raises:
            SplitgymError: if an option is unknown, or a trace cannot be read.
        """
        super().reset(seed=seed)
        requests = _requests(options or {})
        if seed is not None:
            self._episode_number = 0
        scenario_seed = self._scenario_seed(seed)
        self._episode_number += 1
        scenario = self.card.scenario(scenario_seed, self.split, requests=requests, **self._variant)
        if requests is not None and self._variant["horizon_s"] is not None:
            scenario = replace(scenario, horizon_s=self._variant["horizon_s"], drain_s=self.card.episode.drain_s)
        self._draws = Streams(scenario_seed, self.split).generator("invalid-actions")
        self._begin(scenario)
        return self._observe(), self._info(dt_s=0.0)

    def step(self, action: Action) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Take a decision and run to the learner's next.

        Raises:
            SplitgymError: if the action is not in the action space.
        """
        episode = self._episode
        if episode is None or self._is_over:
            raise ResetNeeded("this episode is over: call reset() before step()")
        choice = self._actions.parse(action)
        if episode.view is not None:  # else the scenario has no decision for this learner
            if not all(mask[index] for mask, index in zip(self._masks, choice, strict=True)):
                choice = self._actions.replacement(self._masks, episode.view, self._draws)
                self._invalid_actions += 1
            episode.decide(self._actions.decision(choice, episode.view, episode.suggested))
        before, potential = self._meters, self._potential
        is_over = self._arrive()
        step = Step(before, self._meters, potential, self._potential, self.gamma, self._usd_per_s)
        observation = self._observe()
        info = self._info(dt_s=self._meters.time_s - before.time_s)
        if is_over:
            info["scorecard"] = episode.scorecard()
        truncated = is_over and episode.ends_at_horizon
        return observation, self._reward(step), is_over and not truncated, truncated, info

    def render(self) -> Any:
        """The cluster as it is: text for ``ansi``, (height, width, 3) uint8 for ``rgb_array``."""
        if self.render_mode is None:
            gymnasium.logger.warn("render() without a render_mode: make the environment with render_mode='ansi'")
            return None
        if self._history is None:
            raise ResetNeeded("nothing to see yet: call reset() before render()")
        draw = rendering.as_text if self.render_mode == "ansi" else rendering.as_image
        return draw(f"{self.card.name} · {self.kind}", self._history)

    # --- beyond Gymnasium ---------------------------------------------------------------------------------------

    def action_masks(self) -> BoolArray:
        """What is valid now, all heads one after another, as sb3-contrib asks."""
        return np.concatenate(self._masks)

    @property
    def view(self) -> ClusterView:
        """What the learner decides on; its arrays are reused at the next step.

        Raises:
            ResetNeeded: if no decision is due.
        """
        if self._episode is None or self._episode.view is None:
            raise ResetNeeded("no decision is due: call reset()")
        return self._episode.view

    @property
    def scenario(self) -> Scenario | None:
        """The episode's scenario."""
        return self._episode.scenario if self._episode else None

    @property
    def recorder(self) -> Recorder | None:
        """The episode's event log, with ``record=True``."""
        return self._episode.engine.recorder if self._episode else None

    def clone_state(self) -> EnvState:
        """Where the episode stands, to come back to with `restore_state`, here or in an equal environment."""
        if self._episode is None:
            raise ResetNeeded("nothing to clone yet: call reset()")
        return EnvState(
            self._episode.scenario,
            tuple(self._episode.decisions),
            self._invalid_actions,
            self._episode_number,
            self._draws.bit_generator.state,
            self.np_random.bit_generator.state,
        )

    def restore_state(self, state: EnvState) -> Observation:
        """Go back to ``state`` by replaying its decisions, which takes as long as they did.

        Returns:
            the observation there.
        """
        self._begin(state.scenario)
        assert self._episode is not None
        for decision in state.decisions:
            self._episode.decide(decision)
            self._arrive()
        self._invalid_actions = state.invalid_actions
        self._episode_number = state.episode_number
        self._draws = np.random.default_rng()
        self._draws.bit_generator.state = state.draws
        self.np_random.bit_generator.state = state.np_random
        return self._observe()

    # --- parts --------------------------------------------------------------------------------------------------

    def _begin(self, scenario: Scenario) -> None:
        self._episode = Episode(scenario, self._roster, self._record, self._engine)
        self._invalid_actions = 0
        self._history = None
        self._arrive()
        self._is_over = False  # where there is nothing to decide the first step says so

    def _arrive(self) -> bool:
        """Note where the run stands; whether it is over."""
        episode = self._episode
        assert episode is not None
        self._is_over = episode.view is None
        self._meters = episode.engine.meters()
        counts = self._reward.is_shaped and not (self._is_over and not episode.ends_at_horizon)
        self._potential = episode.engine.books.potential(self._meters.time_s) if counts else 0.0
        self._shown = episode.view or episode.last_view()
        self._masks: Masks = self._actions.masks(self._shown)
        if episode.view is None:
            for mask in self._masks:
                mask[0] |= not mask.any()
        if self.render_mode is not None and self._history is None:
            self._history = History(self._meters, episode.engine.state())
        elif self._history is not None:
            self._history.add(self._meters, episode.engine.state())
        return self._is_over

    def _observe(self) -> Observation:
        return self._observer.observe(self._shown)

    def _info(self, *, dt_s: float) -> dict[str, Any]:
        masks = [mask.astype(np.int8) for mask in self._masks]
        return {
            "time_s": self._meters.time_s,
            "dt_s": dt_s,
            "decision_kind": DECISION_KINDS[self._shown.kind],
            "invalid_actions": self._invalid_actions,
            "action_mask": masks[0] if len(masks) == 1 else tuple(masks),
        }

    def _scenario_seed(self, seed: int | None) -> int:
        if self._arrival_group is not None:
            key = Streams(self._arrival_group, self.split).key(f"episode-{self._episode_number}")
            return key >> 32
        return int(self.np_random.integers(2**32)) if seed is None else seed

    def _arrivals_per_step(self, rate: float | None) -> float:
        tick_s = self.card.episode.tick_s
        rate_rps = rate or self.card.workload.resolved(self.card.folder).mean_rate_rps
        return {"routing": 1.0, "repurposing": rate_rps * tick_s}.get(self.kind, rate_rps / (rate_rps + 1 / tick_s))

    def _make_roster(self, other: str | Decider | None) -> Roster:
        defaults, folder = self.card.defaults, self.card.folder

        def policy(spec: str | Decider) -> Decider:
            return make_policy(spec, folder) if isinstance(spec, str) else spec

        if self.kind == "joint" and other is not None:
            raise SplitgymError("other: kind 'joint' leaves nothing to decide; leave it out")
        warmup = policy(defaults.warmup_policy or defaults.other)
        return Roster(self.kind, None if self.kind == "joint" else policy(other or defaults.other), warmup)


def _known(what: str, value: str, options: tuple[str, ...] | list[str]) -> str:
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

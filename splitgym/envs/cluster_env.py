"""ClusterEnv: a cluster as a Gymnasium environment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
from gymnasium.error import ResetNeeded

from splitgym.cards import Card
from splitgym.envs import rendering
from splitgym.envs.actions import BoolArray
from splitgym.envs.batch import Batch, EnvState
from splitgym.envs.episode import Episode
from splitgym.envs.history import History
from splitgym.envs.observations import Observation
from splitgym.envs.rewards import RewardSpec
from splitgym.envs.setting import Setting, known
from splitgym.sim.cluster import Cluster, Scenario
from splitgym.sim.recorder import Recorder
from splitgym.sim.run import DEFAULT_ENGINE, Decider
from splitgym.view import ClusterView, Decision

Action = int | np.integer[Any] | npt.NDArray[np.integer[Any]]


class ClusterEnv(gymnasium.Env[Observation, Action]):
    """Schedule LLM inference on a cluster whose machines are split by phase.

    **A step** is one of the learner's decisions: an arrival (``routing``), a control tick (``repurposing``), or
    whichever comes next (``joint``). Where token machines are chosen late (``token_choice: prompt_end``), a prompt
    end is one, too (``routing``, ``joint``): an arrival then asks for the prompt machine alone, a prompt end for the
    token machine, and what the other head chooses counts for nothing; with ``heads`` only one of them is a step.
    Other decisions are taken by the policy ``other``; in ``routing`` its role changes are applied before the learner
    sees the cluster. A warm-up is over before ``reset`` returns.

    **Action space**, with M machines (``max_machines`` if that is given):

    | kind | space | meaning |
    |---|---|---|
    | ``routing`` | ``MultiDiscrete([M, M])`` | prompt machine, token machine |
    | ``routing``, ``heads="prompt"`` or ``"token"`` | ``Discrete(M)`` | one; ``other`` names the other |
    | ``repurposing`` | ``Discrete(1 + 3M)`` | 0 no change, else 1 + 3 · machine + role |
    | ``repurposing``, ``action="pool"`` | ``Discrete(1 + 6 · hardware types)`` | see `splitgym.envs.actions.Actions` |
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
        domain_randomisation: in each episode machines take the times of a law drawn, for each profile, from the
            profile's uncertainty and the scenario's seed. Predicted times and the baseline stay the profile's.
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
        domain_randomisation: bool = False,
        engine: str = DEFAULT_ENGINE,
        record: bool = False,
        render_mode: str | None = None,
    ) -> None:
        self.render_mode = (
            render_mode if render_mode is None else known("render_mode", render_mode, self.metadata["render_modes"])
        )
        self.setting = Setting(
            card,
            kind=kind,
            reward=reward,
            reward_scale=reward_scale,
            gamma=gamma,
            split=split,
            horizon_s=horizon_s,
            rate=rate,
            machines=machines,
            model=model,
            max_machines=max_machines,
            other=other,
            heads=heads,
            action=action,
            arrival_group=arrival_group,
            domain_randomisation=domain_randomisation,
            engine=engine,
            record=record,
        )
        self.card: Card = self.setting.card
        self.cluster: Cluster = self.setting.cluster
        self.kind, self.split, self.gamma = self.setting.kind, split, gamma
        self.action_space = self.setting.actions.space
        self.observation_space = self.setting.observer.space
        self._batch = Batch(self.setting, 1)
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
        batch = self._batch
        if seed is not None:
            batch.episode_numbers[0] = 0
        batch.generators[0] = self.np_random
        batch.reset([0], [seed], options)
        self._history = None
        self._remember()
        return batch.observation(0), self._batch.info(0)

    def step(self, action: Action) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Take a decision and run to the learner's next.

        Raises:
            SplitgymError: if the action is not in the action space.
        """
        batch = self._batch
        if batch.is_over[0]:
            raise ResetNeeded("this episode is over: call reset() before step()")
        batch.step(batch.every, self.setting.actions.parse(action, 1))
        self._remember()
        info, is_over, terminated = self._batch.info(0), bool(batch.is_over[0]), False
        if is_over:
            info["scorecard"] = batch.scorecard(0)
            terminated = batch.terminates(0)
        return batch.observation(0), float(batch.slots["reward"][0]), terminated, is_over and not terminated, info

    def render(self) -> Any:
        """The cluster as it is: text for ``ansi``, (height, width, 3) uint8 for ``rgb_array``."""
        if self.render_mode is None:
            gymnasium.logger.warn("render() without a render_mode: make the environment with render_mode='ansi'")
            return None
        if self._history is None:
            raise ResetNeeded("nothing to see yet: call reset() before render()")
        draw = rendering.as_text if self.render_mode == "ansi" else rendering.as_image
        return draw(f"{self.setting.card.name} · {self.setting.kind}", self._history)

    # --- beyond Gymnasium ---------------------------------------------------------------------------------------

    def action_masks(self) -> BoolArray:
        """(n,) what is valid now, all heads one after another, as sb3-contrib asks."""
        valid: BoolArray = self._batch.outlook.valid[0].copy()
        return valid

    @property
    def view(self) -> ClusterView:
        """What the learner decides on; its arrays are reused at the next step.

        Raises:
            ResetNeeded: if no decision is due.
        """
        view = self._batch.view(0) if self._episode else None
        if view is None:
            raise ResetNeeded("no decision is due: call reset()")
        return view

    @property
    def suggested(self) -> Decision:
        """What the other policy would do about the request that is due (kind ``routing``)."""
        return self._batch.suggested(0)

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
        return self._batch.clone_state(0)

    def restore_state(self, state: EnvState) -> Observation:
        """Go back to ``state``.

        Arrays are copied; where the engine, or a policy that decides what the learner does not, is not compiled, or
        with ``record=True``, the decisions are taken again, which takes as long as they did.

        Raises:
            SplitgymError: if the state is one of another kind of environment.

        Returns:
            the observation there.
        """
        self._batch.restore_state(0, state)
        self.np_random = self._batch.generators[0]
        self._history = None
        self._remember()
        return self._batch.observation(0)

    # --- parts --------------------------------------------------------------------------------------------------

    @property
    def _episode(self) -> Episode | None:
        return self._batch.episodes[0]

    def _remember(self) -> None:
        """Keep what pictures show."""
        if self.render_mode is None:
            return
        assert self._episode is not None
        engine = self._episode.engine
        if self._history is None:
            self._history = History(engine.meters(), engine.state())
        else:
            self._history.add(engine.meters(), engine.state())

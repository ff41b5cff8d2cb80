"""A batch: environments of one setting side by side, their steps in one call of compiled code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from operator import index
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium.error import ResetNeeded
from gymnasium.utils.seeding import np_random

from splitgym.envs.actions import role_changes
from splitgym.envs.episode import Episode, Roster
from splitgym.envs.observations import Arrays, Float32Array
from splitgym.envs.setting import Setting
from splitgym.envs.stepping import (
    BEGIN,
    ENDED,
    LEAVE,
    REFUSED,
    ROWS,
    SLOT,
    STEP,
    Outlook,
    decide_one,
    kernel_rows,
    look,
    note_one,
    step_all,
)
from splitgym.errors import SplitgymError
from splitgym.randomness import Streams
from splitgym.sim.cluster import Scenario
from splitgym.sim.compiled.engine import CompiledEngine, Snapshot
from splitgym.sim.compiled.kernel import Kernel
from splitgym.view import DECISION_KINDS, ClusterView, Decision

IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class EnvState:
    """An environment in the middle of an episode: its run copied, or the decisions that lead there again."""

    kind: str
    scenario: Scenario
    run: Snapshot | tuple[Decision, ...]
    memories: tuple[npt.NDArray[np.float64], ...]  # of the policies that are not the learner
    slot: npt.NDArray[np.void]  # (1,) SLOT
    shown: tuple[npt.NDArray[Any], ...] | None  # at the end of an episode, what the learner sees
    episode_number: int
    np_random: Mapping[str, Any]


class Batch:
    """Environments that differ in their seeds alone.

    Where the engine is compiled and so are the policies that decide what the learner does not, nothing is done in
    Python for each environment in a step. Else episodes are driven one by one, with the same results.

    Args:
        setting: of all.
        count: how many.
        threads: that compiled code may use, each for a share of the environments.

    Attributes:
        slots: (count,) SLOT, where each stands.
        outlook: what the learners see; overwritten by the next step.
        is_over: (count,) whose episode has ended.
        some_over: whether there is one.
        every: (count,) the numbers of all environments.
        generators: of each, draws the scenarios for which no seed is given.
        episode_numbers: how many episodes each has begun since its last seed.
    """

    def __init__(self, setting: Setting, count: int, threads: int = 1) -> None:
        for name, number in (("num_envs", count), ("threads", threads)):
            if isinstance(number, bool) or not isinstance(number, int) or number < 1:
                raise SplitgymError(f"{name}: {number!r}; give a whole number, at least 1")
        self.setting = setting
        self.count = count
        self.every: IntArray = np.arange(count)
        self.slots: npt.NDArray[np.void] = np.zeros(count, SLOT)
        self.outlook = Outlook(setting.observer.blank(count), np.zeros((count, setting.actions.num_choices), np.bool_))
        self.is_over: BoolArray = np.ones(count, np.bool_)
        self.some_over = True
        self.generators = [np_random(None)[0] for _ in range(count)]
        self.episode_numbers = [0] * count
        self.episodes: list[Episode | None] = [None] * count
        self._begun = 0  # of them
        self._crews: list[tuple[Kernel, ...]] = [()] * count  # what `_table` points at must be kept
        self._rosters: list[Roster] = [setting.roster(env) for env in range(count)]
        num_machines = setting.cluster.num_machines
        self._new_roles: IntArray = np.full((count, num_machines), -1)
        self._no_roles: BoolArray = np.zeros((num_machines, 3), np.bool_)
        self._no_choices: IntArray = np.zeros((count, len(setting.actions.rules.sizes)), np.int64)
        self._orders: IntArray = np.full(count, LEAVE)
        self._table: IntArray = np.zeros((count, ROWS, 3), np.int64)
        self._is_compiled = (
            setting.engine == "compiled" and not setting.record and self._rosters[0].kernels() is not None
        )
        bounds = np.linspace(0, count, min(threads, count) + 1).astype(int).tolist()
        self._shares = list(pairwise(bounds))
        self._pool = ThreadPoolExecutor(len(self._shares)) if len(self._shares) > 1 else None

    @property
    def has_begun(self) -> bool:
        """Whether there is an episode everywhere."""
        return self._begun == self.count

    # --- episodes -----------------------------------------------------------------------------------------------

    def reset(
        self,
        envs: Sequence[int],
        seeds: Sequence[int | None],
        options: Mapping[str, Any] | None = None,
    ) -> None:
        """Begin an episode in each of ``envs``, with the seed of the same place or one drawn.

        Raises:
            SplitgymError: if an option is unknown, or a trace cannot be read.
        """
        for env, seed in zip(envs, seeds, strict=True):
            if seed is not None:
                try:
                    seed = index(seed)
                except TypeError:
                    raise SplitgymError(f"seed: {seed!r} is not a whole number") from None
                self.generators[env] = np_random(seed)[0]
                self.episode_numbers[env] = 0
            chosen = self._scenario_seed(env, seed)
            self.episode_numbers[env] += 1
            self._install(env, self.setting.scenario(chosen, options or {}))
            self.slots[env]["key"] = Streams(chosen, self.setting.split).key("invalid-actions") >> 1
        if len(envs):
            self._carry_on(np.array(envs, np.int64), BEGIN, self._no_choices)

    def step(self, envs: IntArray, choices: IntArray) -> None:
        """Let the learners of ``envs`` decide.

        Args:
            envs: their numbers; none of them is over.
            choices: (count, num_heads), of those that are not in ``envs`` too; see `Actions.parse`. What is put in the
                place of invalid ones is written there.

        Raises:
            SplitgymError: if a policy decides what is not permitted.
            ResetNeeded: if there are environments in which no episode has begun.
        """
        if not self.has_begun:
            raise ResetNeeded("no episode has begun: call reset() before step()")
        ended = self._carry_on(envs, STEP, choices)
        if ended:
            self.is_over[ended] = self.some_over = True

    def scorecard(self, env: int) -> dict[str, float]:
        """The scorecard of a run that is over; see `splitgym.metrics.scorecard`."""
        return self._episode(env).scorecard()

    def terminates(self, env: int) -> bool:
        """Whether the end of the episode is one of the work, not of a horizon."""
        return not self.slots[env]["ends_at_horizon"]

    # --- what is seen -------------------------------------------------------------------------------------------

    def observations(self) -> dict[str, Float32Array]:
        """A copy of what the learners see, (count, …) each."""
        return {name: values.copy() for name, values in zip(Arrays._fields, self.outlook.observations, strict=True)}

    def observation(self, env: int) -> dict[str, Float32Array]:
        """A copy of what the learner of ``env`` sees."""
        return {name: values[env].copy() for name, values in self.outlook.observations._asdict().items()}

    def info(self, env: int) -> dict[str, Any]:
        """What `splitgym.envs.ClusterEnv` says of itself beside the observation."""
        slot = self.slots[env]
        masks = self.masks(env)
        return {
            "time_s": float(slot["time_s"]),
            "dt_s": float(slot["dt_s"]),
            "decision_kind": DECISION_KINDS[slot["decision_kind"]],
            "invalid_actions": int(slot["invalid_actions"]),
            "action_mask": masks[0] if len(masks) == 1 else masks,
        }

    def masks(self, env: int | slice = slice(None)) -> tuple[npt.NDArray[np.int8], ...]:
        """A copy of what is valid, head by head, as ``action_space.sample(mask=…)`` demands; (count, …) for all."""
        valid = self.outlook.valid[env].copy().view(np.int8)
        return tuple(self.setting.actions.by_head(valid))

    def view(self, env: int) -> ClusterView | None:
        """What ``env``'s learner decides on; ``None`` where nothing is due."""
        return self._episode(env).engine.view() if self.slots[env]["is_due"] else None

    def suggested(self, env: int) -> Decision:
        """What the other policy would do in ``env`` at the arrival that is due."""
        slot = self.slots[env]
        return Decision(int(slot["suggested_prompt"]), int(slot["suggested_token"]))

    # --- going back ---------------------------------------------------------------------------------------------

    def clone_state(self, env: int) -> EnvState:
        """Where ``env`` stands, to come back to with `restore_state`, there or in an equal batch."""
        episode = self._episode(env)
        run: Snapshot | tuple[Decision, ...] = tuple(episode.decisions)
        if episode.waits:
            assert isinstance(episode.engine, CompiledEngine)
            run = episode.engine.clone_state()
        seen = (*self.outlook.observations, self.outlook.valid)
        return EnvState(
            self.setting.kind,
            episode.scenario,
            run,
            tuple(kernel.state.copy() for kernel in self._crews[env]),
            self.slots[env : env + 1].copy(),
            None if self.slots[env]["is_due"] else tuple(values[env].copy() for values in seen),
            self.episode_numbers[env],
            self.generators[env].bit_generator.state,
        )

    def restore_state(self, env: int, state: EnvState) -> None:
        """Go back to ``state``: by copying arrays, or, where a Python policy or engine takes part, by replay.

        Raises:
            SplitgymError: if it is one of another kind of environment.
        """
        self._check(state)
        episode = self.episodes[env]
        if episode is None or episode.scenario is not state.scenario or not episode.waits:
            episode = self._install(env, state.scenario)
        if isinstance(state.run, Snapshot):
            assert isinstance(episode.engine, CompiledEngine)
            episode.engine.restore_state(state.run)
            for kernel, saved in zip(self._crews[env], state.memories, strict=True):
                np.copyto(kernel.state, saved)
        else:
            for decision in state.run:
                episode.decide(decision)
        self.slots[env : env + 1] = state.slot
        self.is_over[env] = not state.slot["is_due"][0]
        self.some_over = bool(self.is_over.any())
        self.episode_numbers[env] = state.episode_number
        self.generators[env] = np.random.default_rng()
        self.generators[env].bit_generator.state = state.np_random
        self.slots[env]["seen"] = 0  # what is observed now may be anything
        look(self.slots, env, episode.engine.books.arrays, self.setting.rules, self.outlook)
        if state.shown is not None:  # following what was unfinished has moved the run on
            for values, saved in zip((*self.outlook.observations, self.outlook.valid), state.shown, strict=True):
                values[env] = saved

    def __reduce__(self) -> tuple[Any, ...]:
        """Copied or pickled as the states that it is in."""
        states = [None if self.episodes[env] is None else self.clone_state(env) for env in range(self.count)]
        return _rebuilt, (self.setting, self.count, len(self._shares), states)

    # --- parts --------------------------------------------------------------------------------------------------

    def _episode(self, env: int) -> Episode:
        episode = self.episodes[env]
        assert episode is not None
        return episode

    def _scenario_seed(self, env: int, seed: int | None) -> int:
        group = self.setting.arrival_group
        if group is not None:
            return Streams(group, self.setting.split).key(f"episode-{self.episode_numbers[env]}") >> 32
        return int(self.generators[env].integers(2**32)) if seed is None else seed

    def _kernels(self, env: int) -> tuple[Kernel, ...]:
        return (self._rosters[env].kernels() if self._is_compiled else None) or ()

    def _check(self, state: EnvState) -> None:
        machines, count = state.scenario.cluster.num_machines, self.setting.cluster.num_machines
        crew = self._crews[0]
        fits = state.kind == self.setting.kind and machines == count
        fits = fits and isinstance(state.run, Snapshot) == self._is_compiled
        if crew:
            fits = fits and [memory.size for memory in state.memories] == [kernel.state.size for kernel in crew]
        if not fits:
            raise SplitgymError(
                f"restore_state: the state of a {state.kind} environment with {machines} machines does not fit this "
                f"{self.setting.kind} environment with {count}; take it from one with the same arguments"
            )

    def _install(self, env: int, scenario: Scenario) -> Episode:
        """Put a run of ``scenario`` in the place of ``env``."""
        setting = self.setting
        episode = Episode(scenario, self._rosters[env], setting.record, setting.engine, waits=self._is_compiled)
        self._begun += self.episodes[env] is None
        self.episodes[env] = episode
        if self._is_compiled:
            assert isinstance(episode.engine, CompiledEngine)
            self._crews[env] = self._kernels(env)
            rows = [kernel_rows(kernel) for kernel in self._crews[env]]
            self._table[env] = np.concatenate([episode.engine.addresses, *rows])
        slot = self.slots[env]
        for name in SLOT.names or ():
            slot[name] = 0
        slot["masked"] = slot["suggested_prompt"] = slot["suggested_token"] = -1
        slot["warmup_s"] = scenario.warmup_s
        slot["ends_at_horizon"] = episode.ends_at_horizon
        slot["idle_kind"], slot["idle_prompt_tokens"], slot["idle_predicted"] = episode.shown_at_the_end
        self.is_over[env] = False  # where there is nothing to decide the first step says so
        self.some_over = bool(self.is_over.any())
        return episode

    def _carry_on(self, envs: IntArray, order: int, choices: IntArray) -> list[int]:
        """Run to the learners' next decisions; returns the environments in which there is none."""
        if not self._is_compiled:
            for env in envs.tolist():
                try:
                    self._carry_on_in_python(env, order, choices)
                except Exception:
                    self.is_over[env] = self.some_over = True
                    raise
            return [env for env in envs.tolist() if not self.slots["is_due"][env]]
        if envs is self.every:
            self._orders.fill(order)
        else:
            self._orders[envs] = order
        shared = self.setting.rules, choices, self._new_roles, self._no_roles, self.outlook
        arguments: tuple[Any, ...] = (self._orders, self._table, self.slots, *shared)
        if self._pool is None:
            remains = step_all(0, self.count, *arguments)
        else:
            shares = [self._pool.submit(step_all, *bounds, *arguments) for bounds in self._shares]
            outcomes = [share.result() for share in shares]
            remains = any(outcomes)
        if not remains:
            return []
        ended = np.flatnonzero(self._orders == ENDED).tolist()
        refused = np.flatnonzero(self._orders == REFUSED).tolist()
        self._orders[:] = LEAVE
        if refused:
            self.is_over[ended + refused] = self.some_over = True
            left = self._new_roles[refused[0]].copy()
            self._new_roles[refused] = -1
            self._refuse(refused[0], left)
        return ended

    def _carry_on_in_python(self, env: int, order: int, choices: IntArray) -> None:
        episode, slot, rules = self._episode(env), self.slots[env], self.setting.rules
        desk = episode.engine.books.arrays
        if order == STEP and episode.view is not None:
            new_roles = self._new_roles
            prompt, token = decide_one(self.slots, env, desk, rules, choices, self.outlook.valid, new_roles)
            decision = Decision(prompt, token, role_changes(new_roles[env]))
            new_roles[env] = -1
            episode.decide(decision)
        slot["is_due"] = episode.view is not None
        if episode.view is not None:
            slot["decision_kind"] = episode.view.kind
        suggested = episode.suggested
        slot["suggested_prompt"], slot["suggested_token"] = suggested.prompt_machine, suggested.token_machine
        note_one(self.slots, env, desk, rules, episode.engine.meters(), order == BEGIN)
        look(self.slots, env, desk, rules, self.outlook)

    def _refuse(self, env: int, new_roles: IntArray) -> None:
        """Say who decided what is not permitted, ``new_roles`` being the changes still to make."""
        slot = self.slots[env]
        named = int(slot["suggested_prompt"]), int(slot["suggested_token"])
        self._episode(env).refuse(Decision(*named, role_changes(new_roles)))

    def close(self) -> None:
        """Let go of the threads."""
        if self._pool is not None:
            self._pool.shutdown()


def _rebuilt(setting: Setting, count: int, threads: int, states: Sequence[EnvState | None]) -> Batch:
    batch = Batch(setting, count, threads)
    for env, state in enumerate(states):
        if state is not None:
            batch.restore_state(env, state)
    return batch

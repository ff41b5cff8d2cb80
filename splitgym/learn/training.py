"""Training, from a card to a run folder."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback, CallbackList
from stable_baselines3.common.logger import Logger
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from splitgym.cards import KINDS, Card, load_card
from splitgym.envs.setting import Setting
from splitgym.errors import SplitgymError, did_you_mean
from splitgym.folders import check_writable
from splitgym.learn import checkpoint, references
from splitgym.learn.agents import ALGORITHMS, Agent, Settings, default_settings, make_agent, network_of, use_threads
from splitgym.learn.callbacks import Bar, BetweenRollouts, BoardWriter, Evaluations
from splitgym.learn.evaluation import Scorecard, evaluate, mean_of
from splitgym.learn.learned import DECISION_MODES, LearnedPolicy, heads_of
from splitgym.learn.network import NETWORKS, Shape
from splitgym.learn.run_folder import RunConfig, RunFolder, Weights, card_digest, check_same, package_versions
from splitgym.learn.semi_markov import SemiMarkovBuffer, SemiMarkovCallback, SemiMarkovMaskableBuffer
from splitgym.learn.vec_env import SchedulingVecEnv

DEFAULT_STEPS = 131_072
DISCOUNTINGS = ("decision", "time")


@dataclass(frozen=True)
class EvaluationPlan:
    """How a run is watched while it learns. None of it changes what is learned.

    Attributes:
        every: decisions between two evaluations; 0 for none.
        seeds: validation seeds of each.
        final_seeds: validation seeds on which ``argmax`` or ``sample`` is chosen at the end; 0 leaves ``sample``.
        references: heuristics to draw beside, the kind's usual ones for ``None``, none for ``()``.
    """

    every: int = 16_384
    seeds: int = 4
    final_seeds: int = 10
    references: tuple[str, ...] | None = None


NO_EVALUATION = EvaluationPlan(every=0, seeds=0, final_seeds=0, references=())


def train(
    card: Card | str | Path,
    kind: str = "routing",
    algo: str = "maskable-ppo",
    steps: int = DEFAULT_STEPS,
    seed: int = 0,
    out: str | Path = "runs/run",
    *,
    network: str = "equivariant",
    resume: bool = False,
    num_envs: int = 16,
    reward: str | None = None,
    reward_scale: float = 0.02,
    other: str | None = None,
    environment: Mapping[str, Any] | None = None,
    settings: Settings | None = None,
    discounting: str = "decision",
    evaluation: EvaluationPlan | None = None,
    checkpoint_every: int = 16_384,
    threads: int = 1,
    progress: bool = True,
) -> Path:
    """Train a policy.

    The run folder holds ``run.yaml`` (what was trained, on what, how), ``policy.npz`` (the weights),
    ``checkpoint.pt`` (to resume from) and ``tb`` (for TensorBoard: the run itself, ``ref/splitwise`` and
    ``ref/best-heuristic``). A resumed run ends with the same weights as one that was never interrupted.

    Args:
        card: a shipped card's name, a card file's path, or a `Card`.
        kind: ``routing``, ``repurposing`` or ``joint``.
        algo: ``maskable-ppo``, ``ppo`` or ``dqn``.
        steps: decisions in all, rounded up to whole rollouts.
        seed: of the network, the draws and the training scenarios.
        out: the run folder; must not exist unless ``resume``.
        network: ``equivariant`` or ``mlp``.
        resume: go on with the run in ``out``, up to ``steps`` decisions in all.
        num_envs: environments side by side.
        reward: see `splitgym.envs.rewards`; the card's default for ``None``.
        reward_scale: multiplies the reward. The default keeps the values of an overloaded cluster near 1.
        other: the policy that decides what ``kind`` leaves open; the card's default for ``None``.
        environment: further arguments of `splitgym.envs.ClusterEnv`, ``{"heads": "prompt"}`` for example.
        settings: of the algorithm; see `PpoSettings` and `DqnSettings`.
        discounting: by ``decision``, or by ``time``: see `splitgym.learn.semi_markov`.
        evaluation: how it is watched while it learns.
        checkpoint_every: decisions between two checkpoints; there is always one at the end.
        threads: of torch.
        progress: show a progress bar on standard error.

    Returns:
        the run folder.

    Raises:
        SplitgymError: for arguments that do not fit, an ``out`` that exists or cannot be written, a resumed run that
            began with another card, kind, algorithm or seed. Nothing is written then.
    """
    _check("kind", kind, KINDS)
    _check("algo", algo, ALGORITHMS)
    _check("network", network, NETWORKS)
    _check("discounting", discounting, DISCOUNTINGS)
    for name, number in (("steps", steps), ("num_envs", num_envs), ("threads", threads)):
        if number < 1:
            raise SplitgymError(f"{name}: {number}; give at least 1")
    if seed < 0:
        raise SplitgymError(f"seed: {seed}; give 0 or more")
    settings = settings or default_settings(algo)  # type: ignore[arg-type]
    card = card if isinstance(card, Card) else load_card(card)
    folder = RunFolder(Path(out))
    stored = _look_at(folder, resume=resume)
    config = RunConfig(
        card=_name_of(card),
        card_digest=card_digest(card),
        kind=kind,
        algorithm=algo,
        network=network,
        seed=seed,
        reward=reward or card.defaults.reward,
        other=None if kind == "joint" else _other(card, other),
        environment=dict(environment or {}),
        num_machines=0,
        num_envs=num_envs,
        reward_scale=reward_scale,
        discounting=discounting,
        settings=asdict(settings),
        versions=package_versions(),
    )
    use_threads(threads)
    environments = _make_environments(card, config, settings)
    config = dataclasses.replace(config, num_machines=_space(environments)["machines"].shape[0])  # type: ignore[index]
    if stored is not None:
        check_same(folder, stored, config)
    return _Training(folder, card, config, settings, environments, steps, evaluation or EvaluationPlan()).run(
        resume=stored is not None, checkpoint_every=checkpoint_every, progress=progress
    )


class _Training:
    def __init__(
        self,
        folder: RunFolder,
        card: Card,
        config: RunConfig,
        settings: Settings,
        environments: SchedulingVecEnv,
        steps: int,
        plan: EvaluationPlan,
    ) -> None:
        self._folder, self._card, self._config, self._plan = folder, card, config, plan
        self._environments, self._steps = environments, steps
        heads = heads_of(config.kind, config.environment)
        plain = int(getattr(environments.action_space, "n", 0)) if heads == ("plain",) else 0
        buffer: dict[str, Any] = {}
        self._by_time: list[BaseCallback] = []
        if config.discounting == "time":
            maskable = config.algorithm == "maskable-ppo"
            buffer = {"buffer": SemiMarkovMaskableBuffer if maskable else SemiMarkovBuffer}
            self._by_time = [SemiMarkovCallback(_seconds_per_decision(card, config))]
        self._agent: Agent = make_agent(
            config.algorithm,  # type: ignore[arg-type]
            environments,
            network=config.network,
            shape=Shape.of(environments.observation_space, heads, plain),
            settings=settings,
            seed=config.seed,
            **buffer,
        )
        environments.seed(_first_scenario(config))

    def run(self, *, resume: bool, checkpoint_every: int, progress: bool) -> Path:
        """Train to the end and write the run folder."""
        folder, agent = self._folder, self._agent
        remembered: dict[str, Any] = {}
        if resume:
            remembered = checkpoint.restore(folder.checkpoint, agent, self._environments)
        else:
            folder.path.mkdir(parents=True, exist_ok=True)
            folder.write_config(self._config)
        writer = SummaryWriter(str(folder.board), purge_step=agent.num_timesteps)
        agent.set_logger(Logger(folder=None, output_formats=[BoardWriter(writer)]))
        evaluations = Evaluations(lambda mode: self._play(mode, range(self._plan.seeds)), writer)
        evaluating = BetweenRollouts(self._plan.every if self._plan.seeds else 0, evaluations)
        saving = BetweenRollouts(checkpoint_every, lambda step: self._save({"evaluating": evaluating.due}))
        saving.due = checkpoint_every
        if resume:
            evaluating.due = remembered["evaluating"]
            saving.due = (agent.num_timesteps // checkpoint_every + 1) * checkpoint_every if checkpoint_every else 0
        bar = Bar(self._steps, f"{self._config.card}, seed {self._config.seed}", evaluations, shown=progress)
        try:
            measured = self._measure()
            if agent.num_timesteps < self._steps:
                callbacks = CallbackList([*self._by_time, evaluating, saving, bar])
                remaining = self._steps - agent.num_timesteps
                agent.learn(remaining, callback=callbacks, reset_num_timesteps=not resume, log_interval=1)
            if measured:
                references.draw(folder.board, measured, agent.num_timesteps)
            self._save({"evaluating": evaluating.due})
            self._finish(evaluations, writer)
        finally:
            bar.stop()
            writer.close()
            self._environments.close()
        return folder.path

    def _weights(self) -> Weights:
        return {name: values.numpy().copy() for name, values in network_of(self._agent).state_dict().items()}

    def _play(self, mode: str, seeds: range) -> Scorecard:
        policy = LearnedPolicy("training", self._config, self._weights(), mode)  # type: ignore[arg-type]
        return mean_of(evaluate(self._card, policy, seeds, variant=self._config.environment))

    def _measure(self) -> dict[str, Scorecard]:
        names = self._plan.references
        if names is None:
            names = references.contenders(self._config.kind, self._config.other)
        if not names or not self._plan.seeds:
            return {}
        names = tuple(dict.fromkeys(("splitwise", *names)))
        measured = references.measure(self._card, names, range(self._plan.seeds), self._config.environment)
        references.draw(self._folder.board, measured, self._steps)
        return measured

    def _save(self, callbacks: dict[str, Any]) -> None:
        checkpoint.save(self._folder.checkpoint, self._agent, self._environments, callbacks)
        self._folder.write_weights(self._weights())

    def _finish(self, evaluations: Evaluations, writer: SummaryWriter) -> None:
        """Choose between ``argmax`` and ``sample``, and write what came out."""
        if self._plan.seeds and self._plan.every:
            evaluations(self._agent.num_timesteps)
        config = dataclasses.replace(self._config, decisions_taken=self._agent.num_timesteps)
        if self._plan.final_seeds:
            seeds = range(self._plan.final_seeds)
            validation: dict[str, float] = {mode: self._play(mode, seeds)["slowdown"] for mode in DECISION_MODES}
            chosen = min(validation, key=lambda mode: validation[mode])
            config = dataclasses.replace(config, decision=chosen, validation=validation)
        self._folder.write_config(config)
        settings = {
            "card": config.card,
            "policy": self._folder.path.resolve().name,
            "algorithm": config.algorithm,
            "reward": config.reward,
            "rate": str(config.environment.get("rate", "the card's")),
            "training seed": config.seed,
        }
        for summary in hparams(settings, {"eval/slowdown": 0.0}):  # type: ignore[no-untyped-call]
            cast(Any, writer.file_writer).add_summary(summary)


def _check(what: str, value: str, options: tuple[str, ...]) -> None:
    if value not in options:
        raise SplitgymError(f"{what}: unknown {value!r}{did_you_mean(value, options)}")


def _look_at(folder: RunFolder, *, resume: bool) -> RunConfig | None:
    """The stored configuration of a run to resume; ``None`` for a new one, which must find its place free."""
    path = folder.path
    if resume:
        stored = folder.config()
        check_writable(path)
        return stored
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise SplitgymError(f"{path}: exists already; give another out, or resume")
    check_writable(path)
    return None


def _make_environments(card: Card, config: RunConfig, settings: Settings) -> SchedulingVecEnv:
    arguments = dict(config.environment)
    for name in ("card", "kind", "reward", "reward_scale", "gamma", "split", "other"):
        if name in arguments:
            raise SplitgymError(f"environment: {name!r} is an argument of train() or fixed by it; leave it out")

    arguments |= {"kind": config.kind, "reward": config.reward, "gamma": settings.discount, "other": config.other}
    setting = Setting.of(card, arguments)
    if config.algorithm == "dqn" and not isinstance(setting.actions.space, spaces.Discrete):
        mend = (
            "train kind 'repurposing', or alternate the two halves"
            if config.kind == "joint"
            else "set heads='prompt' or 'token' (--heads prompt)"
        )
        raise SplitgymError(
            f"algo 'dqn' needs one choice at a time, {config.kind!r} has {setting.actions.space}; {mend}"
        )
    if config.algorithm == "dqn" and config.discounting == "time":
        raise SplitgymError("discounting 'time' is for ppo and maskable-ppo; give 'decision' with dqn")
    return SchedulingVecEnv(config.num_envs, setting, reward_scale=config.reward_scale, stagger=True)


def _space(environments: SchedulingVecEnv) -> spaces.Dict:
    space = environments.observation_space
    assert isinstance(space, spaces.Dict)
    return space


def _first_scenario(config: RunConfig) -> int:
    """The first environment's first scenario; later ones are drawn, and no two training seeds share any by plan."""
    return int(np.random.SeedSequence([config.seed]).generate_state(1)[0])


def _seconds_per_decision(card: Card, config: RunConfig) -> float:
    if config.kind == "repurposing":
        return card.episode.tick_s
    rate_rps = config.environment.get("rate") or card.workload.resolved(card.folder).mean_rate_rps
    at_prompt_ends = card.default_cluster.chooses_late and config.environment.get("heads", "both") == "both"
    per_second = float(rate_rps) * (1 + at_prompt_ends) + (1 / card.episode.tick_s if config.kind == "joint" else 0.0)
    return 1 / per_second


def _name_of(card: Card) -> str:
    """The name of a shipped card, the path of another."""
    from splitgym.shipped import shipped_folder

    shipped = card.folder.resolve() == shipped_folder("envs").resolve()
    return card.name if shipped else str(card.folder / f"{card.name}.yaml")


def _other(card: Card, other: str | None) -> str:
    """The other policy's name; a path, which is relative to the card, becomes one that works from anywhere."""
    name = other or card.defaults.other
    place = card.folder / name.partition(":")[0]
    return str(card.folder.resolve() / name) if "/" in name and place.exists() else name

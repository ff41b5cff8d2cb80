"""Datasets in Minari's format, made of a router's decision log: arrivals as the steps of kind routing."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from splitgym.errors import SplitgymError
from splitgym.export.observation import observe
from splitgym.machines import cached_profile
from splitgym.offline.logged import Logged, LoggedDecision
from splitgym.view import ARRIVAL

FloatArray = npt.NDArray[np.float64]

ANSWERED, CLIENT_GONE = 200, 499


@dataclass(frozen=True)
class Stretch:
    """Consecutive decisions of one router at arrivals, each with what it led to.

    Attributes:
        decisions: (num_decisions,) of them.
        rewards: (num_decisions,) from each decision to the next the reward `slowdown` of the environments, of all
            requests that were unfinished meanwhile and not divided by the expected arrivals; the last one's is 0.
        slowdowns: (num_decisions,) the slowdown of the request itself; NaN where this attempt was not answered.
    """

    decisions: tuple[LoggedDecision, ...]
    rewards: FloatArray
    slowdowns: FloatArray


def stretches(logged: Logged) -> list[Stretch]:
    """The decisions at arrivals, a stretch for each run of a router and each policy that decided in it.

    Raises:
        SplitgymError: if the log does not say against which machine slowdown is measured.
    """
    try:
        told = logged.told
        baseline = cached_profile(told["model"], told["baseline"], int(told["tensor_parallel"]))
        scale = float(told["time_scale"])
    except KeyError as error:
        raise SplitgymError(f"the log does not say its {error}; it was written by an older version") from None
    law = baseline.law
    found: list[Stretch] = []
    for run in _runs([one for one in logged.decisions if one.view.kind == ARRIVAL]):
        outcomes = _Outcomes(run, law.uncontended_s(*_lengths(run)), scale)
        passed = outcomes.weighted_s(np.array([one.view.time_s for one in run]))
        rewards = np.append(passed[:-1] - passed[1:], 0.0)
        begins = [0, *(n for n in range(1, len(run)) if run[n].policy != run[n - 1].policy), len(run)]
        for begin, end in pairwise(begins):
            found.append(Stretch(tuple(run[begin:end]), rewards[begin:end], outcomes.slowdowns[begin:end]))
    return found


def make_dataset(logged: Logged, name: str, *, episode_decisions: int = 1000) -> Any:
    """A Minari dataset on this machine (`minari.load_dataset`): observations, actions and rewards of kind routing.

    An episode has at most ``episode_decisions`` decisions, one after the other; it is truncated, and its last
    observation is the next decision's. ``infos`` has for each observation ``propensity`` (of the decision taken there,
    NaN where unknown), ``time_s``, ``action_mask``, and of the request's attempt ``status``, ``attempt``, ``ttft_s``,
    ``e2e_s``, ``output_tokens``, ``slowdown``, ``by_fallback``, ``role_changes`` (their number).

    Args:
        logged: what was decided.
        name: the dataset's, such as ``router/mine-v0``.
        episode_decisions: ≥ 1.

    Returns:
        A `minari.MinariDataset`.

    Raises:
        SplitgymError: if Minari is not installed, the name is none or taken, or there are too few decisions.
    """
    minari = _minari()
    machines = len(logged.engines)
    buffers: list[Any] = []
    for stretch in stretches(logged):
        for begin in range(0, len(stretch.decisions) - 1, episode_decisions):
            end = min(begin + episode_decisions, len(stretch.decisions) - 1)
            buffers.append(_episode(minari, len(buffers), stretch, begin, end))
    if not buffers:
        raise SplitgymError("a dataset needs two decisions at arrivals, one after the other; the log has fewer")
    policies = sorted({one.policy for one in logged.decisions})
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # Minari asks for an author and an environment
            return minari.create_dataset_from_buffers(
                name,
                buffers,
                observation_space=_observation_space(observe(logged.decisions[0].view, machines)),
                action_space=spaces.MultiDiscrete([machines, machines]),
                algorithm_name=", ".join(policies),
                description="Decisions of a splitgym router at arrivals; reward: slowdown.",
                data_format="arrow",
            )
    except ValueError as error:
        raise SplitgymError(f"dataset {name!r}: {str(error).splitlines()[0]}") from None


def _minari() -> Any:
    try:
        return importlib.import_module("minari")
    except ImportError as error:
        raise SplitgymError(f"{error}; datasets need pip install 'splitgym[offline]'") from None


def _observation_space(example: dict[str, npt.NDArray[np.float32]]) -> spaces.Dict:
    return spaces.Dict({name: spaces.Box(0.0, 1.0, array.shape, np.float32) for name, array in example.items()})


def _episode(minari: Any, number: int, stretch: Stretch, begin: int, end: int) -> Any:
    """Decisions ``begin`` to ``end``; the last one only ends it."""
    seen = stretch.decisions[begin : end + 1]
    observations = [observe(one.view, one.view.num_machines) for one in seen]
    taken = seen[:-1]
    steps = len(taken)
    return minari.data_collector.EpisodeBuffer(
        id=number,
        observations={name: np.stack([one[name] for one in observations]) for name in observations[0]},
        actions=np.array([(one.decision.prompt_machine, one.decision.token_machine) for one in taken]),
        rewards=stretch.rewards[begin:end].tolist(),
        terminations=[False] * steps,
        truncations=[False] * (steps - 1) + [True],
        infos={
            "propensity": [np.nan if one.propensity is None else one.propensity for one in seen],
            "time_s": [one.view.time_s for one in seen],
            "action_mask": np.stack([np.concatenate([one.view.prompt_mask, one.view.token_mask]) for one in seen]),
            "status": [one.status for one in seen],
            "attempt": [one.attempt for one in seen],
            "ttft_s": [one.ttft_s for one in seen],
            "e2e_s": [one.e2e_s for one in seen],
            "output_tokens": [one.output_tokens for one in seen],
            "slowdown": stretch.slowdowns[begin : end + 1].tolist(),
            "by_fallback": [bool(one.fallback) for one in seen],
            "role_changes": [len(one.decision.role_changes) for one in seen],
        },
    )


# --- rewards --------------------------------------------------------------------------------------------------------


class _Outcomes:
    """What became of the requests of one run, in the view's seconds.

    A request that was never answered counts as unfinished to the end, as a failed one does in an environment; one whose
    client left, until then.
    """

    def __init__(self, run: Sequence[LoggedDecision], alone_s: tuple[FloatArray, FloatArray], scale: float) -> None:
        ttft_s, e2e_s = (scale * np.array([getattr(one, name) for one in run]) for name in ("ttft_s", "e2e_s"))
        alone_ttft_s, alone_e2e_s = alone_s
        answered = np.array([one.status == ANSWERED for one in run])
        several = alone_e2e_s > alone_ttft_s
        prompt_weight = np.where(several, 0.5, 1.0) / alone_ttft_s
        token_weight = np.where(several, 0.5 / np.where(several, alone_e2e_s - alone_ttft_s, 1.0), 0.0)
        self.slowdowns: FloatArray = np.where(
            answered, prompt_weight * ttft_s + token_weight * (e2e_s - ttft_s), np.nan
        )
        arrived_s = {one.request_id: one.view.time_s for one in reversed(run)}  # its first attempt's
        last = {one.request_id: number for number, one in enumerate(run)}
        changes: list[tuple[float, float]] = []  # (time, by how much the weight of all unfinished changes)
        for request, number in last.items():
            begin_s, weight = arrived_s[request], prompt_weight[number]
            changes.append((begin_s, weight))
            if np.isfinite(ttft_s[number]):
                changes.append((begin_s + ttft_s[number], token_weight[number] - weight))
                weight = token_weight[number]
            if run[number].status in (ANSWERED, CLIENT_GONE):
                changes.append((begin_s + e2e_s[number], -weight))
        self._changes = np.array(sorted(changes))  # (num_changes, 2)

    def weighted_s(self, times_s: FloatArray) -> FloatArray:
        """(num_times,) ∫ Σ over unfinished requests of their weight dt, up to each time."""
        at_s, by = self._changes.T
        weight = np.cumsum(by)
        reached = np.concatenate([[0.0], np.cumsum(weight[:-1] * np.diff(at_s))])
        place = np.searchsorted(at_s, times_s, side="right") - 1
        since = np.where(place >= 0, weight[place] * (times_s - at_s[place]), 0.0)
        return np.where(place >= 0, reached[place] + since, 0.0)


def _runs(decisions: Sequence[LoggedDecision]) -> list[list[LoggedDecision]]:
    """Decisions of the same router, whose time only grows."""
    runs: list[list[LoggedDecision]] = []
    for one in decisions:
        if not runs or one.view.time_s < runs[-1][-1].view.time_s:
            runs.append([])
        runs[-1].append(one)
    return runs


def _lengths(run: Sequence[LoggedDecision]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Prompt tokens; output tokens, predicted where there are none."""
    prompts = [int(one.view.of_request("prompt_tokens")) for one in run]
    outputs = [
        one.output_tokens if one.status == ANSWERED else max(round(one.view.of_request("predicted_output_tokens")), 1)
        for one in run
    ]
    return np.array(prompts), np.maximum(np.array(outputs), 1)

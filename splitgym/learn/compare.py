"""Compare policies on one card: every policy plays the same scenarios, at every rate, on every seed."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from splitgym.cards import Card, load_card
from splitgym.errors import SplitgymError
from splitgym.folders import check_writable
from splitgym.learn.entrants import Entrant, parse_entrants
from splitgym.learn.run_folder import write_whole
from splitgym.learn.verdicts import Verdict, judge, notes, sentences, tables
from splitgym.learn.watch import Watched, watch
from splitgym.metrics import scorecard
from splitgym.policies import Policy, make_policy
from splitgym.randomness import SPLITS
from splitgym.sim.cluster import Scenario
from splitgym.sim.run import DEFAULT_ENGINE, run

FloatArray = npt.NDArray[np.float64]
_Outcome = TypeVar("_Outcome")


@dataclass(frozen=True)
class Match:
    """One run: one policy on one scenario."""

    card: Card
    spec: str
    rate_rps: float | None  # the card's own for None
    seed: int
    split: str
    base_dir: Path | None
    engine: str

    def scenario(self) -> Scenario:
        """What is played; it does not depend on the policy."""
        return self.card.scenario(self.seed, self.split, rate_rps=self.rate_rps)

    def policies(self) -> tuple[Policy, Policy | None]:
        """The policy and who decides during warm-up, made for this run alone: nothing is left over from another."""
        warmup = self.card.defaults.warmup_policy
        return make_policy(self.spec, self.base_dir), None if warmup is None else make_policy(warmup, self.card.folder)


@dataclass(frozen=True)
class Comparison:
    """All scorecards of a comparison, and what follows from them.

    Attributes:
        card: the card's name.
        split: whose seeds were played.
        seeds: (num_seeds,) the seeds.
        rates: offered requests/s, or ``(None,)`` for the card's own.
        offered_rps: (num_rates,) counted arrivals per second, mean over seeds.
        entrants: who took part.
        scores: metric → policy → (num_rates, num_training_seeds, num_seeds).
        verdicts: one for each rate and policy, best first.
    """

    card: str
    split: str
    seeds: tuple[int, ...]
    rates: tuple[float | None, ...]
    offered_rps: tuple[float, ...]
    entrants: tuple[Entrant, ...]
    scores: dict[str, dict[str, FloatArray]]
    verdicts: tuple[Verdict, ...]

    def table(self) -> pa.Table:
        """One row for each run: ``card, policy, run, rate_rps, offered_rps, seed`` and every figure of the scorecard.

        ``run`` is the policy's specification: several for a policy with several training seeds. ``rate_rps`` is null
        where the card's own rate was played. Figures are float64; what no request gives is null.
        """
        keys: list[tuple[Any, ...]] = []
        for number, rate in enumerate(self.rates):
            for entrant in self.entrants:
                for spec in entrant.specs:
                    offered = self.offered_rps[number]
                    keys += [(self.card, entrant.name, spec, rate, offered, seed) for seed in self.seeds]
        names = ("card", "policy", "run", "rate_rps", "offered_rps", "seed")
        types = (pa.string(), pa.string(), pa.string(), pa.float64(), pa.float64(), pa.int64())
        columns: dict[str, pa.Array] = {
            name: pa.array(values, type_)
            for name, values, type_ in zip(names, zip(*keys, strict=True), types, strict=True)
        }
        for metric, by_policy in self.scores.items():
            played = (by_policy[e.name][number] for number in range(len(self.rates)) for e in self.entrants)
            values = np.concatenate([scores.ravel() for scores in played])
            columns[metric] = pa.array(values, pa.float64(), mask=np.isnan(values))
        return pa.table(columns)

    def to_dict(self) -> dict[str, Any]:
        """What ``--json`` prints: the table's figures with intervals, the notes and the sentences."""
        content = {
            "card": self.card,
            "split": self.split,
            "seeds": list(self.seeds),
            "policies": [
                {"name": entrant.name, "runs": list(entrant.specs), "kind": entrant.kind} for entrant in self.entrants
            ],
            "results": [verdict.to_dict() for verdict in self.verdicts],
            "notes": self.notes(),
            "findings": self.findings(),
        }
        return cast(dict[str, Any], _without_nan(content))

    def notes(self) -> list[str]:
        """How to read the figures."""
        return notes(len(self.seeds), self.entrants, self.verdicts)

    def findings(self) -> list[str]:
        """In plain words: who is best, and where each candidate loses."""
        return sentences(self.entrants, self.verdicts, len(self.seeds))

    def print(self, console: Console | None = None) -> None:
        """Print tables, notes and findings; a file or pipe gets lines of 116 characters."""
        console = console or Console()
        if not console.is_terminal:
            console.width = max(console.width, 116)
        for table in tables(self.card, self.split, len(self.seeds), self.verdicts):
            console.print(table)
        for line in self.notes():
            console.print(line, style="dim", markup=False, highlight=False)
        for line in self.findings():
            console.print("• " + line, markup=False, highlight=False)

    def write(self, folder: Path) -> None:
        """Write ``comparison.parquet`` (see `table`) and ``comparison.json`` (see `to_dict`)."""
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        write_whole(folder / "comparison.parquet", lambda file: pq.write_table(self.table(), file))
        write_whole(folder / "comparison.json", lambda file: file.write(text.encode()))


def compare(
    card: Card | str | Path,
    policies: Sequence[str] = (),
    rates: Sequence[float] | None = None,
    *,
    seeds: int = 20,
    split: str = "test",
    logdir: Path | None = None,
    out: Path | None = None,
    jobs: int = 1,
    progress: bool = False,
    base_dir: Path | None = None,
    engine: str = DEFAULT_ENGINE,
) -> Comparison:
    """Play every policy at every rate on the same seeds, and say who is better by how much.

    Args:
        card: a card, its name or its path.
        policies: see `splitgym.learn.entrants.parse_entrants`; all shipped heuristics where there is none.
        rates: offered requests/s; the card's own for ``None``.
        seeds: how many: 0, 1, … of ``split``. Ten or more give intervals worth reading.
        split: ``train``, ``val`` or ``test``.
        logdir: where TensorBoard is to find the charts (needs the ``[learn]`` extra).
        out: folder for ``comparison.parquet`` and ``comparison.json``.
        jobs: processes. Their number changes no figure.
        progress: whether to show a bar on standard error.
        base_dir: where relative paths of policies begin; the working directory for ``None``.
        engine: a name of `splitgym.sim.run.ENGINES`.

    Raises:
        SplitgymError: for a card, policy, rate, split or folder that does not serve, before anything is played;
            for a policy that answers with what does not exist, when it does.
    """
    if not isinstance(card, Card):
        card = load_card(card)
    if seeds < 1 or jobs < 1:
        raise SplitgymError(f"compare: {seeds} seeds in {jobs} processes; give at least 1 of each")
    if split not in SPLITS:
        raise SplitgymError(f"split: unknown {split!r}; one of: {', '.join(SPLITS)}")
    chosen_rates: tuple[float | None, ...] = (None,) if not rates else tuple(sorted(set(rates)))
    entrants = parse_entrants(policies, base_dir)
    for rate in chosen_rates:
        card.scenario(0, split, rate_rps=rate)  # raises now if it cannot be had
    for folder in (out, logdir):
        if folder is not None:
            check_writable(folder)
    if logdir is not None:
        from splitgym.learn.event_file import require_tensorboard

        require_tensorboard()

    matches = [
        Match(card, spec, rate, seed, split, base_dir, engine)
        for rate in chosen_rates
        for seed in range(seeds)
        for entrant in entrants
        for spec in entrant.specs
    ]
    label = f"{card.name}: {len(entrants)} policies"
    cards = list(in_processes(_scores_of, matches, jobs, label if progress else None))
    comparison = _compare(card.name, split, seeds, chosen_rates, entrants, cards)
    if out is not None:
        comparison.write(out)
    if logdir is not None:
        from splitgym.learn.comparison_board import write_board

        label = f"{card.name}: one run each for pictures"
        shown_rate = chosen_rates[len(chosen_rates) // 2]
        shown = [Match(card, entrant.specs[0], shown_rate, 0, split, base_dir, engine) for entrant in entrants]
        runs = list(in_processes(_watch, shown, jobs, label if progress else None))
        watched = {entrant.name: run for entrant, run in zip(entrants, runs, strict=True)}
        write_board(logdir, comparison, watched, shown_rate, time.time(), base_dir)
    return comparison


def in_processes(
    function: Callable[[Match], _Outcome], matches: Sequence[Match], jobs: int, label: str | None
) -> Iterator[_Outcome]:
    """``function`` of every match, in order, with a progress bar where there is a label."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=Console(stderr=True), disable=label is None)
    with bar:
        if jobs == 1:
            yield from bar.track(map(function, matches), total=len(matches), description=label or "")
            return
        with ProcessPoolExecutor(min(jobs, len(matches)), mp_context=get_context("spawn")) as pool:
            outcomes = pool.map(function, matches)  # closes the queue of what has not begun if one raises
            yield from bar.track(outcomes, total=len(matches), description=label or "")


def _scores_of(match: Match) -> dict[str, float]:
    scenario = match.scenario()
    policy, warmup_policy = match.policies()
    result = run(scenario, policy, warmup_policy=warmup_policy, engine=match.engine)
    counted_s = min(scenario.horizon_s, result.rows.end_s) - scenario.warmup_s
    counted = int(np.sum(result.rows.arrival_s >= scenario.warmup_s))
    offered = {"offered_rps": counted / counted_s if counted_s > 0 else 0.0}
    return offered | scorecard(result.rows, scenario, result.meters)


def _watch(match: Match) -> Watched:
    policy, warmup_policy = match.policies()
    return watch(match.scenario(), policy, warmup_policy=warmup_policy, engine=match.engine)


def _compare(
    card: str,
    split: str,
    seeds: int,
    rates: tuple[float | None, ...],
    entrants: list[Entrant],
    cards: list[dict[str, float]],
) -> Comparison:
    num_runs = sum(len(entrant.specs) for entrant in entrants)
    scores: dict[str, dict[str, FloatArray]] = {}
    for metric in cards[0]:
        cube = np.array([played[metric] for played in cards]).reshape(len(rates), seeds, num_runs)
        by_run = np.moveaxis(cube, 1, 2)  # (num_rates, num_runs, num_seeds)
        starts = np.cumsum([0] + [len(entrant.specs) for entrant in entrants])
        scores[metric] = {
            entrant.name: by_run[:, start:stop]
            for entrant, start, stop in zip(entrants, starts[:-1], starts[1:], strict=True)
        }
    offered = scores.pop("offered_rps")[entrants[0].name].mean(axis=(1, 2))
    offered_rps = tuple(float(rate) for rate in offered)
    verdicts = [
        verdict
        for number, rate in enumerate(rates)
        for verdict in judge(
            {metric: {name: runs[number] for name, runs in by_name.items()} for metric, by_name in scores.items()},
            entrants,
            rate_rps=rate,
            offered_rps=offered_rps[number],
        )
    ]
    return Comparison(card, split, tuple(range(seeds)), rates, offered_rps, tuple(entrants), scores, tuple(verdicts))


def _without_nan(value: Any) -> Any:
    """NaN becomes null: JSON has no NaN."""
    if isinstance(value, dict):
        return {key: _without_nan(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_without_nan(inner) for inner in value]
    return None if isinstance(value, float) and np.isnan(value) else value

"""What a comparison says: one verdict for each policy and rate, as figures, as a table and in plain words."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any

import numpy as np
import numpy.typing as npt
from rich import box
from rich.table import Table

from splitgym.learn.entrants import REFERENCE, Entrant, EntrantKind
from splitgym.learn.statistics import (
    Bootstrap,
    Estimate,
    best_of,
    mean,
    normalised_score,
    paired_difference,
    regret,
    wins_and_losses,
)

FloatArray = npt.NDArray[np.float64]

RANKED_BY = "slowdown"
RANDOM = "random"
ENOUGH_SEEDS = 10


@dataclass(frozen=True)
class Figure:
    """A metric that tables and charts show."""

    metric: str
    label: str
    unit: str = ""
    digits: int = 2
    factor: float = 1.0  # from the metric's unit to the one shown

    @property
    def higher_is_better(self) -> bool:
        """Whether more of it is better."""
        return self.metric in ("slo_met", "slo_fraction", "goodput_rps", "completed_fraction")

    def show(self, value: float) -> str:
        """``value`` in the unit shown."""
        return "–" if np.isnan(value) else f"{value * self.factor:,.{self.digits}f}"


FIGURES = (
    Figure("slowdown", "slowdown", digits=3),
    Figure("ttft_p90_s", "TTFT P90", "s"),
    Figure("ttft_p99_s", "TTFT P99", "s"),
    Figure("tbt_p90_s", "TBT P90", "ms", 1, 1e3),
    Figure("tbt_p99_s", "TBT P99", "ms", 1, 1e3),
    Figure("slo_met", "SLOs met", "%", 0, 100),
    Figure("goodput_rps", "goodput", "req/s"),
)
"""The figures of the table, ranked by the first."""


@dataclass(frozen=True)
class Verdict:
    """One policy at one rate.

    Attributes:
        policy: its name.
        kind: heuristic, oracle or candidate.
        rate_rps: offered requests/s; ``None`` for the card's own.
        offered_rps: counted arrivals per second, mean over seeds.
        best_heuristic: by mean slowdown at this rate.
        means: metric → mean over seeds, with interval.
        to_reference: metric → how much it exceeds Splitwise on the same seeds.
        to_best: metric → how much it exceeds ``best_heuristic`` on the same seeds, that choice taken as given.
        regret: slowdown above the best heuristic's, each resample choosing its own best.
        score: (random − x)/(random − best heuristic) in slowdown; ``None`` without ``random``.
        wins: test seeds on which its slowdown is below the best heuristic's.
        losses: test seeds on which it is above.
    """

    policy: str
    kind: EntrantKind
    rate_rps: float | None
    offered_rps: float
    best_heuristic: str
    means: dict[str, Estimate]
    to_reference: dict[str, Estimate]
    to_best: dict[str, Estimate]
    regret: Estimate
    score: Estimate | None
    wins: int
    losses: int

    @property
    def at(self) -> str:
        """``at 60 requests/s``."""
        if self.rate_rps is None:
            return f"at the card's own rate ({self.offered_rps:.3g} requests/s)"
        return f"at {self.rate_rps:g} requests/s"

    def to_dict(self) -> dict[str, Any]:
        """The same as plain data."""
        return asdict(self)


def judge(
    scores: Mapping[str, Mapping[str, FloatArray]],
    entrants: Sequence[Entrant],
    *,
    rate_rps: float | None,
    offered_rps: float,
) -> list[Verdict]:
    """Verdicts at one rate, lowest slowdown first.

    Args:
        scores: metric → policy → (num_training_seeds, num_seeds).
        entrants: who took part, `REFERENCE` among them.
        rate_rps: offered requests/s.
        offered_rps: the same as counted.
    """
    ranked = scores[RANKED_BY]
    heuristics = [entrant.name for entrant in entrants if entrant.kind == "heuristic"]
    best = best_of(ranked, heuristics)
    bootstrap = Bootstrap(next(iter(ranked.values())).shape[1])
    with_random = RANDOM in heuristics and len(heuristics) > 1
    verdicts = []
    for entrant in entrants:
        name = entrant.name
        wins, losses = wins_and_losses(ranked[name], ranked[best])
        verdicts.append(
            Verdict(
                policy=name,
                kind=entrant.kind,
                rate_rps=rate_rps,
                offered_rps=offered_rps,
                best_heuristic=best,
                means={metric: mean(by_name[name], name, bootstrap) for metric, by_name in scores.items()},
                to_reference={
                    figure.metric: paired_difference(scores[figure.metric], name, REFERENCE, bootstrap)
                    for figure in FIGURES
                },
                to_best={
                    figure.metric: paired_difference(scores[figure.metric], name, best, bootstrap) for figure in FIGURES
                },
                regret=regret(ranked, name, heuristics, bootstrap),
                score=normalised_score(ranked, name, RANDOM, heuristics, bootstrap) if with_random else None,
                wins=wins,
                losses=losses,
            )
        )
    return sorted(verdicts, key=lambda verdict: verdict.means[RANKED_BY].value)


def tables(card: str, split: str, num_seeds: int, verdicts: Sequence[Verdict]) -> list[Table]:
    """Two tables for each rate: who wins, and what the requests saw."""
    result = []
    for at, group in groupby(verdicts, key=lambda verdict: verdict.at):
        rows = list(group)
        seeds = f"{num_seeds} {split} seed" + "s" * (num_seeds != 1)
        title = f"{card} {at}, {seeds}; best heuristic: {rows[0].best_heuristic}"
        with_score = ("score",) if rows[0].score is not None else ()
        won = ("policy", RANKED_BY, f"vs {REFERENCE}", "regret", "won–lost", *with_score)
        result.append(_table(title, won, rows, _ranking_cells))
        seen = ("policy", *(f"{figure.label}{f', {figure.unit}' if figure.unit else ''}" for figure in FIGURES[1:]))
        result.append(_table(None, seen, rows, _figure_cells))
    return result


def _table(
    title: str | None, columns: Sequence[str], rows: Sequence[Verdict], cells: Callable[[Verdict], list[str]]
) -> Table:
    table = Table(title=title, title_justify="left", header_style="bold", box=box.SIMPLE_HEAD, padding=(0, 1))
    for column in columns:
        table.add_column(column, justify="left" if column == "policy" else "right", no_wrap=column == "policy")
    for verdict in rows:
        remark = " (oracle)" if verdict.kind == "oracle" else ""
        style = "bold" if verdict.policy == verdict.best_heuristic else "cyan" if verdict.kind == "candidate" else ""
        table.add_row(verdict.policy + remark, *cells(verdict), style=style)
    return table


def _ranking_cells(verdict: Verdict) -> list[str]:
    figure = FIGURES[0]
    to_reference = verdict.to_reference[figure.metric]
    return [
        figure.show(verdict.means[figure.metric].value),
        "" if verdict.policy == REFERENCE else shown(to_reference, figure),
        shown(verdict.regret, figure),
        "" if verdict.policy == verdict.best_heuristic else f"{verdict.wins}–{verdict.losses}",
        *(() if verdict.score is None else (_plain(verdict.score),)),
    ]


def _figure_cells(verdict: Verdict) -> list[str]:
    return [figure.show(verdict.means[figure.metric].value) for figure in FIGURES[1:]]


def shown(estimate: Estimate, figure: Figure) -> str:
    """``+0.12 [0.05, 0.20]`` in the figure's unit."""
    value, low, high = (bound * figure.factor for bound in (estimate.value, estimate.low, estimate.high))
    text = f"{value:+,.{figure.digits}f}"
    return text if np.isnan(low) else f"{text} [{low:,.{figure.digits}f}, {high:,.{figure.digits}f}]"


def _plain(estimate: Estimate) -> str:
    if np.isnan(estimate.value):
        return "–"
    return f"{estimate.value:.2f}" + ("" if np.isnan(estimate.low) else f" [{estimate.low:.2f}, {estimate.high:.2f}]")


def notes(num_seeds: int, entrants: Sequence[Entrant], verdicts: Sequence[Verdict]) -> list[str]:
    """How to read the table."""
    heuristics = sum(entrant.kind == "heuristic" for entrant in entrants)
    lines = [
        "Every policy saw the same requests. Differences are paired by seed; 95 % intervals by bootstrap over test "
        "seeds, and over training seeds where a policy has several, never over requests.",
        f"Regret is slowdown above the best of the {heuristics} heuristics compared; the best is chosen on the same "
        "seeds, and chosen anew in each resample. Won and lost count seeds against it.",
    ]
    if any(verdict.score is not None for verdict in verdicts):
        lines.append("Score: 0 is random routing, 1 the best heuristic.")
    if num_seeds < ENOUGH_SEEDS:
        seeds = "1 seed gives no interval" if num_seeds == 1 else f"{num_seeds} seeds are few"
        lines.append(f"Note: {seeds}; take at least {ENOUGH_SEEDS} before believing a difference.")
    lines += [f"Note: {e.name} has 2 training seeds; take at least 3." for e in entrants if len(e.specs) == 2]
    return lines


def sentences(entrants: Sequence[Entrant], verdicts: Sequence[Verdict], num_seeds: int) -> list[str]:
    """Who is best at each rate, and for each candidate where it loses to the best heuristic."""
    lines = []
    for at, group in groupby(verdicts, key=lambda verdict: verdict.at):
        best = next(verdict for verdict in group if verdict.policy == verdict.best_heuristic)
        lines.append(f"Best heuristic {at}: {best.policy}, slowdown {FIGURES[0].show(best.means[RANKED_BY].value)}.")
    for entrant in entrants:
        if entrant.kind == "candidate":
            lines += _of_candidate(entrant.name, [v for v in verdicts if v.policy == entrant.name], num_seeds)
    return lines


def _of_candidate(name: str, verdicts: Sequence[Verdict], num_seeds: int) -> list[str]:
    lines = []
    for verdict in verdicts:
        difference = verdict.to_best[RANKED_BY]
        word = "above" if difference.value > 0 else "below"
        size = f"{FIGURES[0].show(abs(difference.value))} {word} {verdict.best_heuristic}, the best heuristic"
        doubt = "" if difference.excludes_zero else ", a difference the seeds do not prove"
        lost = [
            f"{figure.label} {shown(verdict.to_best[figure.metric], figure)} {figure.unit}".rstrip()
            for figure in FIGURES
            if _is_loss(verdict.to_best[figure.metric], figure)
        ]
        loses = f"It loses to it on {', '.join(lost)}." if lost else "No figure of the table proves a loss to it."
        lines.append(
            f"{name} {verdict.at}: slowdown {FIGURES[0].show(verdict.means[RANKED_BY].value)}, {size}{doubt} "
            f"(worse on {verdict.losses} of {num_seeds} seeds). {loses}"
        )
    return lines


def _is_loss(difference: Estimate, figure: Figure) -> bool:
    worse = difference.value < 0 if figure.higher_is_better else difference.value > 0
    return worse and difference.excludes_zero

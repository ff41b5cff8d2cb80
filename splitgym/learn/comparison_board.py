"""A comparison in TensorBoard: charts over load, timelines of one run, pictures, the HParams table, the verdict.

Below the logdir each policy has one folder, and ``comparison`` holds what belongs to no policy. TensorBoard's x-axis
takes whole numbers only. In charts over load (``load/…``) it is requests/s where all rates are whole, else requests
per 10, 100 or 1,000 s, as each chart's description says; in timelines (``timeline/…``) it is simulated seconds.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import quote, urlencode

import numpy as np

from splitgym.learn import images
from splitgym.learn.compare import Comparison
from splitgym.learn.entrants import RESERVED, Entrant
from splitgym.learn.event_file import EventFile
from splitgym.learn.run_folder import CONFIG_FILE, RunFolder
from splitgym.learn.verdicts import FIGURES, Figure, shown
from splitgym.learn.watch import TIMELINE, Watched

INTERVALS = tuple(figure for figure in FIGURES if figure.metric != "slo_met")
"""The figures with a margin chart."""

HEADLINES = tuple(figure.metric for figure in FIGURES)
"""The metrics whose charts are ``load/…``; the rest of the scorecard is ``load_other/…``."""

PINNED = ("slowdown", "ttft_p99_s", "tbt_p90_s", "regret", "goodput_rps", "slo_met")


def write_board(
    logdir: Path,
    comparison: Comparison,
    watched: Mapping[str, Watched],
    shown_rate_rps: float | None,
    wall_time_s: float,
    base_dir: Path | None = None,
) -> None:
    """Write a comparison's folders below ``logdir``, each in place of an earlier one.

    Args:
        logdir: what ``tensorboard --logdir`` is given.
        comparison: the figures.
        watched: policy → its run on the first seed.
        shown_rate_rps: the rate of that run; the card's own for ``None``.
        wall_time_s: now, since 1970; TensorBoard shows it.
        base_dir: where relative paths of policies begin.
    """
    unit, per_rps = load_axis(comparison)
    rates = _rates(comparison)
    at = "the card's own rate" if shown_rate_rps is None else f"{shown_rate_rps:g} requests/s"
    scene = f"{comparison.card}, {at}, {comparison.split} seed {comparison.seeds[0]}"
    for entrant in comparison.entrants:
        file = EventFile(wall_time_s)
        file.hparams(_settings(entrant, comparison.card, rates[-1], base_dir), _hparam_metrics())
        _add_load(file, comparison, entrant.name, [round(rate * per_rps) for rate in rates], unit)
        _add_timeline(file, watched[entrant.name], scene)
        run = watched[entrant.name]
        cdfs = images.latency_cdfs(watched, f"{entrant.name}: latencies, {scene}", highlight=entrant.name)
        file.image("pictures/latency", *images.png(cdfs))
        file.image("pictures/machines", *images.png(images.gantt(run, f"{entrant.name}: machines, {scene}")))
        file.write(logdir / folder_name(entrant.name))
    common = EventFile(wall_time_s)
    common.text("comparison", _markdown(comparison, unit))
    common.image("pictures/latency", *images.png(images.latency_cdfs(watched, f"All policies: latencies, {scene}")))
    common.margin_charts(
        f"95 % intervals over seeds; x: {unit}",
        {_titled(figure): _tags(figure.metric) for figure in INTERVALS},
    )
    common.write(logdir / RESERVED)


def page(address: str = "http://localhost:6006") -> str:
    """TensorBoard's address for a comparison: the headline charts pinned, and no smoothing, which distorts them."""
    cards = [{"plugin": "scalars", "tag": f"load/{metric}"} for metric in PINNED]
    query = urlencode({"pinnedCards": json.dumps(cards, separators=(",", ":")), "smoothing": 0}, quote_via=quote)
    return f"{address}/?{query}#timeseries"


def load_axis(comparison: Comparison) -> tuple[str, int]:
    """The unit of the x-axis of charts over load, and its number of steps per request/s: 1, 10, 100 or 1000."""
    rates = _rates(comparison)
    per_rps = next((n for n in (1, 10, 100) if all(abs(rate * n - round(rate * n)) < 1e-9 for rate in rates)), 1000)
    return ("offered requests/s" if per_rps == 1 else f"offered requests per {per_rps} s"), per_rps


def _rates(comparison: Comparison) -> list[float]:
    """The offered rates; in tenths where it is the card's own, which is counted."""
    pairs = zip(comparison.rates, comparison.offered_rps, strict=True)
    return [round(offered, 1) if rate is None else rate for rate, offered in pairs]


def folder_name(policy: str) -> str:
    """The policy's name without what a folder's name should not have."""
    return re.sub(r"[^\w.+@=-]+", "_", policy).strip(".") or "_"


def _add_load(file: EventFile, comparison: Comparison, name: str, steps: Sequence[int], unit: str) -> None:
    verdicts = {verdict.rate_rps: verdict for verdict in comparison.verdicts if verdict.policy == name}
    for metric in comparison.scores:
        tag = f"load/{metric}" if metric in HEADLINES else f"load_other/{metric}"
        about = f"Mean over {len(comparison.seeds)} {comparison.split} seeds. x: {unit}."
        for step, rate in zip(steps, comparison.rates, strict=True):
            file.scalar(tag, step, verdicts[rate].means[metric].value, about)
    for step, rate in zip(steps, comparison.rates, strict=True):
        about = f"Slowdown above the best heuristic's on the same seeds. x: {unit}."
        file.scalar("load/regret", step, verdicts[rate].regret.value, about)
    for figure in INTERVALS:
        _, low_tag, high_tag = _tags(figure.metric)
        for step, rate in zip(steps, comparison.rates, strict=True):
            estimate = verdicts[rate].means[figure.metric]
            about = f"Bound of the 95 % interval. x: {unit}."
            if not np.isnan(estimate.low):
                file.scalar(low_tag, step, estimate.low, about)
                file.scalar(high_tag, step, estimate.high, about)


def _tags(metric: str) -> tuple[str, str, str]:
    return f"load/{metric}", f"load_interval/{metric}_low", f"load_interval/{metric}_high"


def _titled(figure: Figure) -> str:
    """The figure with the unit of its tag."""
    return figure.label + (", s" if figure.metric.endswith("_s") else "")


def _add_timeline(file: EventFile, run: Watched, scene: str) -> None:
    for name, text in TIMELINE.items():
        for time_s, value in zip(run.sample_s, run.timeline[name], strict=True):
            file.scalar(f"timeline/{name}", int(time_s), float(value), f"{text}. {scene}. x: simulated seconds.")


def _settings(entrant: Entrant, card: str, rate_rps: float, base_dir: Path | None) -> dict[str, str | float]:
    """A line of the HParams table. Its figures are those of the highest rate, the last point of each chart."""
    paths = [Path(spec) if base_dir is None else base_dir / spec for spec in entrant.specs]
    runs = [RunFolder(path).config() for path in paths if (path / CONFIG_FILE).is_file()]
    return {
        "card": card,
        "policy": entrant.name,
        "algorithm": ", ".join(dict.fromkeys(run.algorithm for run in runs)) or entrant.kind,
        "reward": ", ".join(dict.fromkeys(run.reward for run in runs)) or "none",
        "rate": rate_rps,
        "training seed": ", ".join(str(run.seed) for run in runs) or "none",
    }


def _hparam_metrics() -> dict[str, str]:
    return {f"load/{figure.metric}": figure.label for figure in FIGURES} | {"load/regret": "regret"}


def _markdown(comparison: Comparison, unit: str) -> str:
    """The verdict for TensorBoard's Text page."""
    lines = [f"# {comparison.card}", ""]
    lines += [f"- {finding}" for finding in comparison.findings()]
    units = [f"{figure.label}{f', {figure.unit}' if figure.unit else ''}" for figure in FIGURES[1:]]
    header = ["policy", "slowdown", "vs splitwise", "regret", "won–lost", *units]
    last = None
    for verdict in comparison.verdicts:
        if verdict.at != last:
            lines += ["", f"## A{verdict.at[1:]}", "", "|".join(header), "|".join("-" * len(header))]
            last = verdict.at
        name = f"**{verdict.policy}**" if verdict.policy == verdict.best_heuristic else verdict.policy
        cells = [name, FIGURES[0].show(verdict.means["slowdown"].value)]
        cells += [shown(verdict.to_reference["slowdown"], FIGURES[0]), shown(verdict.regret, FIGURES[0])]
        cells.append(f"{verdict.wins}–{verdict.losses}")
        cells += [figure.show(verdict.means[figure.metric].value) for figure in FIGURES[1:]]
        lines.append("|".join(cells))
    lines += ["", *(f"{note}  " for note in comparison.notes()), ""]
    lines.append(f"Charts: `load/…` over {unit}; `timeline/…` over simulated seconds, one seed.")
    lines.append("Margin charts under Custom Scalars; the HParams table shows the highest rate.")
    return "\n".join(lines)

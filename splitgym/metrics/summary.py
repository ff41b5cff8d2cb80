"""What a run was like: the nested `summary` of ``summary.json`` and the flat `scorecard` of an evaluation."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from splitgym.metrics.bill import JOULES_PER_KWH, cost_of, cost_usd, energy_of
from splitgym.metrics.charged import BoolArray, Charged, IntArray, charge
from splitgym.sim.cluster import Scenario, Slo
from splitgym.sim.ledger import Meters
from splitgym.sim.rows import STATUSES, RequestRows

FloatArray = npt.NDArray[np.float64]

LATENCIES = ("ttft", "tbt", "e2e")
PERCENTS = (50, 90, 99)
SLO_NAMES = tuple(f"{latency}_p{percent}" for latency in LATENCIES for percent in PERCENTS)
"""The nine objectives: slowdown of TTFT, TBT and E2E at P50, P90 and P99."""


def summary(rows: RequestRows, scenario: Scenario, meters: Meters | None) -> dict[str, Any]:
    """The content of ``summary.json``, all but ``wall_s``, which only the caller can know.

    Every figure but energy and cost is over the requests that arrived after warm-up, charged as in `Charged`;
    ``requests.arrived`` is their number and the sum of the other four. Energy and cost are the whole run's,
    warm-up and drain included. Times are in seconds. A figure that no request gives is None, and so is the
    energy without meters (the published simulator has none).

    Returns:
        ``requests {arrived, completed, failed, abandoned, in_flight}``; ``ttft_s``, ``tbt_s``, ``e2e_s`` and
        ``slowdown {ttft, tbt, e2e}``, each ``{mean, p50, p90, p99}``; ``slo {met, ttft_p50, …, e2e_p99}``,
        true or false; ``goodput_rps`` (see `goodput_rps`); ``energy_kwh``; ``cost_usd``; ``energy`` and ``cost``, what
        they were for (see `splitgym.metrics.bill`). Where there are classes,
        ``classes {name: {requests, kept, goodput_rps, ttft_s, tbt_s, e2e_s}}``, ``kept`` being the share of the class's
        requests that complete within what is promised.
    """
    return _summary(charge(rows, scenario), rows, scenario, meters)


def scorecard(rows: RequestRows, scenario: Scenario, meters: Meters | None) -> dict[str, float]:
    """One flat row of figures to compare policies by, whatever reward they were trained on.

    Returns:
        ``slowdown`` (the mean of `Charged.slowdown`); ``ttft_mean_s``, ``ttft_p50_s`` … ``e2e_p99_s``;
        ``ttft_slowdown_mean`` … ``e2e_slowdown_p99``; ``slo_met`` (1 if all nine hold) and ``slo_fraction``
        (of the nine); ``goodput_rps``, ``energy_kwh``, ``cost_usd``, ``completed_fraction``; ``energy_prompt_kwh`` …
        ``energy_per_output_token_j``, ``cost_per_request_usd``, ``cost_per_million_output_tokens_usd``; of each class
        ``class_<name>_kept``, ``class_<name>_goodput_rps`` and ``class_<name>_ttft_mean_s`` …
        ``class_<name>_e2e_p99_s``. NaN where no request gives one.
    """
    charged = charge(rows, scenario)
    full = _summary(charged, rows, scenario, meters)
    card: dict[str, float | None] = {"slowdown": _mean(charged.slowdown)}
    for name in LATENCIES:
        card |= {f"{name}_{statistic}_s": value for statistic, value in full[f"{name}_s"].items()}
        card |= {f"{name}_slowdown_{statistic}": value for statistic, value in full["slowdown"][name].items()}
    card |= {
        "slo_met": float(full["slo"]["met"]),
        "slo_fraction": sum(full["slo"][name] for name in SLO_NAMES) / len(SLO_NAMES),
        "goodput_rps": full["goodput_rps"],
        "energy_kwh": full["energy_kwh"],
        "cost_usd": full["cost_usd"],
        "completed_fraction": _mean(charged.completed.astype(np.float64)),
    }
    card |= {f"energy_{name}": value for name, value in full["energy"].items()}
    card |= {f"cost_{name}": value for name, value in full["cost"].items() if name != "per_hour_usd"}
    for name, figures in full.get("classes", {}).items():
        card |= {f"class_{name}_{figure}": figures[figure] for figure in ("kept", "goodput_rps")}
        for latency in LATENCIES:
            statistics = figures[f"{latency}_s"].items()
            card |= {f"class_{name}_{latency}_{statistic}_s": value for statistic, value in statistics}
    return {name: math.nan if value is None else float(value) for name, value in card.items()}


def goodput_rps(charged: Charged, scenario: Scenario, end_s: float) -> float:
    """Counted requests per second that complete with TTFT and TBT slowdowns within the card's P90 objectives.

    With classes, within what a request's own is promised. The seconds are those in which counted requests may arrive:
    from warm-up to the horizon, or to the run's end where there is no horizon. A one-token request has no TBT to miss.
    """
    return _per_second(charged.kept, scenario, end_s)


def _summary(charged: Charged, rows: RequestRows, scenario: Scenario, meters: Meters | None) -> dict[str, Any]:
    status = rows.status[rows.arrival_s >= scenario.warmup_s]
    counts = {name: int(np.sum(status == code)) for code, name in enumerate(STATUSES)}
    order = ("completed", "failed", "abandoned", "in_flight")
    slowdown = {name: _statistics(getattr(charged, f"{name}_slowdown")) for name in LATENCIES}
    objectives = _objectives(slowdown, scenario.cluster.slo)
    classes = charged.slo_class
    return {
        "requests": {"arrived": len(status)} | {name: counts[name] for name in order},
        **{f"{name}_s": _statistics(getattr(charged, f"{name}_s")) for name in LATENCIES},
        "slowdown": slowdown,
        "slo": {"met": all(objectives.values()), **objectives},
        "goodput_rps": goodput_rps(charged, scenario, rows.end_s),
        "energy_kwh": None if meters is None else meters.energy_j / JOULES_PER_KWH,
        "cost_usd": cost_usd(scenario, rows.end_s),
        "energy": energy_of(rows, meters),
        "cost": cost_of(rows, scenario),
        **({} if classes is None else {"classes": _classes(charged, classes, rows, scenario)}),
    }


def _classes(charged: Charged, slo_class: IntArray, rows: RequestRows, scenario: Scenario) -> dict[str, Any]:
    found = {}
    for number, name in enumerate(rows.class_names):
        here = slo_class == number
        found[name] = {
            "requests": int(here.sum()),
            "kept": _mean(charged.kept[here].astype(np.float64)),
            "goodput_rps": _per_second(charged.kept & here, scenario, rows.end_s),
            **{f"{latency}_s": _statistics(getattr(charged, f"{latency}_s")[here]) for latency in LATENCIES},
        }
    return found


def _per_second(these: BoolArray, scenario: Scenario, end_s: float) -> float:
    span_s = min(scenario.horizon_s, end_s) - scenario.warmup_s
    return float(np.sum(these)) / span_s if span_s > 0 else 0.0


def _objectives(slowdown: dict[str, dict[str, float | None]], slo: Slo) -> dict[str, bool]:
    objectives = {}
    for name in LATENCIES:
        for percent, bound in zip(PERCENTS, getattr(slo, name), strict=True):
            reached = slowdown[name][f"p{percent}"]
            # nobody there, nothing missed
            objectives[f"{name}_p{percent}"] = reached is None or reached <= bound
    return objectives


def _statistics(values: FloatArray) -> dict[str, float | None]:
    known = values[~np.isnan(values)]
    if len(known) == 0:
        return {"mean": None, **{f"p{percent}": None for percent in PERCENTS}}
    quantiles = np.percentile(known, PERCENTS)
    by_name = {f"p{percent}": float(q) for percent, q in zip(PERCENTS, quantiles, strict=True)}
    return {"mean": float(known.mean()), **by_name}


def _mean(values: FloatArray) -> float | None:
    return float(values.mean()) if len(values) else None

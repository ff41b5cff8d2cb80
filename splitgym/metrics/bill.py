"""What a run has drawn and cost, in all and for each request and token that came of it."""

from __future__ import annotations

import numpy as np

from splitgym.sim.cluster import Scenario
from splitgym.sim.ledger import Meters
from splitgym.sim.rows import COMPLETED, RequestRows

JOULES_PER_KWH = 3.6e6

Figures = dict[str, float | None]


def energy_of(rows: RequestRows, meters: Meters | None) -> Figures:
    """Energy by phase, and in all (idling included) for each completed request and each of their output tokens.

    The phases are those of `splitgym.sim.energy`; the three kWh sum to the run's energy. None without meters, or where
    nothing was completed.
    """
    kwh = {"prompt_kwh": None, "token_kwh": None, "idle_kwh": None} if meters is None else _by_phase_kwh(meters)
    return kwh | _each(rows, None if meters is None else meters.energy_j, "j")


def cost_usd(scenario: Scenario, end_s: float) -> float:
    """All machines, at their hourly cost, from the run's start to its end."""
    return _usd_per_hour(scenario) * end_s / 3600


def cost_of(rows: RequestRows, scenario: Scenario) -> Figures:
    """US dollars: of all machines for an hour, for each completed request and each million of their output tokens."""
    each = _each(rows, cost_usd(scenario, rows.end_s), "usd")
    per_token = each["per_output_token_usd"]
    return {
        "per_hour_usd": _usd_per_hour(scenario),
        "per_request_usd": each["per_request_usd"],
        "per_million_output_tokens_usd": None if per_token is None else 1e6 * per_token,
    }


def _usd_per_hour(scenario: Scenario) -> float:
    return sum(machine.profile.cost_usd_per_hour for machine in scenario.cluster.machines)


def _by_phase_kwh(meters: Meters) -> Figures:
    return {
        "prompt_kwh": meters.prompt_energy_j / JOULES_PER_KWH,
        "token_kwh": meters.token_energy_j / JOULES_PER_KWH,
        "idle_kwh": meters.idle_energy_j / JOULES_PER_KWH,
    }


def _each(rows: RequestRows, total: float | None, unit: str) -> Figures:
    completed = rows.status == COMPLETED
    requests, tokens = int(np.sum(completed)), int(np.sum(rows.output_tokens[completed]))
    return {
        f"per_request_{unit}": total / requests if total is not None and requests else None,
        f"per_output_token_{unit}": total / tokens if total is not None and requests else None,
    }

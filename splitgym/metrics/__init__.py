"""Metrics: what a run was like, from its request rows, whichever engine ran it."""

from splitgym.metrics.charged import Charged, charge
from splitgym.metrics.summary import SLO_NAMES, goodput_rps, scorecard, summary

__all__ = ["SLO_NAMES", "Charged", "charge", "goodput_rps", "scorecard", "summary"]

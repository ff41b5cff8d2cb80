"""Hardware: what a machine costs in time, memory, power and money."""

from splitgym.hardware.fit import fit_profile
from splitgym.hardware.latency import LAW_SIZE, LatencyLaw, iteration_s
from splitgym.hardware.law_fit import FitReport, PointFit, fit_law, report_fit
from splitgym.hardware.models import ModelSpec, model_spec
from splitgym.hardware.profile import (
    FitError,
    HardwareProfile,
    Provenance,
    ValidRange,
    list_profiles,
    load_profile,
    load_profile_file,
    profile_name,
)

__all__ = [
    "LAW_SIZE",
    "FitError",
    "FitReport",
    "HardwareProfile",
    "LatencyLaw",
    "ModelSpec",
    "PointFit",
    "Provenance",
    "ValidRange",
    "fit_law",
    "fit_profile",
    "iteration_s",
    "list_profiles",
    "load_profile",
    "load_profile_file",
    "model_spec",
    "profile_name",
    "report_fit",
]

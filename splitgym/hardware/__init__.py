"""Hardware: what a machine costs in time, memory, power and money."""

from splitgym.hardware.fit import fit_profile
from splitgym.hardware.latency import LAW_SIZE, LatencyLaw, iteration_s
from splitgym.hardware.law_fit import FitReport, PointFit, fit_law, report_fit
from splitgym.hardware.layer_calibration import fit_layer_profile
from splitgym.hardware.models import ModelSpec, model_spec
from splitgym.hardware.power import PowerLaw
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
from splitgym.hardware.uncertainty import LawUncertainty, drawn_law

__all__ = [
    "LAW_SIZE",
    "FitError",
    "FitReport",
    "HardwareProfile",
    "LatencyLaw",
    "LawUncertainty",
    "ModelSpec",
    "PointFit",
    "PowerLaw",
    "Provenance",
    "ValidRange",
    "drawn_law",
    "fit_law",
    "fit_layer_profile",
    "fit_profile",
    "iteration_s",
    "list_profiles",
    "load_profile",
    "load_profile_file",
    "model_spec",
    "profile_name",
    "report_fit",
]

"""What arrives: traces, arrival processes and token-length distributions."""

from splitgym.workload.base import Workload
from splitgym.workload.config import (
    MixturePart,
    MixtureWorkload,
    Phase,
    ShiftWorkload,
    SyntheticWorkload,
    TraceWorkload,
    WorkloadConfig,
)
from splitgym.workload.lengths import TabulatedLengths
from splitgym.workload.prediction import OutputPredictor, predict_output
from splitgym.workload.prefixes import Prefixes
from splitgym.workload.quality import Prediction
from splitgym.workload.requests import Requests
from splitgym.workload.shipped import list_traces, shipped_workload
from splitgym.workload.sources import Lengths
from splitgym.workload.traces import read_trace, write_trace

__all__ = [
    "Lengths",
    "MixturePart",
    "MixtureWorkload",
    "OutputPredictor",
    "Phase",
    "Prediction",
    "Prefixes",
    "Requests",
    "ShiftWorkload",
    "SyntheticWorkload",
    "TabulatedLengths",
    "TraceWorkload",
    "Workload",
    "WorkloadConfig",
    "list_traces",
    "predict_output",
    "read_trace",
    "shipped_workload",
    "write_trace",
]

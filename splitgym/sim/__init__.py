"""What happens: clusters, scenarios, and the engines that run them (docs/simulator.md)."""

from splitgym.sim.cluster import Batching, Cluster, Machine, Scenario, Slo, Transfer, VllmBatching
from splitgym.sim.ledger import Baseline, Meters, baseline_of
from splitgym.sim.recorder import Recorder
from splitgym.sim.reference import InvalidDecision, MachineState, ReferenceEngine
from splitgym.sim.rows import STATUSES, RequestRows
from splitgym.sim.run import RunResult, run, start

__all__ = [
    "STATUSES",
    "Baseline",
    "Batching",
    "Cluster",
    "InvalidDecision",
    "Machine",
    "MachineState",
    "Meters",
    "Recorder",
    "ReferenceEngine",
    "RequestRows",
    "RunResult",
    "Scenario",
    "Slo",
    "Transfer",
    "VllmBatching",
    "baseline_of",
    "run",
    "start",
]

"""What a router has decided, as data: its decision log read back, and datasets for offline learning made of it."""

from splitgym.offline.dataset import make_dataset
from splitgym.offline.logged import Logged, LoggedDecision, read_decision_log

__all__ = ["Logged", "LoggedDecision", "make_dataset", "read_decision_log"]

"""Environments: the Gymnasium face of a cluster. Importing `splitgym` registers one per card and kind."""

from splitgym.envs.cluster_env import ClusterEnv, EnvState
from splitgym.envs.rewards import TERMS as REWARDS
from splitgym.envs.wrappers import FlatObservation, MaskInObservation

__all__ = ["REWARDS", "ClusterEnv", "EnvState", "FlatObservation", "MaskInObservation"]

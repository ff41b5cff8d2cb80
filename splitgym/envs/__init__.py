"""Environments: the Gymnasium face of a cluster. Importing `splitgym` registers one per card and kind."""

from splitgym.envs.batch import EnvState
from splitgym.envs.cluster_env import ClusterEnv
from splitgym.envs.rewards import TERMS as REWARDS
from splitgym.envs.vector_env import ClusterVectorEnv
from splitgym.envs.wrappers import FlatObservation, MaskInObservation

__all__ = ["REWARDS", "ClusterEnv", "ClusterVectorEnv", "EnvState", "FlatObservation", "MaskInObservation"]

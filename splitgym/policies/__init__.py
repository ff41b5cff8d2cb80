"""Who decides: the Policy protocol, Splitwise, the other baselines, and policies from anywhere by name."""

from splitgym.policies.base import BasePolicy, Combined, Policy, PolicyKind
from splitgym.policies.compiled import Builtin, CompiledPolicy
from splitgym.policies.registry import BUILTINS, PolicyInfo, list_policies, make_policy
from splitgym.policies.static_split import StaticSplit, best_static_split
from splitgym.view import ClusterView, Decision

__all__ = [
    "BUILTINS",
    "BasePolicy",
    "Builtin",
    "ClusterView",
    "Combined",
    "CompiledPolicy",
    "Decision",
    "Policy",
    "PolicyInfo",
    "PolicyKind",
    "StaticSplit",
    "best_static_split",
    "list_policies",
    "make_policy",
]

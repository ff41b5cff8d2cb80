"""Heuristics in a manifest: by name and parameters, and back to the policies that decide so."""

from __future__ import annotations

from splitgym.errors import SplitgymError, did_you_mean
from splitgym.export.golden import Golden, mismatch
from splitgym.export.manifest import Rule, Rules
from splitgym.machines import cached_profile
from splitgym.policies import BUILTINS, Combined, CompiledPolicy, Policy
from splitgym.sim.cluster import Cluster, Machine


def rules_of(policy: Policy) -> Rules | None:
    """What to write down of ``policy``; ``None`` if it is not made of built-in heuristics alone."""
    if isinstance(policy, CompiledPolicy):
        return Rules(_rule_of(policy))
    if isinstance(policy, Combined):
        routing, pool = policy.routing, policy.pool
        if isinstance(routing, CompiledPolicy) and isinstance(pool, CompiledPolicy):
            return Rules(_rule_of(routing), _rule_of(pool))
    return None


def policy_of(rules: Rules, place: str) -> Policy:
    """The policy that ``rules`` describe, not yet reset.

    Raises:
        SplitgymError: if this version has no such heuristic or parameter.
    """
    routing = _policy_of(rules.routing, place)
    return routing if rules.pool is None else Combined(routing, _policy_of(rules.pool, place))


def replay(policy: Policy, golden: Golden, place: str) -> None:
    """Ask ``policy`` about the golden views, from its reset on.

    Raises:
        SplitgymError: if it decides otherwise than when it was exported.
    """
    policy.reset(cluster_of(golden), int(golden.seed[0]))
    for number in range(len(golden)):
        decision, meant = policy.decide(golden.view(number)), golden.decision(number)
        if decision != meant:
            raise mismatch(place, number, decision, meant)


def cluster_of(golden: Golden) -> Cluster:
    """A cluster with the golden views' roles; of machines, heuristics know what is in the view."""
    profile = cached_profile("llama2-70b", "h100-80gb", 8)
    return Cluster(tuple(Machine(int(role), profile) for role in golden.roles), profile.model, profile)


def _rule_of(policy: CompiledPolicy) -> Rule:
    return Rule(policy.builtin.name, policy.name, dict(policy.params))


def _policy_of(rule: Rule, place: str) -> CompiledPolicy:
    if rule.policy not in BUILTINS:
        raise SplitgymError(f"{place}: unknown heuristic {rule.policy!r}{did_you_mean(rule.policy, BUILTINS)}")
    try:
        policy = CompiledPolicy(BUILTINS[rule.policy], rule.params)
    except SplitgymError as error:
        raise SplitgymError(f"{place}: {error}") from None
    policy.name = rule.name
    return policy

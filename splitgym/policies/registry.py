"""All policies by name, and `make_policy`, which finds one wherever it lies."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import cast

from splitgym.errors import SplitgymError, did_you_mean
from splitgym.policies import pools, predictive, simple
from splitgym.policies import splitwise as _splitwise
from splitgym.policies.base import Combined, Policy, PolicyKind
from splitgym.policies.card import read_policy_card
from splitgym.policies.compiled import Builtin, CompiledPolicy
from splitgym.policies.oracles import Lookahead, OracleLength
from splitgym.policies.user import UserPolicy, policy_from_file
from splitgym.shipped import shipped_folder

ENTRY_POINTS = "splitgym.policies"
_INF = float("inf")
_SLO = {"ttft_slowdown": 3.0, "tbt_slowdown": 1.5}  # Splitwise's Table VI, P90


def _always(params: Mapping[str, float]) -> bool:
    return True


def _limits_tbt(params: Mapping[str, float]) -> bool:
    return params["tbt_slowdown"] < _INF


_BUILTINS = (
    Builtin("random", "routing", "uniformly drawn machines", simple.random),
    Builtin("round-robin", "routing", "machines in turn", simple.round_robin),
    Builtin("jsq-requests", "routing", "fewest requests assigned and unfinished", simple.jsq_requests),
    Builtin("jsq-tokens", "routing", "fewest pending tokens: prompts, and one per decode", simple.jsq_tokens),
    Builtin(
        "power-of-two",
        "routing",
        "of two drawn machines the one with fewer pending tokens",
        simple.power_of_two,
    ),
    Builtin("least-kv", "routing", "least share of KV memory booked", simple.least_kv),
    Builtin(
        "size-interval",
        "routing",
        "long prompts to the fastest machines, short ones to the others (SITA-E)",
        simple.size_interval,
        {"cutoff_tokens": 1024.0},
        _always,
    ),
    Builtin(
        "least-ttft",
        "routing",
        "least predicted TTFT among SLO-feasible machines (Mooncake's conductor)",
        predictive.least_ttft,
        _SLO,
        _always,
    ),
    Builtin("lmetric", "routing", "(new + queued prompt time) x batch size, least first", predictive.lmetric),
    Builtin(
        "fullest-feasible",
        "routing",
        "fullest machine that is still SLO-feasible (PolyServe)",
        predictive.fullest_feasible,
        _SLO,
        _always,
    ),
    Builtin("freeness", "routing", "freest memory per request in the batch (Llumnix)", predictive.freeness),
    Builtin("least-e2e", "routing", "least predicted E2E with the predicted length", predictive.least_e2e, {}, _always),
    Builtin(
        "splitwise",
        "both",
        "Splitwise's scheduler as published: two pools and a mixed pool",
        _splitwise.splitwise,
        {"prompt_threshold_tokens": 8192.0, "tbt_slowdown": _INF},
        _limits_tbt,
    ),
    Builtin(
        "splitwise-tuned",
        "both",
        "Splitwise's scheduler, token machines also overloaded by predicted TBT, thresholds tuned",
        _splitwise.splitwise,
        {"prompt_threshold_tokens": 4096.0, "tbt_slowdown": 1.25},
        _limits_tbt,
    ),
    Builtin("static", "pool", "roles stay as they are", pools.static),
    Builtin(
        "mixed-pool",
        "pool",
        "Splitwise's mixed pool, machines moved at ticks",
        _splitwise.mixed_pool,
        {"prompt_threshold_tokens": 8192.0, "kv_share": 0.95, "max_decodes": 64.0},
    ),
    Builtin(
        "threshold",
        "pool",
        "a pool above its high mark takes a machine from one under less pressure (Arrow, TokenScale)",
        pools.threshold,
        {"prompt_high_s": 0.3, "decodes_high": 48.0, "slack": 0.7, "utilisation": 0.8, "dwell_s": 10.0},
        _always,
    ),
    Builtin(
        "proportional",
        "pool",
        "pools in the ratio of prompt and output token rates of the last window",
        pools.proportional,
        {"headroom": 1.5, "dwell_s": 10.0},
    ),
    Builtin(
        "forecast",
        "pool",
        "pools in the ratio of the rates forecast by Holt's smoothing (DOPD)",
        pools.forecast,
        {"headroom": 1.5, "dwell_s": 10.0, "lead_s": 10.0},
    ),
)

BUILTINS = {builtin.name: builtin for builtin in _BUILTINS}
"""The compiled heuristics by name."""

_ORACLES: dict[str, tuple[type[OracleLength] | type[Lookahead], str]] = {
    "oracle-length": (OracleLength, "least-e2e knowing the true output length"),
    "oracle-lookahead": (Lookahead, "tries every pair of machines by simulation; small clusters only"),
}

POOL_ROUTING = "lmetric"
"""Who routes where a pool policy is named alone."""


@dataclass(frozen=True)
class PolicyInfo:
    """A line of `list_policies`."""

    name: str
    kind: PolicyKind
    text: str


def list_policies() -> list[PolicyInfo]:
    """Every policy that has a name: built-in ones, oracles, shipped cards, entry points."""
    infos = [PolicyInfo(builtin.name, builtin.kind, builtin.text) for builtin in _BUILTINS]
    infos += [PolicyInfo(name, "oracle", text) for name, (_, text) in _ORACLES.items()]
    known = {info.name for info in infos}
    for path in sorted(shipped_folder("policies").glob("*.yaml")):
        if path.stem not in known:
            infos.append(PolicyInfo(path.stem, "both", read_policy_card(path).description))
    infos += [PolicyInfo(entry.name, "both", entry.value) for entry in entry_points(group=ENTRY_POINTS)]
    return infos


def make_policy(spec: str, base_dir: Path | None = None) -> Policy:
    """The policy that ``spec`` names, not yet reset.

    Args:
        spec: a name of `list_policies` (a shipped card's parameters win over the built-in ones);
        ``routing+pool``;
            ``./mine.py:Mine``, a class in a file; a policy card, ``./mine.yaml``; the directory of a
            trained run; or a bundle, ``./mine.zip`` or its directory.
        base_dir: what relative paths are relative to; the working directory if ``None``.

    Raises:
        SplitgymError: if there is no such policy, or it cannot be loaded.
    """
    if "+" in spec and not _path(spec, base_dir).exists():
        routing, _, pool = spec.rpartition("+")
        if not routing or not pool:
            raise SplitgymError(f"policy {spec!r}: give both halves, routing+pool")
        return Combined(_make_one(routing, base_dir), _pool_half(pool, base_dir))
    policy = _make_one(spec, base_dir)
    if isinstance(policy, CompiledPolicy) and policy.builtin.kind == "pool":
        return Combined(_make_one(POOL_ROUTING, base_dir), policy)
    return policy


def _pool_half(spec: str, base_dir: Path | None) -> Policy:
    policy = _make_one(spec, base_dir)
    if isinstance(policy, CompiledPolicy) and policy.builtin.kind == "routing":
        pools_known = ", ".join(builtin.name for builtin in _BUILTINS if builtin.kind == "pool")
        raise SplitgymError(f"policy {spec!r} moves no machines; after '+' name one of: {pools_known}")
    return policy


def _make_one(spec: str, base_dir: Path | None) -> Policy:
    path_text, colon, class_name = spec.rpartition(":")
    if colon and path_text.endswith(".py"):
        return policy_from_file(_path(path_text, base_dir), class_name)
    if spec.endswith(".py"):
        raise SplitgymError(f"policy {spec!r}: name the class too, {spec}:ClassName")
    if spec.endswith((".yaml", ".yml")):
        return _from_card(_path(spec, base_dir))
    if spec.endswith(".zip"):
        return _bundle(_path(spec, base_dir))
    shipped = shipped_folder("policies") / f"{spec}.yaml"
    if spec and "/" not in spec and shipped.is_file():
        return _from_card(shipped)
    if spec in BUILTINS:
        return CompiledPolicy(BUILTINS[spec])
    if spec in _ORACLES:
        return _ORACLES[spec][0]()
    for entry in entry_points(group=ENTRY_POINTS):
        if entry.name == spec:
            return UserPolicy.of_class(entry.load(), f"entry point {entry.value}", spec)
    if spec and _path(spec, base_dir).is_dir():
        path = _path(spec, base_dir)
        return _bundle(path) if (path / "manifest.json").is_file() else _trained(path)
    if "/" in spec or spec.startswith("."):
        raise SplitgymError(f"policy {spec!r}: no such run directory, and no NAME.yaml or FILE.py:CLASS")
    raise SplitgymError(f"unknown policy {spec!r}{did_you_mean(spec, [info.name for info in list_policies()])}")


def _from_card(path: Path) -> Policy:
    card = read_policy_card(path)
    if card.policy not in BUILTINS:
        raise SplitgymError(f"{path}: policy: unknown {card.policy!r}{did_you_mean(card.policy, BUILTINS)}")
    try:
        policy = CompiledPolicy(BUILTINS[card.policy], card.params)
    except SplitgymError as error:
        raise SplitgymError(f"{path}: params: {error}") from None
    policy.name = path.stem
    return policy


def _trained(path: Path) -> Policy:
    """Imported by name at need: policies stand below learn, which needs torch."""
    try:
        learn = importlib.import_module("splitgym.learn")
        return cast(Policy, learn.load_policy(path))
    except ImportError as error:
        raise SplitgymError(f"policy {path}: {error}; a trained run needs pip install 'splitgym[learn]'") from error


def _bundle(path: Path) -> Policy:
    """Imported by name at need: export stands on policies."""
    return cast(Policy, importlib.import_module("splitgym.export").bundle_policy(path))


def _path(text: str, base_dir: Path | None) -> Path:
    path = Path(text).expanduser()
    return path if base_dir is None else base_dir / path

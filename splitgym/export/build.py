"""Export: a trained run or a heuristic becomes a bundle. Equal runs give equal bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from splitgym import __version__
from splitgym.cards import load_card
from splitgym.errors import SplitgymError
from splitgym.export.container import CARD, GOLDEN, MANIFEST, is_bundle, write_files
from splitgym.export.description import describe
from splitgym.export.golden import Golden
from splitgym.export.heuristics import policy_of, replay, rules_of
from splitgym.export.manifest import Manifest, Rules
from splitgym.export.recording import heuristic_golden
from splitgym.export.runtime import Bundle
from splitgym.export.trained import Built, RunExport
from splitgym.learn.run_folder import CONFIG_FILE
from splitgym.policies import BUILTINS, CompiledPolicy, make_policy
from splitgym.source import source_commit

FALLBACK = "jsq-tokens"
HEURISTICS_CARD = "Quickstart"
LARGEST_CLUSTER = 10_000
"""Machines, of what takes any number, unless told otherwise: as many as a group of a card may have."""


def export_policy(
    policy: str | Path,
    out: str | Path,
    *,
    decision: str | None = None,
    params: Mapping[str, float] | None = None,
    card: str | Path | None = None,
    other: str | None = None,
    fallback: str = FALLBACK,
    largest_cluster: int | None = None,
) -> Manifest:
    """Write the bundle of a policy. It is loaded before it is written: what cannot be loaded is not left behind.

    Args:
        policy: the folder of a trained run; a built-in heuristic, ``routing+pool``, or a policy card.
        out: a file that ends in ``.zip``, or a folder. A bundle that is there is replaced.
        decision: ``argmax`` or ``sample``, in place of what was chosen when the run was evaluated.
        params: of the heuristic, in place of its own.
        card: whose cluster the golden views are of; the run's own, `HEURISTICS_CARD` for a heuristic.
        other: the heuristic that decides what the run's half leaves open, in place of the run's own.
        fallback: the heuristic that is to decide when the policy fails.
        largest_cluster: machines the policy may be asked about.

    Returns:
        the manifest.

    Raises:
        SplitgymError: for a policy that cannot be exported, or arguments that do not fit it.
    """
    out, name = Path(out), str(policy)
    if is_bundle(Path(name)):
        raise SplitgymError(f"policy {name!r} is a bundle already; copy it")
    if largest_cluster is not None and not 1 <= largest_cluster <= LARGEST_CLUSTER:
        raise SplitgymError(f"largest cluster: {largest_cluster} machines; give 1 to {LARGEST_CLUSTER}")
    largest = largest_cluster or LARGEST_CLUSTER
    backup = _named(fallback, "fallback")
    if (Path(name) / CONFIG_FILE).is_file():
        if params:
            raise SplitgymError(f"params: {', '.join(params)}: {name!r} is a trained run and has none; leave them out")
        run = RunExport(Path(name), decision, card)
        manifest, files = run.build(_named(other, "other") if other else run.other(), backup, largest)
    else:
        for option, value in (("decision", decision), ("other", other)):
            if value is not None:
                raise SplitgymError(f"{option}: {value!r}: {name!r} is no trained run; leave it out")
        manifest, files = _heuristic(name, params or {}, card or HEURISTICS_CARD, backup, largest)
    manifest = replace(manifest, exported_by={"splitgym": __version__, "commit": source_commit()})
    files[CARD] = describe(manifest).encode()
    files[MANIFEST] = manifest.to_bytes(files)
    if manifest.heuristic is None:
        Bundle(files, str(out))
    else:
        replay(policy_of(manifest.heuristic, str(out)), Golden.of(files[GOLDEN], str(out)), str(out))
    write_files(out, files)
    return manifest


def _heuristic(spec: str, params: Mapping[str, float], card: str | Path, fallback: Rules, largest: int) -> Built:
    policy = make_policy(spec)
    if params:
        if not isinstance(policy, CompiledPolicy):
            raise SplitgymError(f"params: {spec!r} is not one heuristic; write parameters into a policy card")
        name = policy.name
        policy = CompiledPolicy(policy.builtin, {**policy.params, **params})
        policy.name = name
    rules = rules_of(policy)
    if rules is None:
        raise SplitgymError(
            f"policy {spec!r} cannot be exported: neither a trained run nor made of built-in heuristics; "
            "see splitgym list policies"
        )
    shown = load_card(card)
    kinds = {BUILTINS[rule.policy].kind for rule in (rules.routing, rules.pool) if rule is not None}
    decides = str(kinds.pop()) if len(kinds) == 1 else "both"
    manifest = Manifest(
        name=rules.text,
        decides=decides,
        network=None,
        heuristic=rules,
        other=None,
        fallback=fallback,
        smallest_cluster=1,
        largest_cluster=largest,
        cadence={"arrivals": True, "tick_s": None if decides == "routing" else shown.episode.tick_s},
    )
    return manifest, {GOLDEN: heuristic_golden(policy, shown).to_bytes()}


def _named(spec: str, what: str) -> Rules:
    rules = rules_of(make_policy(spec))
    if rules is None:
        raise SplitgymError(f"{what}: {spec!r} is not made of built-in heuristics; see splitgym list policies")
    return rules

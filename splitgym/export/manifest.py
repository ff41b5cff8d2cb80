"""``manifest.json``: what a bundle says of itself, and the checks that it is this version's and undamaged."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from splitgym.errors import SplitgymError
from splitgym.export import observation
from splitgym.export.actions import FORMS, MASKS, MEANING, MODES
from splitgym.export.container import MANIFEST, Files, sha256

FORMAT, VERSION = "splitgym-bundle", 1
TOLERANCE = 1e-4
"""How far a replayed score may be from the golden one."""

_AGAIN = "copy or export the bundle again"


@dataclass(frozen=True)
class Rule:
    """A built-in heuristic."""

    policy: str  # its name among the built-in ones
    name: str  # as shown; also the key of its draws
    params: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Rules:
    """One heuristic, or one that routes beside one that moves machines."""

    routing: Rule
    pool: Rule | None = None

    @property
    def text(self) -> str:
        """``lmetric+proportional``."""
        return self.routing.name if self.pool is None else f"{self.routing.name}+{self.pool.name}"


@dataclass(frozen=True)
class Network:
    """How the network in ``policy.onnx`` is asked.

    Attributes:
        architecture: ``equivariant`` or ``mlp``.
        form: what it chooses, one of `splitgym.export.actions.FORMS`.
        rows: of its input ``machines``, filled up with padding; ``None`` where it takes any number.
        decision: ``argmax`` or ``sample``, chosen at evaluation and to be obeyed.
    """

    architecture: str
    form: str
    rows: int | None
    decision: str


@dataclass(frozen=True)
class Manifest:
    """What a bundle says of itself.

    Attributes:
        name: of the policy, as shown.
        decides: ``routing``, ``repurposing`` (a heuristic's: ``pool``), ``joint`` (``both``).
        network: how to ask the network; ``None`` for a heuristic.
        heuristic: who decides where there is no network.
        other: who decides what the network's half leaves open, suggestions included; ``None`` if nothing is left.
        fallback: who decides when this policy fails.
        smallest_cluster: machines it can decide for, at least.
        largest_cluster: machines it can decide for, at most.
        cadence: when it decides: ``arrivals`` (bool), ``tick_s`` (seconds, or null).
        staleness_s: how old the reported features were where it was trained, at most, unless a scrape failed.
        trained: where it was trained: card, seed, versions, settings.
        evaluation: what it scored there.
        exported_by: version and commit of the splitgym that wrote the bundle.
    """

    name: str
    decides: str
    network: Network | None
    heuristic: Rules | None
    other: Rules | None
    fallback: Rules
    smallest_cluster: int
    largest_cluster: int
    cadence: Mapping[str, Any] = field(default_factory=dict)
    staleness_s: float = 0.0
    trained: Mapping[str, Any] = field(default_factory=dict)
    evaluation: Mapping[str, Any] = field(default_factory=dict)
    exported_by: Mapping[str, str] = field(default_factory=dict)

    def check_size(self, count: int) -> None:
        """Raise a `SplitgymError` for a cluster of a size that the policy cannot decide for."""
        if self.smallest_cluster <= count <= self.largest_cluster:
            return
        least, most = self.smallest_cluster, self.largest_cluster
        range_ = f"{least}" if least == most else f"{least} to {most}"
        raise SplitgymError(f"policy {self.name!r}: its bundle is for {range_} machines, here are {count}")

    def to_bytes(self, files: Files) -> bytes:
        """``manifest.json`` beside ``files``; equal contents give equal bytes."""
        content = {
            "format": FORMAT,
            "version": VERSION,
            **_plain(dataclasses.asdict(self)),
            "features": {
                "sha256": observation.table_digest(),
                "formula": observation.FORMULA,
                "inputs": list(observation.INPUTS),
                "table": observation.table(),
            },
            "actions": {"masks": MASKS, "meaning": MEANING},
            "golden_tolerance": TOLERANCE,
            "files": {name: sha256(content) for name, content in files.items()},
        }
        return _text(content | {"digest": sha256(_text(content))})

    @classmethod
    def of(cls, files: Files, place: str) -> Manifest:
        """The manifest among ``files``, if it and they are as they were written and fit this version.

        Raises:
            SplitgymError: saying what does not.
        """
        if MANIFEST not in files:
            raise SplitgymError(f"{place}: no {MANIFEST} there; name a bundle that splitgym export wrote")
        content = _checked(files[MANIFEST], place)
        if content.get("format") != FORMAT or content.get("version") != VERSION:
            found = f"{content.get('format')} {content.get('version')}"
            raise SplitgymError(f"{place}: {found}; this splitgym reads {FORMAT} {VERSION}: export the policy again")
        listed = content.get("files")
        others = {name: sha256(file) for name, file in files.items() if name != MANIFEST}
        if not isinstance(listed, dict) or listed != others:
            wrong = sorted(set(others.items()) ^ set(listed.items())) if isinstance(listed, dict) else [("files", "")]
            raise SplitgymError(f"{place}: {wrong[0][0]}: missing, or not what the manifest lists; {_AGAIN}")
        try:
            features, tolerance = content["features"]["sha256"], content["golden_tolerance"]
            manifest = cls._read(content)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise SplitgymError(f"{place}: {MANIFEST}: missing or ill-typed: {error}; export it again") from None
        if features != observation.table_digest() or tolerance != TOLERANCE:
            raise SplitgymError(
                f"{place}: features: its table has hash {str(features)[:12]}…, this splitgym's "
                f"{observation.table_digest()[:12]}…; export or train the policy again with this version"
            )
        return manifest

    @classmethod
    def _read(cls, content: Mapping[str, Any]) -> Manifest:
        network = None if content["network"] is None else Network(**content["network"])
        manifest = cls(
            name=str(content["name"]),
            decides=str(content["decides"]),
            network=network,
            heuristic=_rules(content["heuristic"]),
            other=_rules(content["other"]),
            fallback=_needed(_rules(content["fallback"]), "fallback"),
            smallest_cluster=int(content["smallest_cluster"]),
            largest_cluster=int(content["largest_cluster"]),
            cadence=dict(content["cadence"]),
            staleness_s=float(content["staleness_s"]),
            trained=dict(content["trained"]),
            evaluation=dict(content["evaluation"]),
            exported_by=dict(content.get("exported_by", {})),
        )
        if network is None:
            _needed(manifest.heuristic, "heuristic")
        elif network.form not in FORMS or network.decision not in MODES:
            raise ValueError(f"network {network.form!r} {network.decision!r}")
        elif network.rows is not None and not (
            isinstance(network.rows, int) and manifest.largest_cluster <= network.rows
        ):
            raise ValueError(f"largest_cluster {manifest.largest_cluster} of {network.rows!r} rows")
        return manifest


def _checked(text: bytes, place: str) -> dict[str, Any]:
    """The manifest's content, if not one byte of it has changed."""
    try:
        content = json.loads(text)
        digest = content.pop("digest")
        same = sha256(_text(content)) == digest and _text(content | {"digest": digest}) == text
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
        same = False
    if not same:
        raise SplitgymError(f"{place}: {MANIFEST}: damaged: it does not match its digest; {_AGAIN}")
    return dict(content)


def _rules(content: Mapping[str, Any] | None) -> Rules | None:
    if content is None:
        return None
    pool = content["pool"]
    return Rules(_rule(content["routing"]), None if pool is None else _rule(pool))


def _rule(content: Mapping[str, Any]) -> Rule:
    params = {str(name): float(value) for name, value in content["params"].items()}
    return Rule(str(content["policy"]), str(content["name"]), params)


def _needed(rules: Rules | None, what: str) -> Rules:
    if rules is None:
        raise ValueError(what)
    return rules


def _plain(value: Any) -> Any:
    """What JSON knows; infinities, which it does not, as ``"inf"``, which `float` reads."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _text(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()

"""Who takes part in a comparison: heuristics, oracles, and candidates with one or several training seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from splitgym.errors import SplitgymError
from splitgym.policies import list_policies, make_policy
from splitgym.policies.registry import BUILTINS
from splitgym.shipped import shipped_folder

EntrantKind = Literal["heuristic", "oracle", "candidate"]

ALL_HEURISTICS = "heuristics"
"""The name that stands for every shipped routing heuristic."""

REFERENCE = "splitwise"
"""Whom every policy is compared with, besides the best heuristic."""

RESERVED = "comparison"  # the folder of what belongs to no policy


@dataclass(frozen=True)
class Entrant:
    """One line of the comparison.

    Attributes:
        name: in tables, charts and folders.
        specs: what `make_policy` understands; several for one policy trained from several seeds.
        kind: a shipped ``heuristic``, an ``oracle``, or a ``candidate``: whatever else is put to the test.
    """

    name: str
    specs: tuple[str, ...]
    kind: EntrantKind


def parse_entrants(policies: Sequence[str], base_dir: Path | None = None) -> list[Entrant]:
    """Read ``spec``, ``name=spec`` or ``name=spec,spec`` (training seeds of one policy), and make each policy once.

    Every shipped routing heuristic stands behind ``heuristics``, and behind no policy at all. `REFERENCE` is added
    where it is missing.

    Raises:
        SplitgymError: for a policy that does not exist or cannot be made, and for two of one name.
    """
    entrants: dict[str, Entrant] = {}
    for text in policies or [ALL_HEURISTICS]:
        expanded = shipped_heuristics() if text == ALL_HEURISTICS else [text]
        for entrant in map(_parse, expanded):
            if text == ALL_HEURISTICS and entrant.name in entrants:
                continue
            if entrant.name in entrants or entrant.name == RESERVED:
                specs = ",".join(entrant.specs)
                raise SplitgymError(f"policies: more than one is called {entrant.name!r}; name it, as in other={specs}")
            entrants[entrant.name] = entrant
    if REFERENCE not in entrants:
        entrants[REFERENCE] = _parse(REFERENCE)
    for entrant in entrants.values():
        for spec in entrant.specs:
            make_policy(spec, base_dir)
    return list(entrants.values())


def shipped_heuristics() -> list[str]:
    """Names of the shipped policies that route requests and are no oracles."""
    return [info.name for info in list_policies() if info.kind in ("routing", "both") and _shipped(info.name)]


def _parse(text: str) -> Entrant:
    name, equals, listed = text.partition("=")
    specs = tuple(spec.strip() for spec in listed.split(",")) if equals else (text,)
    if not all(specs) or (equals and not name.strip()):
        raise SplitgymError(f"policies: {text!r} names nothing; write NAME=SPEC or NAME=SPEC,SPEC")
    return Entrant(name.strip() if equals else _short_name(text), specs, _kind(specs))


def _short_name(spec: str) -> str:
    """``Mine`` for ``./mine.py:Mine``, ``x`` for ``runs/x``, anything else as it is."""
    file, colon, attribute = spec.rpartition(":")
    if colon and file.endswith(".py"):
        return attribute
    return Path(spec).name if "/" in spec else spec


def _kind(specs: tuple[str, ...]) -> EntrantKind:
    oracles = {info.name for info in list_policies() if info.kind == "oracle"}
    parts = [part for spec in specs for part in spec.split("+")]
    if any(part in oracles for part in parts):
        return "oracle"
    return "heuristic" if all(map(_shipped, parts)) else "candidate"


def _shipped(name: str) -> bool:
    return name in BUILTINS or ("/" not in name and (shipped_folder("policies") / f"{name}.yaml").is_file())

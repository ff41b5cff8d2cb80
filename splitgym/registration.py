"""Gym ids: one for each shipped card and kind, and one for any card by its path."""

from __future__ import annotations

import re

import gymnasium

from splitgym.shipped import shipped_folder

ENTRY_POINT = "splitgym.envs:ClusterEnv"
VECTOR_ENTRY_POINT = "splitgym.envs:ClusterVectorEnv"
KINDS = ("routing", "repurposing", "joint")


def register_envs() -> None:
    """Register ``splitgym/<Card>-<Kind>-v<version>`` for every shipped card, and ``splitgym/Cluster-v0``.

    File names are all that is read. The version is a file name's ending (``Toy-v1.yaml``), 0 without one. A file whose
    name cannot be part of an id is left out; ``splitgym/Cluster-v0`` still plays it.
    """
    _register("splitgym/Cluster-v0", {})
    for path in sorted(shipped_folder("envs").glob("*.yaml")):
        match = re.fullmatch(r"([\w.-]+?)(?:-v(\d+))?", path.stem)
        if match is None:
            continue
        for kind in KINDS:
            name = f"splitgym/{match[1]}-{kind.capitalize()}-v{match[2] or 0}"
            _register(name, {"card": path.stem, "kind": kind})


def _register(name: str, kwargs: dict[str, str]) -> None:
    if name not in gymnasium.registry:
        gymnasium.register(name, entry_point=ENTRY_POINT, vector_entry_point=VECTOR_ENTRY_POINT, kwargs=kwargs)

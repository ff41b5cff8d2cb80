"""Policy cards: a built-in policy and its parameters, as YAML."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from splitgym.errors import SplitgymError, did_you_mean

_FIELDS = ("description", "policy", "params")


@dataclass(frozen=True)
class PolicyCard:
    """What a card says: ``policy`` is a built-in one's name, ``params`` what differs from its defaults."""

    policy: str
    description: str = ""
    params: dict[str, float] = field(default_factory=dict)


def read_policy_card(path: Path) -> PolicyCard:
    """Read a card.

    Raises:
        SplitgymError: if the file is missing, no YAML, or has an unknown, missing or ill-typed field.
    """
    try:
        data: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SplitgymError(f"{path}: {error.strerror or error}; name a policy card that can be read") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SplitgymError(f"{path}: not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(data, dict):
        raise SplitgymError(f"{path}: a policy card needs the fields {', '.join(_FIELDS)}")
    for name in data:
        if name not in _FIELDS:
            raise SplitgymError(f"{path}: unknown field {name!r}{did_you_mean(str(name), _FIELDS)}")
    policy, description, params = data.get("policy"), data.get("description", ""), data.get("params") or {}
    if not isinstance(policy, str):
        raise SplitgymError(f"{path}: policy: {policy!r}; name a built-in policy, such as splitwise")
    if not isinstance(description, str):
        raise SplitgymError(f"{path}: description: {description!r}; give one line of text")
    if not isinstance(params, dict):
        raise SplitgymError(f"{path}: params: {params!r}; give NAME: NUMBER pairs")
    return PolicyCard(policy, description, params)

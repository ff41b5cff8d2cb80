"""Which version of the source runs: what runs and bundles say of where they come from."""

from __future__ import annotations

import json
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

UNKNOWN = "unknown"


@cache
def source_commit() -> str:
    """The commit of a checkout, with ``-dirty`` where files differ from it, or the one that pip installed from.

    ``unknown`` where neither is recorded, as in a wheel from an index: then the version says it.
    """
    checkout = Path(__file__).resolve().parents[1]
    if (checkout / ".git").exists():
        command = ["git", "-C", str(checkout), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        try:
            said = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
        except (OSError, subprocess.SubprocessError):
            return UNKNOWN
        return said or UNKNOWN
    try:  # PEP 610
        origin = json.loads(distribution("splitgym").read_text("direct_url.json") or "{}")
    except (PackageNotFoundError, ValueError):
        return UNKNOWN
    return str(origin.get("vcs_info", {}).get("commit_id", UNKNOWN))

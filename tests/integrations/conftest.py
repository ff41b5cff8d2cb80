"""A router's YAML file for the plugins."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.export.conftest import bundle_of, run_of  # noqa: F401  # fixtures

ConfigFile = Callable[..., str]

MIXED_ENGINES = (("one", "mixed"), ("two", "mixed"), ("three", "mixed"))
SPLIT_ENGINES = (("p1", "prompt"), ("p2", "prompt"), ("d1", "token"), ("d2", "token"))


@pytest.fixture
def config_file(tmp_path: Path) -> ConfigFile:
    """Writes one; engines are at 10.0.0.N:8000."""

    def write(policy: str = "jsq-requests", engines: tuple[tuple[str, str], ...] = MIXED_ENGINES) -> str:
        rows = [
            {"name": name, "url": f"http://10.0.0.{number}:8000", "role": role, "hardware": "h100-80gb"}
            for number, (name, role) in enumerate(engines, 1)
        ]
        protocol = "vllm-nixl" if engines is SPLIT_ENGINES else "plain"
        path = tmp_path / "router.yaml"
        content = {"model": "llama2-70b", "protocol": protocol, "engines": rows, "policy": {"name": policy}}
        path.write_text(yaml.safe_dump(content), "utf-8")
        return str(path)

    return write

"""The example of the documentation works."""

from __future__ import annotations

import re
from pathlib import Path

from splitgym.router import Router, read_config

PAGE = Path(__file__).resolve().parents[2] / "docs" / "router.md"


def test_example_makes_a_router(tmp_path: Path) -> None:
    text = PAGE.read_text("utf-8")
    example = re.search(r"```yaml\n(.*?)```", text, re.DOTALL)
    assert example is not None
    path = tmp_path / "router.yaml"
    path.write_text(example[1].replace("folder: decisions", f"folder: {tmp_path / 'decisions'}"), "utf-8")
    config = read_config(path)
    assert Router(config).decider.policy_name == config.policy.name
    ports = [engine.url.rpartition(":")[2] for engine in config.engines]
    assert ports == ["9001", "9002", "9003", "9004"]  # those of `splitgym emulate` with the machines shown


def test_defaults_are_the_codes() -> None:
    """Each ``field` default`` of the table of fields."""
    text = PAGE.read_text("utf-8")
    from splitgym.router import config

    for section in ("Policy", "Prediction", "Safety", "Limits", "Telemetry", "Log"):
        row = next(line for line in text.splitlines() if line.startswith(f"| `{section.lower()}` |"))
        model = getattr(config, f"{section}Config")
        assert set(re.findall(r"`(\w+)`", row)) - {section.lower()} == set(model.model_fields)
        for name, shown in re.findall(r"`(\w+)` ([\w.\[\]-]+)", row):
            default = model.model_fields[name].default
            default = list(default) if isinstance(default, tuple) else default
            assert str(default).lower().replace(".0", "") == shown, name

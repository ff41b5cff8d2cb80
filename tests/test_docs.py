"""Documentation says what the code does."""

from __future__ import annotations

import re
from pathlib import Path

from splitgym.features import feature_table
from splitgym.shipped import shipped_folder

ROOT = Path(__file__).resolve().parents[1]


def test_feature_table_is_the_codes() -> None:
    assert feature_table() in (ROOT / "docs" / "environments.md").read_text("utf-8")


def test_readme_shows_the_tested_policy() -> None:
    """The README's example is the file that tests/policies runs, without its first line."""
    source = (ROOT / "tests" / "policies" / "pack.py").read_text("utf-8").partition("\n\n")[2]
    assert f"```python\n{source}```" in (ROOT / "README.md").read_text("utf-8")


def test_links_lead_somewhere() -> None:
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), ROOT / "envs" / "README.md"]:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text("utf-8")):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_readme_names_every_card() -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    for path in shipped_folder("envs").glob("*.yaml"):
        assert f"`{path.stem}`" in readme, path.stem

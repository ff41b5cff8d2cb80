"""Where the source comes from."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from splitgym import source


@pytest.fixture(autouse=True)
def _asked_anew() -> None:
    source.source_commit.cache_clear()


def test_of_a_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "__file__", str(tmp_path / "splitgym" / "source.py"))
    (tmp_path / "splitgym").mkdir()
    (tmp_path / "file").write_text("as committed", "utf-8")
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@example.org"]
    for command in (["init", "-q"], ["add", "file"], ["commit", "-q", "-m", "first"], ["tag", "v1"]):
        subprocess.run([*git, *command], check=True)
    commit = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    assert source.source_commit() == commit
    (tmp_path / "file").write_text("changed", "utf-8")
    assert source.source_commit() == commit  # it does not change while the process runs
    source.source_commit.cache_clear()
    assert source.source_commit() == f"{commit}-dirty"


@pytest.mark.parametrize(
    ("recorded", "commit"),
    [
        ('{"url": "x", "vcs_info": {"vcs": "git", "commit_id": "abc"}}', "abc"),
        ('{"url": "x"}', "unknown"),
        (None, "unknown"),
    ],
)
def test_of_an_installed_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recorded: str | None, commit: str
) -> None:
    class Installed:
        def read_text(self, name: str) -> str | None:
            assert name == "direct_url.json"
            return recorded

    monkeypatch.setattr(source, "__file__", str(tmp_path / "splitgym" / "source.py"))
    monkeypatch.setattr(source, "distribution", lambda name: Installed())
    assert source.source_commit() == commit

"""The wheel holds every card, bundle and profile: an ignored file vanishes from a wheel without a word."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    return zipfile.ZipFile(next(out.glob("*.whl")))


def files_of(folder: Path) -> set[str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(ROOT).as_posix()
        for path in files
        if "__pycache__" not in path.parts and not path.name.startswith(".")
    }


def test_everything_of_the_package_is_in_the_wheel(wheel: zipfile.ZipFile) -> None:
    assert files_of(ROOT / "splitgym") <= set(wheel.namelist())


@pytest.mark.parametrize("folder", ["envs", "policies"])
def test_cards_and_bundles_ship(wheel: zipfile.ZipFile, folder: str) -> None:
    shipped = {f"splitgym/_shipped/{name}" for name in files_of(ROOT / folder)}
    assert shipped
    assert shipped <= set(wheel.namelist())


def test_nothing_else_is_in_the_wheel(wheel: zipfile.ZipFile) -> None:
    tops = {name.split("/")[0] for name in wheel.namelist()}
    assert tops == {"splitgym", next(top for top in tops if top.endswith(".dist-info"))}


def test_the_licence_goes_along(wheel: zipfile.ZipFile) -> None:
    licence = next(name for name in wheel.namelist() if name.endswith("/LICENSE"))
    assert "Apache License" in wheel.read(licence).decode()

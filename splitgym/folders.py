"""Folders that results go into: found out to be writable before the work begins."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path

from splitgym.errors import SplitgymError


def check_writable(folder: Path) -> None:
    """Write a file into ``folder``, made if need be, and take back everything.

    Raises:
        SplitgymError: if ``folder`` is a file or cannot be written.
    """
    existing = next((path for path in (folder, *folder.parents) if path.exists()), folder)
    if existing.exists() and not existing.is_dir():
        raise SplitgymError(f"{folder}: {existing} is a file; name a folder")
    made = missing_above(folder / "file")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise SplitgymError(f"{folder}: cannot be written ({error.strerror}); name another folder") from None
    finally:
        take_back(made)


def missing_above(path: Path) -> list[Path]:
    """The folders above ``path`` that are not there yet, innermost first."""
    return [parent for parent in path.parents if not parent.exists()]


def take_back(made: list[Path]) -> None:
    """Remove folders that were made in vain, as far as they are empty."""
    for folder in made:
        with contextlib.suppress(OSError):
            folder.rmdir()

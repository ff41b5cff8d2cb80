"""Where shipped cards lie: beside the package in a wheel, at the top of the checkout else."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def shipped_folder(name: str) -> Path:
    """The folder of the cards called ``name`` (``"envs"`` or ``"policies"``).

    It is ``splitgym/_shipped/<name>`` where that exists (an installed wheel), else the checkout's top-level
    folder.
    """
    installed = _PACKAGE / "_shipped" / name
    return installed if installed.is_dir() else _PACKAGE.parent / name

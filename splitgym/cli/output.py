"""What commands leave behind: folders written whole or not at all, tables, JSON."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

from splitgym.errors import SplitgymError
from splitgym.folders import missing_above, take_back


@contextmanager
def output_folder(out: Path) -> Iterator[Path]:
    """A folder to write into, whose files are ``out``'s once the block ends without an exception.

    Files of the same name in an existing ``out`` are replaced, others stay. Folders above ``out`` are made.

    Raises:
        SplitgymError: before the block begins, if ``out`` cannot be written.
    """
    made = missing_above(out)
    try:
        folder = _temporary(out)
    except BaseException:
        take_back(made)
        raise
    try:
        yield folder
        if out.is_dir():
            for path in sorted(folder.iterdir()):
                path.replace(out / path.name)
            folder.rmdir()
        else:
            folder.chmod(0o777 & ~_umask())
            folder.rename(out)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        take_back(made)
        raise


def _temporary(out: Path) -> Path:
    if out.exists() and not out.is_dir():
        raise SplitgymError(f"--out {out}: a file is in the way; name a folder")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        # on the same file system as what it becomes, so that moving it is one step
        return Path(tempfile.mkdtemp(prefix=".splitgym-", dir=out if out.is_dir() else out.parent))
    except OSError as error:
        raise SplitgymError(f"--out {out}: cannot be written ({error.strerror}); name another folder") from None


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_json(content: object, path: Path) -> None:
    """Write indented JSON, without NaN."""
    path.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", "utf-8")


def print_json(content: object) -> None:
    """Print JSON and nothing else."""
    print(json.dumps(content, indent=2, allow_nan=False))


def print_records(records: Sequence[Mapping[str, Any]], *, as_json: bool, columns: Sequence[str] | None = None) -> None:
    """The records as JSON, or a table with a row for each and all ``columns``, or those that are named."""
    if as_json:
        print_json([dict(record) for record in records])
        return
    table = Table(header_style="bold")
    names = columns or (list(records[0]) if records else [])
    for position, name in enumerate(names):
        number = isinstance(records[0][name], int | float)
        justify: Literal["left", "right"] = "right" if number else "left"
        table.add_column(name.replace("_", " "), justify=justify, no_wrap=position == 0)
    for record in records:
        table.add_row(*(figure(record[name]) for name in names))
    wide_console().print(table)


def wide_console() -> Console:
    """Standard output; a file or pipe gets lines of 116 characters."""
    console = Console()
    if not console.is_terminal:
        console.width = max(console.width, 116)
    return console


def figure(value: object) -> str:
    """A value as a table shows it: three significant digits, nothing for None."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return str(value)

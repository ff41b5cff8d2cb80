"""The files of a bundle on disk: a directory, or a zip that tells when one of its bytes is another.

The zip is stored, not compressed; its comment, the last bytes of the file, is the SHA-256 of all bytes before it.
A digest tells damage, not forgery: whoever can write a bundle can write its digest.
"""

from __future__ import annotations

import hashlib
import io
import os
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

from splitgym.errors import SplitgymError

Files = Mapping[str, bytes]

MANIFEST, CARD, GOLDEN, NETWORK = "manifest.json", "CARD.md", "golden.npz", "policy.onnx"
NAMES = (MANIFEST, CARD, GOLDEN, NETWORK)
SUFFIX = ".zip"
LARGEST_BYTES = 1 << 28
"""No bundle is larger: neither a file in it nor all together."""

_MARK = b"sha256:"
_DIGITS = 64


def sha256(content: bytes) -> str:
    """In hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def is_bundle(path: Path) -> bool:
    """Whether ``path`` looks like a bundle; `read_files` says whether it is one."""
    return path.suffix == SUFFIX if path.is_file() else (path / MANIFEST).is_file()


def read_files(path: Path) -> dict[str, bytes]:
    """The files of the bundle at ``path``, by name; what else lies in a directory is not looked at.

    Raises:
        SplitgymError: if there is none, or the zip is not as it was written.
    """
    try:
        if not path.is_dir():
            return unpack(_read(path), str(path))
        return {name: _read(path / name) for name in NAMES if (path / name).exists()}
    except OSError as error:
        raise SplitgymError(f"{path}: {error.strerror or error}; name a bundle that can be read") from None


def write_files(path: Path, files: Files) -> None:
    """Write a bundle, each file whole or not at all: a zip where ``path`` ends in ``.zip``, else a directory.

    Raises:
        SplitgymError: if it cannot be written, or something that is no bundle is in the way.
    """
    if path.is_dir() and (path.suffix == SUFFIX or (any(path.iterdir()) and not is_bundle(path))):
        raise SplitgymError(f"{path}: a folder that is no bundle is in the way; name another place")
    if path.suffix != SUFFIX and path.is_file():
        raise SplitgymError(f"{path}: a file is in the way; name a folder, or a file that ends in {SUFFIX}")
    try:
        if path.suffix == SUFFIX:
            _write(path, pack(files))
            return
        for name in NAMES:
            if name in files:
                _write(path / name, files[name])
            else:
                (path / name).unlink(missing_ok=True)  # of another bundle that was here
    except OSError as error:
        raise SplitgymError(f"{path}: cannot be written ({error.strerror}); name another place") from None


def pack(files: Files) -> bytes:
    """The zip: equal files give equal bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name in NAMES:
            if name in files:
                archive.writestr(zipfile.ZipInfo(name), files[name])  # dated 1980, whenever it is written
        archive.comment = _MARK + b"0" * _DIGITS
    content = buffer.getvalue()[:-_DIGITS]
    return content + sha256(content).encode()


def unpack(content: bytes, place: str) -> dict[str, bytes]:
    """The files in a zip of `pack`.

    Raises:
        SplitgymError: if a byte of it is another, or it is no such zip.
    """
    body, digest = content[:-_DIGITS], content[-_DIGITS:]
    if not body.endswith(_MARK):
        raise SplitgymError(f"{place}: no bundle, or its end is damaged; write one with splitgym export")
    if sha256(body).encode() != digest:
        raise SplitgymError(f"{place}: damaged: its bytes do not match its SHA-256; copy or export it again")
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = archive.infolist()
            names = [member.filename for member in members]
            stored = all(member.compress_type == zipfile.ZIP_STORED for member in members)
            if not stored or len(set(names)) < len(names) or not set(names) <= set(NAMES):
                raise SplitgymError(f"{place}: holds {', '.join(names)}, which no bundle does; export it again")
            return {name: archive.read(name) for name in names}
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, RuntimeError, EOFError) as error:
        raise SplitgymError(f"{place}: no zip ({' '.join(str(error).split())}); export the bundle again") from None


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        content = file.read(LARGEST_BYTES + 1)
    if len(content) > LARGEST_BYTES:
        raise SplitgymError(f"{path}: larger than {LARGEST_BYTES} bytes, which no bundle is")
    return content


def _write(path: Path, content: bytes) -> None:
    """Beside its place first, then there in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, unfinished = tempfile.mkstemp(prefix=".splitgym-", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        Path(unfinished).chmod(0o644)
        Path(unfinished).replace(path)
    except BaseException:
        Path(unfinished).unlink(missing_ok=True)
        raise

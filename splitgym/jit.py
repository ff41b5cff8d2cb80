"""Compilation: numba's njit with an on-disk cache that notices changed callees.

Numba's cache compares a compiled function with its own file only, so a change in a function it calls in
another file goes unseen. Here the folder of the cache is named by a hash of all sources that hold compiled
code.
"""

from __future__ import annotations

import functools
import hashlib
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numba
from numba import types

_Function = TypeVar("_Function", bound=Callable[..., object])
_NUMBA_CONFIG: Any = numba.config  # its attributes come from the environment, which types cannot see
_PACKAGE = Path(__file__).parent
_SOURCES = ("jit.py", "features.py", "view.py", "hardware", "sim", "policies", "envs")
"""Files and folders with compiled code, or with columns that compiled code has taken in as constants."""


def njit(function: _Function) -> _Function:
    """Compile ``function`` in nopython mode, without fastmath, cached on disk where a folder can be written.

    The cache lies in ``$NUMBA_CACHE_DIR`` if that is set, else in the user's cache folder. Where neither
    can be written there is one warning, and functions are compiled anew in each process.
    """
    compiled: _Function = _cached(functools.partial(numba.njit, nogil=True), function)
    return compiled


def lean_njit(function: _Function) -> _Function:
    """As `njit`, for functions that allocate nothing: without counting references to their arrays.

    Counting is atomic; in an engine's small functions it would take longer than their work.
    """
    compiled: _Function = _widened(_cached(functools.partial(numba.njit, _nrt=False, forceinline=True), function))
    return compiled


def inner_njit(function: _Function) -> _Function:
    """As `lean_njit`, for what compiled functions alone call: without the code that takes Python's arguments apart.

    So it compiles faster; a call from Python would end the process.
    """
    return _inner(function, forceinline=True)


def seldom_njit(function: _Function) -> _Function:
    """As `inner_njit`, for what is seldom needed: called, so that it makes nothing larger and slower around it."""
    return _inner(function)


def merged_njit(function: _Function) -> _Function:
    """As `inner_njit`, for what is small or called at one place: it becomes part of its caller before that is compiled.

    So it is compiled once, with the caller; the others are compiled by themselves, and again in each caller.
    """
    return _inner(function, inline="always")


def vector_njit(function: _Function) -> _Function:
    """As `lean_njit`, but a division by 0 gives inf or NaN, as in NumPy: with a check, loops are not vectorised."""
    options = {"_nrt": False, "forceinline": True, "error_model": "numpy"}
    compiled: _Function = _cached(functools.partial(numba.njit, **options), function)
    return compiled


def function_pointer(function: Callable[..., object], signature: object, *, allocates: bool = False) -> Any:
    """``function`` (a result of `njit`) compiled for one numba ``signature``, to be handed to compiled functions.

    Those are compiled once for the signature, not anew for each function that they are given. Cached as `njit` does.
    References to arrays are counted only where it ``allocates`` some; see `lean_njit`.
    """
    cfunc: Any = numba.cfunc  # whose types do not know its options
    return _cached(functools.partial(cfunc, signature, _nrt=allocates), getattr(function, "py_func", function))


def _inner(function: _Function, **options: object) -> _Function:
    decorator = functools.partial(numba.njit, _nrt=False, no_cpython_wrapper=True, no_cfunc_wrapper=True, **options)
    compiled: _Function = _widened(_cached(decorator, function))
    return compiled


def _widened(dispatcher: Any) -> Any:
    """Have it compiled once for all integers, not for each constant and width that compiled functions hand over."""
    template_for = dispatcher.get_call_template

    def get_call_template(args: Sequence[Any], kws: Mapping[str, Any]) -> Any:
        return template_for(tuple(map(_widest, args)), {name: _widest(kind) for name, kind in kws.items()})

    dispatcher.get_call_template = get_call_template
    return dispatcher


def _widest(kind: Any) -> Any:
    plain = types.unliteral(kind)  # type: ignore[no-untyped-call]
    return types.int64 if isinstance(plain, types.Integer) else plain


def _cached(decorator: Callable[..., Any], function: Callable[..., object]) -> Any:
    folder = _cache_folder()
    before = _NUMBA_CONFIG.CACHE_DIR
    _NUMBA_CONFIG.CACHE_DIR = str(folder or "")  # numba picks the folder when it decorates; other packages keep theirs
    try:
        return decorator(cache=folder is not None)(function)
    finally:
        _NUMBA_CONFIG.CACHE_DIR = before


@functools.cache
def announce(name: str) -> None:
    """Say, once, why what follows takes long where the compiled function ``name`` (module.function) is not cached."""
    folder = _cache_folder()
    if folder is None or not any(folder.rglob(f"{name}-*.nbi")):
        print("splitgym: compiling the engine for this version, about a minute, once", file=sys.stderr, flush=True)


def sources_digest() -> str:
    """A hash of the sources that hold compiled code: 16 hexadecimal digits."""
    digest = hashlib.sha256()
    for path in sorted(path for name in _SOURCES for path in [_PACKAGE / name, *(_PACKAGE / name).rglob("*.py")]):
        if path.is_dir():
            continue
        digest.update(path.relative_to(_PACKAGE).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


@functools.cache
def _cache_folder() -> Path | None:
    try:
        chosen = _NUMBA_CONFIG.CACHE_DIR or os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        folder = Path(chosen) / "splitgym" / f"numba-{sources_digest()}"
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except (OSError, RuntimeError) as error:  # RuntimeError: no home folder
        warnings.warn(
            f"compiled functions are not cached: {error}; set NUMBA_CACHE_DIR to a writable folder",
            stacklevel=3,
        )
        return None
    return folder

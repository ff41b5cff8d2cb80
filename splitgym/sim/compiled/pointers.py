"""Arrays and functions by address: one integer instead of what takes long to hand over to compiled code."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import carray, types  # type: ignore[attr-defined]
from numba.core import cgutils
from numba.extending import intrinsic

from splitgym.jit import function_pointer, inline_njit

IntArray = npt.NDArray[np.int64]


def addresses(arrays: Sequence[npt.NDArray[Any]]) -> IntArray:
    """(len(arrays), 3) the address and the first two lengths of each. Whoever keeps them must keep the arrays."""
    places = [array.__array_interface__["data"][0] for array in arrays]
    return np.array([(place, *(*array.shape, 1, 1)[:2]) for place, array in zip(places, arrays, strict=True)])


@functools.cache
def address_of(function: Callable[..., Any], signature: Any) -> int:
    """Where the code of a compiled function lies, for one numba ``signature``."""
    return int(_kept(function, signature).address)


@functools.cache
def _kept(function: Callable[..., Any], signature: Any) -> Any:
    return function_pointer(function, signature)


def callable_at(signature: Any) -> Any:
    """A function for compiled code: from the address of a function of that signature to the function."""

    def callable_(typing_context, address):  # type: ignore[no-untyped-def]
        kind = types.FunctionType(signature)

        def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
            function = cgutils.create_struct_proxy(kind)(context, builder)  # type: ignore[no-untyped-call]
            function.c_addr = builder.inttoptr(arguments[0], context.get_value_type(types.voidptr))
            return function._getvalue()

        return kind(types.int64), generate

    return intrinsic(callable_)


def _pointer_at(typing_context, address):  # type: ignore[no-untyped-def]
    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        return builder.inttoptr(arguments[0], context.get_value_type(types.voidptr))

    return types.voidptr(types.int64), generate


pointer_at: Any = intrinsic(_pointer_at)
"""In compiled code: an address as a pointer."""


@inline_njit
def floats_at(place: IntArray) -> npt.NDArray[np.float64]:
    """The one-dimensional array whose address and length are in ``place`` (3,)."""
    found: npt.NDArray[np.float64] = carray(pointer_at(place[0]), (place[1],), np.float64)
    return found

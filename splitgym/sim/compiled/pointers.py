"""Arrays and functions by address: one integer instead of what takes long to hand over to compiled code."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np.arrayobj import get_cfarray_intrinsic
from numba.np.numpy_support import from_dtype

from splitgym.jit import function_pointer, merged_njit

IntArray = npt.NDArray[np.int64]


def addresses(arrays: Sequence[npt.NDArray[Any]]) -> IntArray:
    """(len(arrays), 3) the address and the first two lengths of each. Whoever keeps them must keep the arrays."""
    places = [array.__array_interface__["data"][0] for array in arrays]
    return np.array([(place, *(*array.shape, 1, 1)[:2]) for place, array in zip(places, arrays, strict=True)])


@functools.cache
def address_of(function: Callable[..., Any], signature: Any, *, allocates: bool = False) -> int:
    """Where the code of a compiled function lies, for one numba ``signature``; see `splitgym.jit.function_pointer`."""
    return int(_kept(function, signature, allocates).address)


@functools.cache
def _kept(function: Callable[..., Any], signature: Any, allocates: bool) -> Any:
    return function_pointer(function, signature, allocates=allocates)


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


def arrays_of(dtype: npt.DTypeLike) -> Any:
    """A function for compiled code: from a pointer and a shape to the array of that dtype.

    It is what numba's `carray` calls, which functions that count no references cannot.
    """
    return get_cfarray_intrinsic("C", types.DType(from_dtype(np.dtype(dtype))))  # type: ignore[no-untyped-call]


floats_of, ints_of, bools_of = arrays_of(np.float64), arrays_of(np.int64), arrays_of(np.bool_)


@merged_njit
def floats_at(place: IntArray) -> npt.NDArray[np.float64]:
    """The one-dimensional array whose address and length are in ``place`` (3,)."""
    found: npt.NDArray[np.float64] = floats_of(pointer_at(place[0]), (place[1],))
    return found

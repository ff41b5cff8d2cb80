"""Runs side by side: their arrays by address, so that one call of compiled code can go through many of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import carray, types  # type: ignore[attr-defined]
from numba.extending import intrinsic

from splitgym.jit import njit
from splitgym.sim.books import BookArrays
from splitgym.sim.compiled.state import LINE, MACHINE, REQUEST, RUN, TIMED, State

IntArray = npt.NDArray[np.int64]

NUM_ARRAYS = len(State._fields) + len(BookArrays._fields)

_FLOAT, _INT, _BOOL = np.float64, np.int64, np.bool_


def addresses(arrays: Sequence[npt.NDArray[Any]]) -> IntArray:
    """(len(arrays), 3) the address and the first two lengths of each. Whoever keeps them must keep the arrays."""
    places = [array.__array_interface__["data"][0] for array in arrays]
    return np.array([(place, *(*array.shape, 1, 1)[:2]) for place, array in zip(places, arrays, strict=True)])


def _at(typing_context, address):  # type: ignore[no-untyped-def]
    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        return builder.inttoptr(arguments[0], context.get_value_type(types.voidptr))

    return types.voidptr(types.int64), generate


_pointer: Any = intrinsic(_at)


@njit
def floats_at(place: IntArray) -> npt.NDArray[np.float64]:
    """The one-dimensional array whose address and length are in ``place`` (3,)."""
    found: npt.NDArray[np.float64] = carray(_pointer(place[0]), (place[1],), _FLOAT)
    return found


@njit
def state_at(a: IntArray) -> State:
    """The state whose `addresses` are the first rows of ``a``."""
    return State(
        requests=carray(_pointer(a[0, 0]), (a[0, 1],), REQUEST),
        machines=carray(_pointer(a[1, 0]), (a[1, 1],), MACHINE),
        books=carray(_pointer(a[2, 0]), (a[2, 1], a[2, 2]), _FLOAT),
        laws=carray(_pointer(a[3, 0]), (a[3, 1], a[3, 2]), _FLOAT),
        masked=carray(_pointer(a[4, 0]), (a[4, 1],), _INT),
        notes=carray(_pointer(a[5, 0]), (a[5, 1],), _INT),
        run=carray(_pointer(a[6, 0]), (a[6, 1],), RUN),
        events=carray(_pointer(a[7, 0]), (a[7, 1],), TIMED),
        starts=carray(_pointer(a[8, 0]), (a[8, 1],), TIMED),
        deadlines=carray(_pointer(a[9, 0]), (a[9, 1],), TIMED),
        ends=carray(_pointer(a[10, 0]), (a[10, 1],), TIMED),
        blocked=carray(_pointer(a[11, 0]), (a[11, 1], a[11, 2]), _BOOL),
        log=carray(_pointer(a[12, 0]), (a[12, 1],), LINE),
    )


@njit
def desk_at(a: IntArray) -> BookArrays:
    """The books whose `addresses` are the rows of ``a`` after those of a state."""
    return BookArrays(
        rows=carray(_pointer(a[13, 0]), (a[13, 1], a[13, 2]), _FLOAT),
        facts=carray(_pointer(a[14, 0]), (a[14, 1], a[14, 2]), _FLOAT),
        laws=carray(_pointer(a[15, 0]), (a[15, 1], a[15, 2]), _FLOAT),
        baseline_law=carray(_pointer(a[16, 0]), (a[16, 1],), _FLOAT),
        costs=carray(_pointer(a[17, 0]), (a[17, 1],), _FLOAT),
        arrived=carray(_pointer(a[18, 0]), (a[18, 1], a[18, 2]), _FLOAT),
        window=carray(_pointer(a[19, 0]), (a[19, 1],), _INT),
        masked=carray(_pointer(a[20, 0]), (a[20, 1],), _INT),
        machines=carray(_pointer(a[21, 0]), (a[21, 1], a[21, 2]), _FLOAT),
        request=carray(_pointer(a[22, 0]), (a[22, 1],), _FLOAT),
        cluster=carray(_pointer(a[23, 0]), (a[23, 1],), _FLOAT),
        prompt_mask=carray(_pointer(a[24, 0]), (a[24, 1],), _BOOL),
        token_mask=carray(_pointer(a[25, 0]), (a[25, 1],), _BOOL),
        role_mask=carray(_pointer(a[26, 0]), (a[26, 1], a[26, 2]), _BOOL),
    )

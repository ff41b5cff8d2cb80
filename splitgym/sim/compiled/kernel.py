"""A compiled heuristic as the loop calls it: through a pointer, so that the loop is compiled once for all of them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from splitgym.jit import function_pointer
from splitgym.sim.compiled.state import FloatArray

Function = Callable[..., Any]

_VECTOR, _FLAGS = types.float64[::1], types.boolean[::1]
SIGNATURE = types.UniTuple(types.int64, 2)(  # type: ignore[no-untyped-call]
    types.int64,
    types.float64,
    types.float64[:, ::1],
    _VECTOR,
    _VECTOR,
    _FLAGS,
    _FLAGS,
    types.boolean[:, ::1],
    types.int64[::1],
    _VECTOR,
    _VECTOR,
    types.int64[::1],
)
"""Of the kernels in `splitgym.policies.kernels`."""


NOTES_SEEN, MASKS_SEEN = range(2)
"""The first places of a kernel's memory are the engine's: the notes that there were when it was last asked
(`splitgym.sim.compiled.notes`), and how often the masks had been filled. With 0 notes seen it is told of all machines.
"""


class Kernel(NamedTuple):
    """A heuristic's compiled function, its numbers and its memory."""

    address: int  # of its compiled function (`address_of`)
    params: FloatArray
    state: FloatArray
    reads_times: bool  # whether it reads features that `splitgym.sim.books.fill_times` writes


@runtime_checkable
class OffersKernels(Protocol):
    """A policy that can decide without Python."""

    def kernels(self) -> tuple[Kernel, Kernel] | None:
        """Who decides at arrivals, and at ticks; ``None`` where one of them is no compiled function."""


def kernels_of(policy: object) -> tuple[Kernel, Kernel] | None:
    """The kernels of a policy that has been reset, if it offers them."""
    return policy.kernels() if isinstance(policy, OffersKernels) else None


def address_of(function: Function) -> int:
    """Where the compiled code of a kernel lies."""
    return int(_compiled(function).address)


@functools.cache
def _compiled(function: Function) -> Any:
    return function_pointer(function, SIGNATURE)


def _make_callable(typing_context, address):  # type: ignore[no-untyped-def]
    kind = types.FunctionType(SIGNATURE)

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        function = cgutils.create_struct_proxy(kind)(context, builder)  # type: ignore[no-untyped-call]
        function.c_addr = builder.inttoptr(arguments[0], context.get_value_type(types.voidptr))
        return function._getvalue()

    return kind(types.int64), generate


function_at: Any = intrinsic(_make_callable)
"""In compiled code: the kernel at an address. A function itself is slow to hand over, at every call anew."""

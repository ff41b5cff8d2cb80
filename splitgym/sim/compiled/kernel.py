"""A compiled heuristic as the loop calls it: through a pointer, so that the loop is compiled once for all of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

from numba import types

from splitgym.sim.compiled.pointers import callable_at
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

    address: int  # of its compiled function (`splitgym.sim.compiled.pointers`)
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


function_at = callable_at(SIGNATURE)
"""In compiled code: the kernel at an address."""

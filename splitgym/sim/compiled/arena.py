"""One stretch of memory for all arrays of a run."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

_LARGE_PAGE = 1 << 21
_LINE = 64


class Arena:
    """Hands out zeroed arrays from one stretch, which the system may back with large pages.

    A run has some thirty arrays. With many runs side by side, the tables by which small pages are found would be looked
    up more often than the arrays themselves.

    Args:
        num_bytes: that will be asked for, about. What does not fit is allocated by itself.
    """

    def __init__(self, num_bytes: int) -> None:
        self._buffer = np.zeros(max(num_bytes + _LARGE_PAGE, 2 * _LARGE_PAGE), np.uint8)
        self._next = -self._buffer.__array_interface__["data"][0] % _LARGE_PAGE

    def zeros(self, shape: int | tuple[int, ...], dtype: npt.DTypeLike = np.float64) -> npt.NDArray[Any]:
        """As `numpy.zeros`."""
        kind = np.dtype(dtype)
        end = self._next + int(np.prod(shape)) * kind.itemsize
        if end > len(self._buffer):
            return np.zeros(shape, kind)
        array = self._buffer[self._next : end].view(kind).reshape(shape)
        self._next = end + -end % _LINE
        return array

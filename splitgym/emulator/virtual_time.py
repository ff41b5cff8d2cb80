"""Time that stands still while there is work and jumps to the next timer when there is none.

Engines, a router and its clients in one such event loop take no time beyond what the engines' timers say, however slow
or busy the machine is: what is left of a router in it are its decisions, its books and its protocol.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

_Result = TypeVar("_Result")

_ARRIVES_S = 1e-4  # by the real clock: what one end of a loopback connection wrote, the other can read by then


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose sockets are real and whose time is not."""

    def __init__(self) -> None:
        self._now_s = 0.0
        super().__init__(_Jumping(self))

    def time(self) -> float:
        """Virtual seconds."""
        return self._now_s

    def jump(self, seconds: float) -> None:
        """Let time pass."""
        self._now_s += seconds


class _Jumping(selectors.DefaultSelector):
    """Where the loop would wait, its time passes."""

    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> Any:
        if timeout is None:
            return super().select(None)
        ready = super().select(0)
        if not ready and timeout > 0:
            ready = super().select(_ARRIVES_S)
            if not ready:
                self._loop.jump(timeout)
        return ready


def run_in_virtual_time(work: Coroutine[Any, Any, _Result]) -> _Result:
    """As `asyncio.run`. Clocks must be the loop's; whatever a thread does takes no time, or ends too late."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(work)
